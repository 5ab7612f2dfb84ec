# The registry: etcd, alone or as a member of a cluster. Uses NixOS' module, and adds a sandbox.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkDefault mkOption types;
  cfg = config.services.microservice-app;
  server = cfg.registry.server;
  ours = import ./lib.nix { inherit config lib pkgs; };
  inherit (ours) rolesHere;

  clientPort = 2379;
  peerPort = 2380;
  url =
    tls: address: port:
    "${if tls == null then "http" else "https"}://${ours.ip.hostPort address port}";
  clientUrl = address: url server.tls address clientPort;
  peerUrl = address: url server.peerTls address peerPort;

  loopback = "127.0.0.1";
  address = if server.address == null then loopback else server.address;
  members = if server.members == { } then { ${server.name} = address; } else server.members;
  others = removeAttrs members [ server.name ];
  # where the roles of this host find etcd
  endpoint =
    address: if server.tls == null then ours.ip.hostPort address clientPort else clientUrl address;

  tlsOption =
    who:
    mkOption {
      default = null;
      example = lib.literalExpression ''
        {
          certFile = "/var/lib/secrets/etcd.crt";
          keyFile = "/var/lib/secrets/etcd.key";
          caFile = "/var/lib/secrets/ca.crt";
        }
      '';
      description = "TLS for ${who}; null: no TLS. Only root has to be able to read the files.";
      type = types.nullOr (
        types.submodule {
          options = {
            certFile = mkOption {
              type = types.path;
              default = "/var/lib/secrets/etcd.crt";
              example = "/run/secrets/etcd.crt";
              description = "This member's certificate (PEM), valid for its `address` and for 127.0.0.1.";
            };
            keyFile = mkOption {
              type = types.externalPath;
              default = "/var/lib/secrets/etcd.key";
              example = "/run/secrets/etcd.key";
              description = "The certificate's key (PEM).";
            };
            caFile = mkOption {
              type = types.path;
              default = "/var/lib/secrets/ca.crt";
              example = "/run/secrets/ca.crt";
              description = "Certificates (PEM) of the authority that signed the other side's certificates.";
            };
            clientCertAuth = mkOption {
              type = types.bool;
              default = true;
              example = false;
              description = "Whether the other side has to present a certificate.";
            };
          };
        }
      );
    };

  # etcd's user cannot read root's files: systemd gives it copies
  credential = kind: "/run/credentials/etcd.service/${kind}";
  credentialsOf =
    prefix: tls:
    lib.optionals (tls != null) [
      "${prefix}-cert:${tls.certFile}"
      "${prefix}-key:${tls.keyFile}"
      "${prefix}-ca:${tls.caFile}"
    ];
