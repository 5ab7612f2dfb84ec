# tracer: Zipkin on OpenSearch. Its pages have no password: `ssh -L 9411:localhost:9411 root@tracer`.
let
  site = import ./site.nix;
in
{
  services.microservice-app.tracing = {
    enable = true;
    # the roles send spans, the monitor reads metrics and traces
    allowFrom = [
      site.nodes.node-1
      site.nodes.node-2
      site.nodes.node-3
      site.nodes.node-4
    ]
    ++ site.monitors;
  };
}
