# What all roles of a host share: the package, the addresses of the registry, common settings, and the firewall rules
# that the roles need.
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

  isV6 = lib.hasInfix ":";
  iptablesRule =
    port: source:
    lib.optionalString (isV6 source -> config.networking.enableIPv6) ''
      ${
        if isV6 source then "ip6tables" else "iptables"
      } -w -A nixos-fw -p tcp -s ${source} --dport ${toString port} -j nixos-fw-accept \
        || echo "microservice-app: no rule for ${source}, port ${toString port}" >&2
    '';
  nftablesRule =
    port: source:
    "${if isV6 source then "ip6" else "ip"} saddr ${source} tcp dport ${toString port} accept\n";
  rules =
    rule:
    lib.concatMapStrings ({ port, from }: lib.concatMapStrings (rule port) from) cfg.firewallRules;
in
{
  options.services.microservice-app = {
    package = lib.mkPackageOption pkgs "microservice-app" { } // {
      example = lib.literalExpression "inputs.microservice-app.packages.x86_64-linux.default";
    };

    registry.endpoints = mkOption {
      type = types.listOf types.str;
      default = [ ];
      defaultText = lib.literalMD "etcd of this host, if `registry.server.enable` is set";
      example = [
        "192.168.50.10:2379"
        "192.168.50.11:2379"
      ];
      description = ''
        ${ours.describe "registry.endpoints"} Name all members of a cluster.
      '';
    };

    registry.access =
      let
        fileOption =
          name: key:
          mkOption {
            type = types.nullOr types.externalPath;
            default = null;
            example = "/var/lib/secrets/${name}";
            description = ours.describe key;
          };
      in
      {
        caFile = fileOption "ca.crt" "registry.ca_file";
        certFile = fileOption "client.crt" "registry.cert_file";
        keyFile = fileOption "client.key" "registry.key_file";
        serverName = mkOption {
          type = types.nullOr types.str;
          default = null;
          example = "etcd.example.org";
          description = ours.describe "registry.tls_server_name";
        };
        user = mkOption {
          type = types.nullOr types.str;
          default = null;
          example = "services";
          description = ''
            ${ours.describe "registry.user"} To give one role a user of its own, set its
            `settings.registry.user` and its `credentials.etcd-password`.
          '';
        };
        passwordFile = fileOption "etcd-password" "registry.password_file";
      };

    settings = mkOption {
      inherit (ours.toml) type;
      default = { };
      example = lib.literalExpression ''
        {
          log.format = "json";
          registry.ttl_s = 5;
        }
      '';
      description = ''
        Settings of every role of this host, by section and key. A role's own `settings` win over these.
        Defaults and ranges are in docs/configuration.md. All keys:

        ${ours.describeAll}
      '';
    };

    firewallRules = mkOption {
      type = types.listOf (
        types.submodule {
          options = {
            port = mkOption {
              type = types.port;
              description = "TCP port to open.";
            };
            from = mkOption {
              type = types.listOf ours.source;
              description = "Who may connect.";
            };
          };
        }
      );
      default = [ ];
      internal = true;
      visible = false;
      description = "Ports that are open for some hosts only.";
    };
  };

  config = {
    networking.firewall =
      if config.networking.nftables.enable then
        { extraInputRules = rules nftablesRule; }
      else
        # appended to the chain nixos-fw, before the rule that refuses the rest; NixOS builds the chain anew
        # at every start or reload of the firewall, so no rule has to be removed
        { extraCommands = rules iptablesRule; };

    assertions =
      let
        inherit (cfg.registry) access endpoints;
        here = "services.microservice-app.registry";
        bothOrNone = one: other: {
          assertion = (access.${one} == null) == (access.${other} == null);
          message = "${here}.access: `${one}` and `${other}` go together, set both or none.";
        };
      in
      [
        (bothOrNone "certFile" "keyFile")
        (bothOrNone "user" "passwordFile")
        {
          assertion =
            endpoints == [ ]
            || lib.any (lib.hasPrefix "https://") endpoints
            || lib.all isNull [
              access.caFile
              access.certFile
              access.serverName
            ];
          message = "${here}.access has files for TLS, but no endpoint of ${here}.endpoints begins with https://.";
        }
        {
          assertion =
            let
              secured = lib.partition (lib.hasPrefix "https://") endpoints;
            in
            secured.right == [ ] || secured.wrong == [ ];
          message = "${here}.endpoints: all with https:// or none.";
        }
      ];

    warnings = lib.optional (cfg.firewallRules != [ ] && !config.networking.firewall.enable) ''
      services.microservice-app: an `allowFrom` lists the hosts that may connect, but every host can:
      networking.firewall.enable is false.
    '';
  };
}
