# VM test of the monitoring: discovery, an alert from its cause to the receiver and back, the dashboards.
{
  self,
  lib,
  pkgs,
}:
let
  ours = import ./lib.nix { inherit self lib pkgs; };
  inherit (ours) node site;
  # the hosts that are here: the tracer has a test of its own
  here = map (name: site.nodes.${name}) [
    "node-0"
    "node-1"
    "node-2"
    "node-3"
    "node-4"
    "monitor"
  ];
  at = port: map (address: "${address}:${toString port}") here;
  # cAdvisor on two of them is enough
  watched = [
    "node-1"
    "node-4"
  ];
  receiver = 9999;
in
ours.test {
  name = "monitoring";
  from = "monitor";
  nodes =
    lib.genAttrs
      [
        "node-0"
        "node-1"
        "node-2"
        "node-3"
        "node-4"
      ]
      (name: {
        imports = [ (node name) ];
        services.microservice-app = {
          exporters.cadvisor.enable = lib.mkForce (lib.elem name watched);
          # spans go where the notifications go: a collector that takes everything
          settings.trace.zipkin_addr = lib.mkForce "http://${site.nodes.monitor}:${toString receiver}/api/v2/spans";
        };
      })
    // {
      monitor = {
        imports = [
          (node "monitor")
          ours.caller
        ];
        virtualisation.memorySize = 1536;
        services.microservice-app.monitoring = {
          # a scrape of a slow machine takes a while
          scrapeInterval = "10s";
          targets = {
            node = lib.mkForce (at 9100);
            cadvisor = lib.mkForce (map (name: "${site.nodes.${name}}:9180") watched);
            zipkin = lib.mkForce [ ];
          };
          alertmanager.webhook = {
            url = lib.mkForce "http://127.0.0.1:${toString receiver}/alerts";
            tokenFile = lib.mkForce "/var/lib/secrets/webhook-token";
          };
        };
        networking.firewall.allowedTCPPorts = [ receiver ];
        systemd.services.receiver = {
          wantedBy = [ "multi-user.target" ];
          serviceConfig.ExecStart = "${lib.getExe pkgs.python3} ${./receiver.py} ${toString receiver} /tmp/alerts";
        };
        environment.systemPackages = [
          (pkgs.writeShellScriptBin "mixed-calls" (builtins.readFile ./mixed-calls.sh))
        ];
      };
    };
  # the dashboards as they are shipped, each a text of JSON
  script =
    "DASHBOARDS = ${builtins.toJSON (map builtins.readFile (lib.filesystem.listFilesRecursive ../../deploy/monitoring/dashboards))}\n"
    + builtins.readFile ./monitoring.py;
}
