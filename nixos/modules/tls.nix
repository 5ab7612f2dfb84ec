# Certificates of the roles, for the calls between the gateway and the services.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkOption types;
  cfg = config.services.microservice-app;
  ours = import ./lib.nix { inherit config lib pkgs; };
in
{
  options.services.microservice-app.tls = {
    mode = mkOption {
      type = types.enum [
        "off"
        "permissive"
        "strict"
      ];
      default = "off";
      example = "strict";
      description = ''
        ${ours.describe "grpc.tls"} To turn it on, switch every host to `permissive` first, and then every host to
        `strict`: no call fails meanwhile.
      '';
    };

    directory = mkOption {
      type = types.externalPath;
      default = "/var/lib/microservice-app-tls";
      example = "/run/certificates";
      description = ''
        Directory with `ca.crt`, and with `ROLE.crt` and `ROLE.key` for each role of this host, such as `feed.crt`. The
        processes read the files there themselves, and again when they change, without a restart: whatever
        issues certificates may replace them at any time. A role's `settings.tls` name other files.
      '';
    };

    group = mkOption {
      type = types.str;
      default = "microservice-app-tls";
      example = "certificates";
      description = "Group that may read the files of `directory`. The roles of this host are in it.";
    };

    trustDomain = mkOption {
      type = types.nullOr (types.strMatching "[a-z0-9._-]+");
      default = null;
      example = "prod.example";
      description = ours.describe "tls.trust_domain";
    };
  };

  config = lib.mkIf (cfg.tls.mode != "off") {
    users.groups.${cfg.tls.group} = { };
    systemd.tmpfiles.rules = [ "d ${cfg.tls.directory} 0750 root ${cfg.tls.group} -" ];
  };
}
