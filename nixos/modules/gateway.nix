# The HTTP gateway. systemd holds the listening socket, so connections are accepted while the gateway restarts.
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
  certificateOf = host: config.security.acme.certs.${host}.directory;
in
{
  imports = [
    ./common.nix
    ./tls.nix
  ];

  options.services.microservice-app.apigateway = lib.mkOption {
    default = { };
    example = lib.literalExpression "{ enable = true; openFirewall = true; }";
    description = ''
      The HTTP gateway. After a change of `port` or `address`, run `systemctl restart ${name}.socket`:
      a switch to a new generation does not restart a socket that is in use.
    '';
    type = lib.types.submodule (
      { config, ... }: {
        imports = [
          (ours.process {
            role = "apigateway";
            what = "the gateway";
            port = 8080;
            adminPort = 6060;
            listen = "http";
          })
        ];
        options = {
          enable = lib.mkEnableOption "the HTTP gateway";
          acmeHost = lib.mkOption {
            type = lib.types.nullOr lib.types.str;
            default = null;
            example = "api.example.org";
            description = ''
              Name in `security.acme.certs` whose certificate the gateway shows to its callers: it speaks HTTPS on `port`
              then. A renewed certificate is taken without a restart. For a certificate from elsewhere set
              `settings.http.tls`. ${ours.describe "http.tls.cert_file"}
            '';
          };
        };
        config.settings = lib.mkIf (config.acmeHost != null) {
          http.tls = {
            cert_file = lib.mkDefault "${certificateOf config.acmeHost}/fullchain.pem";
            key_file = lib.mkDefault "${certificateOf config.acmeHost}/key.pem";
          };
        };
      }
    );
  };

  config = lib.mkIf gateway.enable (
    lib.mkMerge [
      (ours.hostOf "http" [
        (
          gateway
          // {
            role = "apigateway";
            option = "services.microservice-app.apigateway";
          }
        )
      ])
      {
        assertions = [
          {
            assertion = gateway.port != 0;
            message = "services.microservice-app.apigateway.port is 0, which is no port that callers could know.";
          }
        ];

        systemd.sockets.${name} = {
          description = "microservice-app: port of the HTTP gateway";
          wantedBy = [ "sockets.target" ];
          # a port without an address listens on every interface, also with IPv6 if the host has it
          listenStreams = [
            (
              if gateway.address == "::" then
                toString gateway.port
              else
                ours.ip.hostPort gateway.address gateway.port
            )
          ];
          socketConfig = lib.mapAttrs (_: lib.mkDefault) {
            BindIPv6Only = "both";
            NoDelay = true;
            # how many connections can wait while the gateway restarts
            Backlog = 4096;
            # the socket may be opened before the interface has its address
            FreeBind = true;
          };
        };

        systemd.services.${name} = lib.mkMerge [
          (ours.unit {
            inherit name;
            inherit (gateway) settings credentials;
            role = "apigateway";
            description = "microservice-app: HTTP gateway";
          })
          { requires = [ "${name}.socket" ]; }
        ];
      }
      (lib.mkIf (gateway.acmeHost != null) {
        systemd.services.${name} = {
          # there is a certificate of its own until the first real one has come
          wants = [ "acme-${gateway.acmeHost}.service" ];
          after = [ "acme-${gateway.acmeHost}.service" ];
          serviceConfig.SupplementaryGroups = [ config.security.acme.certs.${gateway.acmeHost}.group ];
        };
      })
    ]
  );
}
