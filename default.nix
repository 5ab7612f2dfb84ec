# For Nix without flakes: `nix-build` builds the program, `(import ./. { }).nixosModules.default` is the module. The inputs
# are those that flake.lock pins.
{
  system ? builtins.currentSystem,
  nixpkgs ? null,
  crane ? null,
}:
let
  inherit (builtins.fromJSON (builtins.readFile ./flake.lock)) nodes;
  locked =
    name:
    let
      inherit (nodes.${name}.locked)
        owner
        repo
        rev
        narHash
        ;
    in
    fetchTarball {
      url = "https://github.com/${owner}/${repo}/archive/${rev}.tar.gz";
      sha256 = narHash;
    };
  # what `nix` makes of a flake: its outputs, with the folder itself
  flake =
    folder: inputs:
    let
      outputs = (import (folder + "/flake.nix")).outputs (inputs // { inherit self; });
      self = outputs // {
        outPath = toString folder;
        inherit inputs outputs;
        _type = "flake";
      };
    in
    self;
  of = name: given: flake (if given == null then locked name else given) { };

  self = flake ./. {
    nixpkgs = of "nixpkgs" nixpkgs;
    crane = of "crane" crane;
  };
in
self.packages.${system}.default
// {
  inherit (self)
    checks
    nixosConfigurations
    nixosModules
    overlays
    ;
  packages = self.packages.${system};
}
