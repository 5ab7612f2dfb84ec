# VM test of upgrades: the gateway goes to another generation and back, with a changed setting and with a changed package,
# crashes, and its host is lost. Connections wait in systemd's socket meanwhile.
{
  self,
  lib,
  pkgs,
}:
let
  ours = import ./lib.nix { inherit self lib pkgs; };
  inherit (ours) node outsider;
in
ours.test {
  name = "upgrade";
  nodes = {
    client = outsider "192.168.50.100";
    node-0 = node "node-0";
    node-1 = node "node-1";
    node-4 =
      { config, ... }:
      let
        inherit (config.services.microservice-app) package;
      in
      {
        imports = [ (node "node-4") ];
        # a test's machine cannot switch otherwise
        system.switch.enable = true;
        specialisation = {
          setting.configuration.services.microservice-app.apigateway.settings.log.level = "debug";
          package.configuration.services.microservice-app.package = lib.mkForce (
            # the same program under another name
            pkgs.runCommand "microservice-app-${package.version}-next"
              {
                inherit (package) version meta;
                pname = "microservice-app";
              }
              ''
                mkdir -p $out/bin
                cp ${lib.getExe package} $out/bin/
              ''
          );
        };
      };
  };
  script = builtins.readFile ./upgrade.py;
}
