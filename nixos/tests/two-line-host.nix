# A host of two lines evaluates, and is what it seems: a gateway behind a socket, on the given registry.
# That such a host runs, node-4 of the test `app` shows.
{
  self,
  lib,
  pkgs,
}:
let
  host = lib.nixosSystem {
    modules = [
      self.nixosModules.default
      {
        services.microservice-app.apigateway.enable = true;
        services.microservice-app.registry.endpoints = [ "192.168.50.10:2379" ];
      }
      # what every NixOS host has to say
      {
        boot.isContainer = true;
        nixpkgs.hostPlatform = pkgs.stdenv.hostPlatform.system;
        system.stateVersion = "26.05";
      }
    ];
  };
  inherit (host) config;
  failed = map (a: a.message) (lib.filter (a: !a.assertion) config.assertions) ++ config.warnings;
in
assert lib.assertMsg (failed == [ ]) (lib.concatLines failed);
assert config.networking.firewall.allowedTCPPorts == [ ];
pkgs.writeText "two-line-host" config.systemd.units."microservice-app-apigateway.service".text
