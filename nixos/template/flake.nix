{
  description = "A host with the registry and the gateway of microservice-app";

  inputs = {
    # the address of the repository that has this template
    microservice-app.url = "git+https://example.org/microservice-app";
    nixpkgs.follows = "microservice-app/nixpkgs";
  };

  outputs =
    { nixpkgs, microservice-app, ... }:
    {
      nixosConfigurations.web = nixpkgs.lib.nixosSystem {
        modules = [
          microservice-app.nixosModules.default
          ./configuration.nix
          # ./hardware-configuration.nix of `nixos-generate-config` takes the place of this
          {
            nixpkgs.hostPlatform = "x86_64-linux";
            boot.loader.systemd-boot.enable = true;
            fileSystems."/" = {
              device = "/dev/disk/by-label/nixos";
              fsType = "ext4";
            };
            fileSystems."/boot" = {
              device = "/dev/disk/by-label/ESP";
              fsType = "vfat";
            };
          }
        ];
      };
    };
}
