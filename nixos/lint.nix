# Formatting and lints of the .nix files.
{ lib, pkgs, ... }:
pkgs.runCommand "nix-lint"
  {
    nativeBuildInputs = [
      pkgs.deadnix
      pkgs.nixfmt
    ];
    src = lib.fileset.toSource {
      root = ../.;
      fileset = lib.fileset.fileFilter (file: file.hasExt "nix") ../.;
    };
  }
  ''
    find "$src" -name '*.nix' -exec nixfmt --check {} +
    deadnix --fail "$src"
    touch $out
  ''
