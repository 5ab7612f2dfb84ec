# node-4: the gateway, open to all who reach this host.
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
