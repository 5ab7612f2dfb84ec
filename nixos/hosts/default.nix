# nixosConfigurations: the hosts that site.nix lists. A host consists of its role (NAME.nix), of what all hosts have
# (common.nix, base.nix) and of its hardware.
{ self, nixpkgs }:
let
  inherit (nixpkgs) lib;
  site = import ./site.nix;
  host =
    name: address:
    lib.nixosSystem {
      modules = [
        self.nixosModules.default
        ./${name}.nix
        ./common.nix
        ./base.nix
        (hardwareOf name)
        {
          networking.hostName = name;
          site = {
            inherit address;
            inherit (site)
              administratorKeys
              gateway
              interface
              nameservers
              nodes
              prefixLength
              ;
          };
          # `nixos-version --configuration-revision` prints the commit
          system.configurationRevision = self.rev or self.dirtyRev or null;
        }
      ];
    };
  # hardware/NAME.nix holds what `nixos-generate-config --show-hardware-config` prints on the machine
  hardwareOf =
    name:
    let
      file = ./hardware + "/${name}.nix";
    in
    if builtins.pathExists file then file else ./hardware/placeholder.nix;
in
lib.mapAttrs host site.nodes
