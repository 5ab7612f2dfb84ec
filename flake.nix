{
  description = "Rust microservice system and the NixOS hosts it runs on";

  inputs = {
    nixpkgs.url = "github:NixOS/nixpkgs/nixos-26.05";
    # has no inputs, so no `follows`
    crane.url = "github:ipetkov/crane";
  };

  outputs =
    {
      self,
      nixpkgs,
      crane,
    }:
    let
      inherit (nixpkgs) lib;
      eachSystem = lib.genAttrs [
        "x86_64-linux"
        "aarch64-linux"
      ];
      build =
        pkgs:
        import ./nixos/package.nix {
          inherit pkgs;
          craneLib = crane.mkLib pkgs;
        };
      pkgsOf = eachSystem (system: nixpkgs.legacyPackages.${system});
      buildOf = eachSystem (system: build pkgsOf.${system});
      # imports a file of nixos/ with the arguments that all of them take
      call =
        system: file:
        import file {
          inherit self lib;
          pkgs = pkgsOf.${system};
        };
    in
    {
      overlays.default =
        final: _:
        import ./nixos/packages { pkgs = final; } // { microservice-app = (build final).package; };

      packages = eachSystem (
        system:
        import ./nixos/packages { pkgs = pkgsOf.${system}; }
        // {
          default = self.packages.${system}.microservice-app;
          microservice-app = buildOf.${system}.package.overrideAttrs (old: {
            passthru = old.passthru or { } // {
              tests = self.checks.${system};
            };
          });
          microservice-app-pgo = call system ./nixos/pgo.nix;
          oci-image = call system ./nixos/image.nix;
          options = (call system ./nixos/options.nix).page;
          inherit (buildOf.${system}) sbom;
        }
      );

      apps = eachSystem (system: {
        default = call system ./nixos/up.nix;
        cluster = call system ./nixos/cluster.nix;
      });

      checks = eachSystem (
        system:
        buildOf.${system}.checks
        // call system ./nixos/tests/examples.nix
        // call system ./nixos/tests
        // {
          options = (call system ./nixos/options.nix).check;
          nix = call system ./nixos/lint.nix;
        }
      );

      nixosModules = import ./nixos/modules self;
      nixosConfigurations = import ./nixos/hosts { inherit self nixpkgs; };
      templates.default = {
        path = ./nixos/template;
        description = "A NixOS host with two roles of microservice-app: registry and gateway";
      };

      devShells = eachSystem (system: {
        default = buildOf.${system}.shell;
      });
      formatter = eachSystem (system: pkgsOf.${system}.nixfmt-tree);
    };
}
