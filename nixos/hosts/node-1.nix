# node-1: the feed service, called by the gateway and by profile.
let
  site = import ./site.nix;
in
{
  services.microservice-app = {
    store = {
      inherit (site.database) url;
      access = { inherit (site.database) passwordFile; };
    };
    registry.endpoints = [ "${site.nodes.node-0}:2379" ];
    feed = {
      enable = true;
      allowFrom = [
        site.nodes.node-2
        site.nodes.node-4
      ];
      admin.allowFrom = site.monitors;
    };
  };
}
