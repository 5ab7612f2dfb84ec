# node-3: the topic service, called by the gateway. All its instances are on this host, so they share a file.
let
  site = import ./site.nix;
in
{
  services.microservice-app = {
    registry.endpoints = [ "${site.nodes.node-0}:2379" ];
    topic = {
      enable = true;
      allowFrom = [ site.nodes.node-4 ];
      admin.allowFrom = site.monitors;
    };
  };
}
