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

  isV6 = source: ours.ip.familyOf source == "IPv6";
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
    lib.concatMapStrings ({ port, from, ... }: lib.concatMapStrings (rule port) from) cfg.listeners;
  # NixOS 25.11 and newer have this option
  backend =
    config.networking.firewall.backend
      or (if config.networking.nftables.enable then "nftables" else "iptables");
  # the ports that some hosts only may reach
  guarded = lib.filter (listener: listener.from != [ ]) cfg.listeners;
  portsOf = lib.concatMapStringsSep ", " (listener: "${toString listener.port} (${listener.option})");

  # pairs of listeners that want the same port
  clashes =
    let
      clash =
        one: other: one.port == other.port && one.port != 0 && ours.ip.overlap one.address other.address;
    in
    lib.concatLists (
      lib.imap1 (
        n: one: map (other: { inherit one other; }) (lib.filter (clash one) (lib.drop n cfg.listeners))
      ) cfg.listeners
    );
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
        inherit (ours) publicFileOption secretFileOption;
      in
      {
        caFile = publicFileOption "ca.crt" "registry.ca_file";
        certFile = publicFileOption "client.crt" "registry.cert_file";
        keyFile = secretFileOption "client.key" "registry.key_file";
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
        passwordFile = secretFileOption "etcd-password" "registry.password_file";
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

    adminTokenFile = ours.secretFileOption "admin-token" "admin.token_file";

    listeners = mkOption {
      type = types.listOf (
        types.submodule {
          options = {
            option = mkOption {
              type = types.str;
              description = "Path of the options that place it, for messages.";
            };
            address = mkOption {
              type = ours.ip.address;
              default = "::";
              description = "IP address that it listens on.";
            };
            port = mkOption {
              type = types.port;
              description = "TCP port that it listens on.";
            };
            from = mkOption {
              type = types.listOf ours.ip.source;
              default = [ ];
              description = "For whom the firewall opens the port.";
            };
          };
        }
      );
      default = [ ];
      internal = true;
      visible = false;
      description = "Every port of this host that its roles listen on.";
    };
  };

  config = {
    networking.firewall = {
      extraInputRules = lib.mkIf (backend == "nftables") (rules nftablesRule);
      # appended to the chain nixos-fw, before the rule that refuses the rest; NixOS builds the chain anew
      # at every start or reload of the firewall, so no rule has to be removed
      extraCommands = lib.mkIf (backend == "iptables") (rules iptablesRule);
    };

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
        {
          assertion = backend == "firewalld" -> guarded == [ ];
          message = "services.microservice-app cannot open ports for some hosts only with networking.firewall.backend = \"firewalld\": ${portsOf guarded}. Use iptables or nftables, or openFirewallOn.";
        }
      ]
      ++ map (
        { one, other }:
        {
          assertion = false;
          message = "${one.option} and ${other.option} both listen on port ${toString one.port}.";
        }
      ) clashes;

    warnings = lib.optional (guarded != [ ] && !config.networking.firewall.enable) ''
      services.microservice-app: these ports are meant for some hosts only, but every host can connect, because
      networking.firewall.enable is false: ${portsOf guarded}.
    '';
  };
}
