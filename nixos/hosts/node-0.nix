# node-0: the registry, and the database that the feed instances of all hosts share. Its password has to be on this host
# and on those that use it, see site.nix.
let
  site = import ./site.nix;
in
{
  services.microservice-app = {
    registry.server = {
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
    database = {
      enable = true;
      inherit (site.database) passwordFile;
      # feed and profile; node-2 also, should an instance of feed be started there
      allowFrom = [
        site.nodes.node-1
        site.nodes.node-2
      ];
    };
  };
}
