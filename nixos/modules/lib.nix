# Functions from which service.nix and gateway.nix build their modules: the options of a process, its checked settings
# file, its unit.
{
  config,
  lib,
  pkgs,
}:
let
  inherit (lib)
    literalExpression
    literalMD
    mkOption
    types
    ;
  cfg = config.services.microservice-app;
  toml = pkgs.formats.toml { };

  ip = import ./ip.nix { inherit lib; };
  checks = import ./checks.nix { inherit lib cfg ip; };

  # The settings for an access with files, and the credentials that they name. The names have no slash: systemd passes
  # the files to each unit, see `unit`.
  #   prefix  begins the names of the credentials
  #   given   options of the access, by name
  accessOf =
    prefix: given:
    let
      set = lib.filterAttrs (_: value: value != null) given;
      files = {
        caFile = "${prefix}-ca";
        certFile = "${prefix}-cert";
        keyFile = "${prefix}-key";
        passwordFile = "${prefix}-password";
      };
      keys = {
        caFile = "ca_file";
        certFile = "cert_file";
        keyFile = "key_file";
        passwordFile = "password_file";
        serverName = "tls_server_name";
        user = "user";
      };
    in
    {
      settings = lib.mapAttrs' (name: value: lib.nameValuePair keys.${name} (files.${name} or value)) set;
      credentials = lib.mapAttrs' (name: id: lib.nameValuePair id set.${name}) (
        builtins.intersectAttrs set files
      );
    };
  etcd = accessOf "etcd" cfg.registry.access;
  store = accessOf "store" cfg.store.access;
  # Settings with the files for PostgreSQL, and these files, if a process keeps its records there.
  withStore =
    { settings, credentials }:
    if lib.hasPrefix "postgres" (settings.store.url or "") then
      {
        settings = settings // {
          store = store.settings // settings.store;
        };
        credentials = store.credentials // credentials;
      }
    else
      { inherit settings credentials; };

  # The program's own definitions of its settings, by key; `make generate` rewrites the file.
  definitions = lib.importJSON ./settings.json;

  fileOption =
    type: name: key:
    mkOption {
      type = types.nullOr type;
      default = null;
      example = "/var/lib/secrets/${name}";
      description = "Setting `${key}`: ${definitions.${key}.meaning}";
    };

  # The priority of derived values: the host's `settings` win over them, they win over the program's defaults.
  derived = lib.mkOverride 1200;
  # The user of a role's processes, and the name of their directory in /var/lib.
  stateOf = role: "microservice-app-${role}";
  # The group that may read the certificate of a role and its key.
  tlsGroupOf = role: "microservice-app-tls-${role}";
