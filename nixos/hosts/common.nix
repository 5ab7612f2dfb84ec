# What every host has, whatever its role: what it tells the monitor about itself, and where its roles send spans.
let
  site = import ./site.nix;
in
{
  services.microservice-app = {
    exporters = {
      enable = true;
      cadvisor.enable = true;
      allowFrom = site.monitors;
    };
    settings.trace.zipkin_addr = "http://${site.nodes.tracer}:9411/api/v2/spans";
  };
}
