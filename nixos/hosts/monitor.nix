# monitor: Prometheus, Alertmanager and Grafana. Grafana asks for a password and is open to everybody who can reach this
# host; the others have none, and are reached through ssh: `ssh -L 9090:localhost:9090 root@monitor`.
let
  site = import ./site.nix;
  every = port: map (address: "${address}:${toString port}") (builtins.attrValues site.nodes);
in
{
  services.microservice-app.monitoring = {
    enable = true;
    gateways = [ "${site.nodes.node-4}:6060" ];
    targets = {
      etcd = [ "${site.nodes.node-0}:2381" ];
      node = every 9100;
      cadvisor = every 9180;
      zipkin = [ "${site.nodes.tracer}:9411" ];
    };
    # who is told of an alert
    alertmanager = { inherit (site) slack webhook; };
    grafana.openFirewall = true;
  };
}
