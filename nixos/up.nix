# `nix run .`: the whole application in one process. A first argument that is no flag is a command of the program:
# `nix run . -- feed --help`.
{
  self,
  lib,
  pkgs,
}:
let
  package = self.packages.${pkgs.stdenv.hostPlatform.system}.default;
  start = pkgs.writeShellScriptBin "microservice-app-up" ''
    case "''${1:-}" in
      "" | -*) set -- up "$@" ;;
    esac
    exec ${lib.getExe package} "$@"
  '';
in
{
  type = "app";
  program = lib.getExe start;
  meta.description = "The whole application in one process; a command as the first argument runs that instead";
}