in
rec {
  inherit
    ip
    stateOf
    tlsGroupOf
    toml
    ;

  # The description of an option that becomes the setting `key`.
  describe = key: "Setting `${key}`: ${definitions.${key}.meaning}";
  # Every setting, as a list of markdown.
  describeAll = lib.concatMapStrings (key: "- `${key}`: ${definitions.${key}.meaning}\n") (
    lib.attrNames definitions
  );

  # The option of a file that becomes the setting `key`. A secret must not be in the Nix store, which everyone can read.
  secretFileOption = fileOption types.externalPath;
  publicFileOption = fileOption types.path;

  openFirewallOption =
    what:
    mkOption {
      type = types.bool;
      default = false;
      example = true;
      description = "Whether to open ${what} in the firewall, for every host.";
    };
  openFirewallOnOption =
    what:
    mkOption {
      type = types.listOf types.str;
      default = [ ];
      example = [ "enp2s0" ];
      description = "Network interfaces on which the firewall opens ${what}, for every host there.";
    };
  allowFromOption =
    what:
    mkOption {
      type = types.listOf ip.source;
      default = [ ];
      example = [
        "192.168.50.14"
        "10.1.0.0/16"
      ];
      description = ''
        Addresses and networks for which the firewall opens ${what}. Works with iptables and nftables.
      '';
    };

  serviceNames = [
    "feed"
    "profile"
    "topic"
  ];
  rolesHere = lib.filter (role: cfg.${role}.enable or false) (serviceNames ++ [ "apigateway" ]);

  # A submodule with the options of one process.
  #   role             the command of the program
  #   what             its name in descriptions
  #   port, adminPort  default ports; null: there is none
  #   listen           section of the settings that has the address to listen on
  #   inherited        settings of lower priority than its own
  #   extraSettings    further options of its settings
  process =
    {
      role,
      what,
      port,
      adminPort,
      listen,
      inherited ? cfg.settings,
      extraSettings ? { },
    }:
    { config, name, ... }:
    {
      options = {
        port =
          mkOption {
            type = types.port;
            example = if port == null then 8182 else port + 100;
            description = "TCP port of ${what}. ${describe "${listen}.addr"}";
          }
          // lib.optionalAttrs (port != null) { default = port; };

        address = mkOption {
          type = ip.address;
          default = "::";
          example = "192.168.50.11";
          description = ''
            IP address of ${what}. `::` is every interface, with IPv6 and IPv4; `0.0.0.0` is the same with IPv4
            only. ${describe "${listen}.addr"}
          '';
        };

        openFirewall = openFirewallOption "the port of ${what}";
        openFirewallOn = openFirewallOnOption "the port of ${what}";
        allowFrom = allowFromOption "the port of ${what}";

        admin = {
          port = mkOption {
            type = types.port;
            # 0: there is no default, see checks.nix
            default =
              if adminPort != null then
                adminPort
              else if config.port >= 1024 + 2020 then
                config.port - 2020
              else
                0;
            defaultText = literalMD (if adminPort == null then "`port` - 2020" else "`${toString adminPort}`");
            example = 9100;
            description = "TCP port of the admin listener. ${describe "admin.addr"}";
          };
          address = mkOption {
            type = ip.address;
            default = if config.admin.allowFrom == [ ] then "127.0.0.1" else "::";
            defaultText = literalMD "loopback; every interface if `admin.allowFrom` is not empty";
            example = "192.168.50.11";
            description = "IP address of the admin listener. ${describe "admin.addr"}";
          };
          allowFrom = allowFromOption "the admin port of ${what}";
        };

        settings = mkOption {
          type = types.submodule {
            freeformType = toml.type;
            options = {
              log.level = mkOption {
                type = types.str;
                inherit (definitions."log.level") default;
                example = "info,microservice_app::client=debug";
                description = describe "log.level";
              };
              log.format = mkOption {
                type = types.enum definitions."log.format".names;
                inherit (definitions."log.format") default;
                example = "json";
                description = "${describe "log.format"} On a NixOS host that is the journal.";
              };
            }
            // extraSettings;
          };
          default = { };
          example = literalExpression ''
            {
              client.deadline_ms = 500;
              shutdown.grace_ms = 5000;
            }
          '';
          description = ''
            Settings of ${what}, by section and key. `services.microservice-app.settings` lists all keys;
            docs/configuration.md has their defaults and ranges too. The settings become a TOML file, which the
            build checks. No secrets here: see `credentials`.
          '';
        };

        credentials = mkOption {
          type = types.attrsOf types.externalPath;
          default = { };
          example = literalExpression ''{ etcd-password = "/var/lib/secrets/etcd-password"; }'';
          description = ''
            Secret files, which systemd reads as root when the unit starts. If a setting `..._file` is a name
            without a slash, such as `etcd-password`, it means the file of that name here.
          '';
        };
      };

      config.settings = lib.mkMerge [
        (lib.mapAttrsRecursive (_: lib.mkDefault) inherited)
        {
          ${listen}.addr = derived (ip.hostPort config.address config.port);
          admin.addr = derived (ip.hostPort config.admin.address config.admin.port);
          registry.endpoints = derived cfg.registry.endpoints;
          # a process that restarts while etcd is away still knows the other instances
          registry.snapshot_file = derived "/var/lib/${stateOf role}/${name}.view";
        }
        { registry = lib.mapAttrs (_: derived) etcd.settings; }
        (lib.mkIf (cfg.adminTokenFile != null) { admin.token_file = derived "admin-token"; })
        (lib.mkIf (cfg.tls.mode != "off") {
          grpc.tls = derived cfg.tls.mode;
          tls = {
            cert_file = derived "${cfg.tls.directory}/${role}/${role}.crt";
            key_file = derived "${cfg.tls.directory}/${role}/${role}.key";
            ca_file = derived "${cfg.tls.directory}/ca.crt";
          }
          // lib.optionalAttrs (cfg.tls.trustDomain != null) {
            trust_domain = derived cfg.tls.trustDomain;
          };
        })
      ];
    };

  # What the processes of a role want of the host: open ports, and what must be true.
  #   listen     section of the settings that has the address to listen on
  #   processes  each with `option`, the path of its options, and `role`
  hostOf = listen: processes: {
    networking.firewall = {
      allowedTCPPorts = lib.concatMap (process: lib.optional process.openFirewall process.port) processes;
      interfaces = lib.mkMerge (
        lib.concatMap (
          process:
          map (interface: { ${interface}.allowedTCPPorts = [ process.port ]; }) process.openFirewallOn
        ) processes
      );
    };
    services.microservice-app.listeners = lib.concatMap (process: [
      {
        inherit (process) option address port;
        from = process.allowFrom;
      }
      {
        inherit (process.admin) address port;
        option = "${process.option}.admin";
        from = process.admin.allowFrom;
      }
    ]) processes;
    assertions = checks.of listen processes;
  };

  # The assertion that a part of this host knows a registry.
  registryKnown = what: checks.registryKnown "services.microservice-app.${what}";

  # The unit of a process, and its settings file.
  inherit
    (import ./unit.nix {
      inherit
        cfg
        lib
        pkgs
        stateOf
        tlsGroupOf
        toml
        withStore
        ;
      etcdCredentials = etcd.credentials;
    })
    unit
    ;
}
