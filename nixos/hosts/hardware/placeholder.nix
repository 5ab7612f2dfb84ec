# Hardware of a host without a file of its own: an EFI machine, virtual or not, with a partition labelled `nixos` and
# an ESP labelled `ESP`, as on the images that `nixos-rebuild build-image --image-variant raw-efi` builds. For any
# other machine write the output of `nixos-generate-config --show-hardware-config` and the boot loader into node-N.nix
# in this directory.
{ lib, modulesPath, ... }:
{
  imports = [ "${modulesPath}/profiles/qemu-guest.nix" ];

  nixpkgs.hostPlatform = lib.mkDefault "x86_64-linux";
  boot.loader.systemd-boot = {
    enable = true;
    # the ESP of the images has 256 MB, and a generation needs about 40
    configurationLimit = 4;
  };
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
  # the image is smaller than the disk
  boot.growPartition = true;
}
