# Hardware of a host that has no file of its own yet: an EFI machine, virtual or not, with a partition
# labelled `nixos` and an ESP labelled `ESP`. This is the layout of the images that NixOS builds
# (`nixos-rebuild build-image --image-variant raw-efi`). For any other machine put the output of
# `nixos-generate-config --show-hardware-config` into node-N.nix beside this file, with the boot loader.
{ lib, modulesPath, ... }:
{
  imports = [ "${modulesPath}/profiles/qemu-guest.nix" ];

  nixpkgs.hostPlatform = lib.mkDefault "x86_64-linux";
  boot.loader.systemd-boot.enable = true;
  fileSystems."/" = {
    device = "/dev/disk/by-label/nixos";
    fsType = "ext4";
    autoResize = true;
  };
  fileSystems."/boot" = {
    device = "/dev/disk/by-label/ESP";
    fsType = "vfat";
    options = [ "umask=0077" ];
  };
  # the image is small, the disk is not
  boot.growPartition = true;
}
