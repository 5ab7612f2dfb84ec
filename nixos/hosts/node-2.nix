# node-2: the profile service, called by the gateway.
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
    profile = {
      enable = true;
      allowFrom = [ site.nodes.node-4 ];
      admin.allowFrom = site.monitors;
    };
  };
}
