# VM test of the tracing: traces from a call to OpenSearch, the graph of dependencies, and Zipkin away.
{
  self,
  lib,
  pkgs,
}:
let
  ours = import ./lib.nix { inherit self lib pkgs; };
  inherit (ours) node;
in
ours.test {
  name = "tracing";
  from = "tracer";
  nodes = {
    node-0 = node "node-0";
    node-1 = node "node-1";
    node-2 = node "node-2";
    node-4 = node "node-4";
    tracer = {
      imports = [
        (node "tracer")
        ours.caller
      ];
      virtualisation = {
        memorySize = 3072;
        cores = 2;
        # OpenSearch takes no writes on a disk that is nearly full
        diskSize = 4096;
      };
    };
  };
  script = builtins.readFile ./tracing.py;
}
