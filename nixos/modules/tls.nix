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
        Directory with `ca.crt`, which everyone may read, and with a directory for each role of this host, such as
        `feed` with `feed.crt` and `feed.key`. The directory of a role is made with the group
        `microservice-app-tls-ROLE`, in which that role alone is, and gives this group to the files that are made in
        it: let the group read them, and nobody else. The processes read the files there themselves, and again when
        they change, without a restart: whatever issues certificates may replace them at any time. A role's
        `settings.tls` name other files.
      '';
    };

    trustDomain = mkOption {
      type = types.nullOr (types.strMatching "[a-z0-9._-]+");
      default = null;
      example = "prod.example";
      description = ours.describe "tls.trust_domain";
    };
  };

  config = lib.mkIf (cfg.tls.mode != "off") {
    users.groups = lib.genAttrs (map ours.tlsGroupOf ours.rolesHere) (_: { });
    # a role that is taken over does not get the key of another one; setgid: new files have the group of their directory
    systemd.tmpfiles.rules = [
      "d ${cfg.tls.directory} 0755 root root -"
    ]
    ++ map (role: "d ${cfg.tls.directory}/${role} 2750 root ${ours.tlsGroupOf role} -") ours.rolesHere;
  };
}
