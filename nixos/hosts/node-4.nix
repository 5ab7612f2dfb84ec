# node-4: the gateway, open to everybody who can reach this host.
let
  site = import ./site.nix;
in
{
  services.microservice-app = {
    registry.endpoints = [ "${site.nodes.node-0}:2379" ];
    apigateway = {
      enable = true;
      openFirewall = true;
      admin.allowFrom = site.monitors;
    };
  };
}