in
{
  imports = [ ./common.nix ];

  options.services.microservice-app.registry.server = {
    enable = lib.mkEnableOption "etcd, the registry, on this host";

    name = mkOption {
      type = types.str;
      default = config.networking.hostName;
      defaultText = lib.literalExpression "config.networking.hostName";
      example = "node-0";
      description = "Name of this member.";
    };

    address = mkOption {
      type = types.nullOr ours.ip.address;
      default = server.members.${server.name} or null;
      defaultText = lib.literalMD "this member's address in `members`";
      example = "192.168.50.10";
      description = "IP address at which the other hosts reach etcd; null: etcd serves this host alone.";
    };

    members = mkOption {
      type = types.attrsOf ours.ip.address;
      default = { };
      example = {
        node-0 = "192.168.50.10";
        node-5 = "192.168.50.17";
        node-6 = "192.168.50.18";
      };
      description = ''
        All members of the cluster with their IP addresses, including this one; the same value on each of them.
        Empty: a single etcd. The firewall opens the peer port for the other members.
        A new cluster works as soon as a majority of its members has started. To replace a member see
        `services.etcd.initialClusterState`.
      '';
    };

    openFirewall = ours.openFirewallOption "etcd's client port (${toString clientPort})";
    openFirewallOn = ours.openFirewallOnOption "etcd's client port (${toString clientPort})";
    allowFrom = ours.allowFromOption "etcd's client port (${toString clientPort})";

    tls = tlsOption "etcd's clients, for which the roles need `registry.access`";
    peerTls = tlsOption "the connections between the members";
  };

  config = lib.mkIf server.enable {
    assertions = [
      {
        assertion = server.tls != null && rolesHere != [ ] -> cfg.registry.access.caFile != null;
        message = "services.microservice-app.registry.server.tls is set, and the roles of this host need services.microservice-app.registry.access.caFile.";
      }
      {
        assertion =
          server.tls != null && server.tls.clientCertAuth && rolesHere != [ ]
          -> cfg.registry.access.certFile != null;
        message = "services.microservice-app.registry.server.tls.clientCertAuth is set, and the roles of this host need services.microservice-app.registry.access.certFile and keyFile.";
      }
      {
        assertion =
          let
            wide = server.openFirewall || server.openFirewallOn != [ ] || server.allowFrom != [ ];
          in
          wide -> address != loopback && address != "::1";
        message = "services.microservice-app.registry.server: the firewall opens etcd's port, but etcd serves this host alone: set `address`.";
      }
      {
        assertion =
          !lib.elem address [
            "0.0.0.0"
            "::"
          ];
        message = "services.microservice-app.registry.server.address is ${address}, which no other host can call: give one of this host's addresses.";
      }
      {
        assertion = server.members != { } -> server.members ? ${server.name};
        message = "services.microservice-app.registry.server.members does not name this member, `${server.name}`.";
      }
      {
        assertion = server.members != { } -> server.address == server.members.${server.name} or null;
        message = "services.microservice-app.registry.server.address differs from the address of `${server.name}` in `members`.";
      }
    ];

    services.microservice-app = {
      # the own member first; with the others a role still knows the registry if that one is away
      registry.endpoints = mkDefault (map endpoint (lib.unique ([ address ] ++ lib.attrValues others)));
      listeners =
        map
          (listenAddress: {
            option = "services.microservice-app.registry.server (clients)";
            address = listenAddress;
            port = clientPort;
            from = lib.optionals (listenAddress == address) server.allowFrom;
          })
          (
            lib.unique [
              loopback
              address
            ]
          )
        ++ [
          {
            option = "services.microservice-app.registry.server (members)";
            inherit address;
            port = peerPort;
            from = lib.attrValues others;
          }
        ];
    };
    networking.firewall = {
      allowedTCPPorts = lib.optional server.openFirewall clientPort;
      interfaces = lib.genAttrs server.openFirewallOn (_: {
        allowedTCPPorts = [ clientPort ];
      });
    };

    services.etcd = {
      enable = true;
      name = mkDefault server.name;
      listenClientUrls = mkDefault (
        map clientUrl (
          lib.unique [
            loopback
            address
          ]
        )
      );
      advertiseClientUrls = mkDefault [ (clientUrl address) ];
      listenPeerUrls = mkDefault [ (peerUrl address) ];
      initialAdvertisePeerUrls = mkDefault [ (peerUrl address) ];
      initialCluster = mkDefault (lib.mapAttrsToList (name: member: "${name}=${peerUrl member}") members);
      # the program needs no old revisions; those of an hour help to find out what happened
      extraConf = {
        AUTO_COMPACTION_MODE = mkDefault "periodic";
        AUTO_COMPACTION_RETENTION = mkDefault "1h";
      };
    }
    // lib.optionalAttrs (server.tls != null) {
      certFile = credential "client-cert";
      keyFile = credential "client-key";
      trustedCaFile = credential "client-ca";
      inherit (server.tls) clientCertAuth;
    }
    // lib.optionalAttrs (server.peerTls != null) {
      peerCertFile = credential "peer-cert";
      peerKeyFile = credential "peer-key";
      peerTrustedCaFile = credential "peer-ca";
      peerClientCertAuth = server.peerTls.clientCertAuth;
    };

    systemd.services.etcd = {
      startLimitIntervalSec = 0;
      # mkDefault: values that NixOS' module sets itself win
      serviceConfig = lib.mapAttrs (_: mkDefault) (import ./hardening.nix) // {
        ReadWritePaths = [ config.services.etcd.dataDir ];
        LoadCredential = credentialsOf "client" server.tls ++ credentialsOf "peer" server.peerTls;
        # NixOS' module waits for 30 s before a restart, and every lease expires in that time
        RestartSec = lib.mkOverride 75 "1s";
      };
    };
  };
}
