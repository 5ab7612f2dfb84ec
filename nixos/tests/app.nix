# VM test of the five hosts and a client outside: the original's walkthrough, scaling by hand, and faults of an
# instance, of a host and of the registry.
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
    # node-1 uses nftables, the other hosts use iptables. As on node-3, the gateway's host may read the admin port
    node-1 = {
      imports = [ (node "node-1") ];
      networking.nftables = {
        enable = true;
        # the check would build a kernel in user space; here the kernel of the machine checks the rules
        checkRuleset = false;
      };
      services.microservice-app.feed.admin.allowFrom = [ site.nodes.node-4 ];
    };
    # the test starts an instance of feed by hand here
    node-2 = {
      imports = [ (node "node-2") ];
      networking.firewall.allowedTCPPorts = [ 8082 ];
    };
    node-3 = {
      imports = [ (node "node-3") ];
      services.microservice-app.topic = {
        admin.allowFrom = [ site.nodes.node-4 ];
        # a second instance with the same store
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
