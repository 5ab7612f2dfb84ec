# The HTTP gateway. systemd holds its port, so that a restart refuses no connection.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.services.microservice-app;
  gateway = cfg.apigateway;
  ours = import ./lib.nix { inherit config lib pkgs; };
  name = "microservice-app-apigateway";
in
{
  imports = [ ./common.nix ];

  options.services.microservice-app.apigateway = lib.mkOption {
    default = { };
    example = lib.literalExpression "{ enable = true; openFirewall = true; }";
    description = ''
      The HTTP gateway. A changed `port` or `address` takes effect with `systemctl restart ${name}.socket`:
      a switch to a new generation leaves a socket in use as it is.
    '';
    type = lib.types.submodule {
      imports = [
        (ours.process {
          role = "apigateway";
          what = "the gateway";
          port = 8080;
          adminPort = 6060;
          listen = "http";
        })
      ];
      options.enable = lib.mkEnableOption "the HTTP gateway";
    };
  };

  config = lib.mkIf gateway.enable (
    lib.mkMerge [
      (ours.firewallOf [ gateway ])
      {
        assertions = [ (ours.registryKnown "apigateway") ];

        systemd.sockets.${name} = {
          description = "microservice-app: port of the HTTP gateway";
          wantedBy = [ "sockets.target" ];
          # a bare port is every interface, by IPv6 as well where the host has it
          listenStreams = [
            (
              if gateway.address == "0.0.0.0" then
                toString gateway.port
              else
                ours.hostPort gateway.address gateway.port
            )
          ];
          socketConfig = {
            NoDelay = true;
            # connections that wait while the gateway restarts
            Backlog = 4096;
            # the address may come up after the socket
            FreeBind = true;
          };
        };

        systemd.services.${name} =
          ours.unit {
            inherit name;
            inherit (gateway) settings credentials;
            role = "apigateway";
            description = "microservice-app: HTTP gateway";
          }
          // {
            requires = [ "${name}.socket" ];
          };
      }
    ]
  );
}
