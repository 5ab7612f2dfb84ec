# node-0: the registry. The shared database will run here too.
let
  site = import ./site.nix;
in
{
  services.microservice-app.registry.server = {
    enable = true;
    address = site.nodes.node-0;
    # the hosts that register or look up services
    allowFrom = [
      site.nodes.node-1
      site.nodes.node-2
      site.nodes.node-3
      site.nodes.node-4
    ];
  };
}
