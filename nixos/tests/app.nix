# The five hosts and an outsider: the original's walkthrough, scaling by hand, and the faults that one
# instance, one host or the registry can have.
{
  self,
  lib,
  pkgs,
}:
let
  ours = import ./lib.nix { inherit self lib pkgs; };
  inherit (ours) node outsider site;
in
ours.test {
  name = "app";
  nodes = {
    client = outsider "192.168.50.100";
    node-0 = node "node-0";
    # node-1 has the other firewall, and like node-3 an admin port that the gateway's host may read
    node-1 = {
      imports = [ (node "node-1") ];
      networking.nftables = {
        enable = true;
        # its simulated kernel would be one more thing to build; the machine's own kernel is the judge here
        checkRuleset = false;
      };
      services.microservice-app.feed.admin.allowFrom = [ site.nodes.node-4 ];
    };
    # an instance of feed is started by hand here
    node-2 = {
      imports = [ (node "node-2") ];
      networking.firewall.allowedTCPPorts = [ 8082 ];
    };
    node-3 = {
      imports = [ (node "node-3") ];
      services.microservice-app.topic = {
        admin.allowFrom = [ site.nodes.node-4 ];
        # two instances, one store
        instances.second = {
          port = 8184;
          allowFrom = [ site.nodes.node-4 ];
        };
      };
    };
    node-4 = node "node-4";
  };
  script = builtins.readFile ./app.py;
}
