# nixosConfigurations: the five hosts of the plan in site.nix. A host is its role (node-N.nix), what all
# hosts have (base.nix) and its hardware.
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
          # which commit runs here: `nixos-version --configuration-revision`
          system.configurationRevision = self.rev or self.dirtyRev or null;
        }
      ];
    };
  # what `nixos-generate-config --show-hardware-config` prints on the machine, once it is there
  hardwareOf =
    name:
    let
      file = ./hardware + "/${name}.nix";
    in
    if builtins.pathExists file then file else ./hardware/placeholder.nix;
in
lib.mapAttrs host site.nodes
