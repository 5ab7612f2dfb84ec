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

  # Types of an IP address and of a network. They are strict because the values become firewall rules: NixOS' firewall
  # script ends at the first rule that iptables refuses, and then every port is open.
  octet = "(25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])";
  v4 = "${octet}(\\.${octet}){3}";
  v6 = "[0-9a-fA-F]*:[0-9a-fA-F:]*";
  ip = types.strMatching "(${v4}|${v6})";
  source = types.strMatching "(${v4}(/(3[0-2]|[12]?[0-9]))?|${v6}(/(12[0-8]|1[01][0-9]|[1-9]?[0-9]))?)";

  # The settings for the access to etcd, and the credentials with the files that they name.
  access =
    let
      given = lib.filterAttrs (_: value: value != null) cfg.registry.access;
      files = {
        caFile = "etcd-ca";
        certFile = "etcd-cert";
        keyFile = "etcd-key";
        passwordFile = "etcd-password";
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
      settings = lib.mapAttrs' (
        name: value: lib.nameValuePair keys.${name} (files.${name} or value)
      ) given;
      credentials = lib.mapAttrs' (name: id: lib.nameValuePair id given.${name}) (
        builtins.intersectAttrs given files
      );
    };

  # The program's own definitions of its settings, by key; `make generate` rewrites the file.
  definitions = lib.importJSON ./settings.json;

  # The priority of derived values: the host's `settings` win over them, they win over the program's defaults.
  derived = lib.mkOverride 1200;
in
rec {
  inherit toml source ip;

  # The description of an option that becomes the setting `key`.
  describe = key: "Setting `${key}`: ${definitions.${key}.meaning}";
  # Every setting, as a list of markdown.
  describeAll = lib.concatMapStrings (key: "- `${key}`: ${definitions.${key}.meaning}\n") (
    lib.attrNames definitions
  );

  hostPort =
    address: port: "${if lib.hasInfix ":" address then "[${address}]" else address}:${toString port}";

  openFirewallOption =
    what:
    mkOption {
      type = types.bool;
      default = false;
      example = true;
      description = "Whether to open ${what} in the firewall, for every host.";
    };
  allowFromOption =
    what:
    mkOption {
      type = types.listOf source;
      default = [ ];
      example = [
        "192.168.50.14"
        "10.1.0.0/16"
      ];
      description = ''
        Addresses and networks for which the firewall opens ${what}. Works with iptables and nftables.
      '';
    };

  # The user of a role's processes, and the name of their directory in /var/lib.
  stateOf = role: "microservice-app-${role}";

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
          type = types.str;
          default = "0.0.0.0";
          example = "192.168.50.11";
          description = "IP address of ${what}; `0.0.0.0` is every interface. ${describe "${listen}.addr"}";
        };

        openFirewall = openFirewallOption "the port of ${what}";
        allowFrom = allowFromOption "the port of ${what}";

        admin = {
          port = mkOption {
            type = types.port;
            default = if adminPort == null then config.port - 2020 else adminPort;
            defaultText = literalMD (if adminPort == null then "`port` - 2020" else "`${toString adminPort}`");
            example = 9100;
            description = "TCP port of the admin listener. ${describe "admin.addr"}";
          };
          address = mkOption {
            type = types.str;
            default = if config.admin.allowFrom == [ ] then "127.0.0.1" else "0.0.0.0";
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
          ${listen}.addr = derived (hostPort config.address config.port);
          admin.addr = derived (hostPort config.admin.address config.admin.port);
          registry.endpoints = derived cfg.registry.endpoints;
          # a process that restarts while etcd is away still knows the other instances
          registry.snapshot_file = derived "/var/lib/${stateOf role}/${name}.view";
        }
        # names without a slash: systemd passes the files to each unit, see `unit`
        { registry = lib.mapAttrs (_: derived) access.settings; }
      ];
    };

  # The configuration of the firewall for a list of processes.
  firewallOf = processes: {
    networking.firewall.allowedTCPPorts = lib.concatMap (
      process: lib.optional process.openFirewall process.port
    ) processes;
    services.microservice-app.firewallRules = lib.concatMap (process: [
      {
        inherit (process) port;
        from = process.allowFrom;
      }
      {
        inherit (process.admin) port;
        from = process.admin.allowFrom;
      }
    ]) processes;
  };

  # The settings file, checked by the program: a wrong key or value fails the build of the system, and the running unit
  # keeps its old file.
  settingsFile =
    {
      name,
      role,
      settings,
    }:
    let
      file = toml.generate "${name}.toml" settings;
    in
    # a program for another platform cannot run here; it checks the file when it starts
    if pkgs.stdenv.buildPlatform.canExecute cfg.package.stdenv.hostPlatform then
      pkgs.runCommand "${name}.toml" { } ''
        ${lib.getExe cfg.package} check-config --role ${role} --config ${file}
        cp ${file} $out
      ''
    else
      file;

  # The unit of a process: `microservice-app ROLE` with its settings file.
  unit =
    {
      name,
      role,
      description,
      settings,
      credentials,
    }:
    {
      inherit description;
      wantedBy = [ "multi-user.target" ];
      # the address to advertise is found by the route to the registry; the unit does not wait for etcd itself
      wants = [ "network-online.target" ];
      after = [ "network-online.target" ];
      # by default, a switch to a new generation stops every changed unit before the activation and starts it after
      # it; that would also stop the gateway's socket
      stopIfChanged = false;
      # no limit of restarts: the unit must come back after an outage of any length
      startLimitIntervalSec = 0;
      serviceConfig = import ./hardening.nix // {
        # ready means: settings valid, listeners bound, registration started
        Type = "notify";
        ExecStart = "${lib.getExe cfg.package} ${role} --config ${
          settingsFile { inherit name role settings; }
        }";
        Restart = "always";
        RestartSec = 0;
        # status 2: the settings are wrong, and a restart does not change them
        RestartPreventExitStatus = 2;
        WatchdogSec = 30;
        # the process itself ends its calls within its grace period
        TimeoutStopSec = (settings.shutdown.grace_ms or 10000) / 1000 + 10;
        LimitNOFILE = 65536;

        DynamicUser = true;
        User = stateOf role;
        StateDirectory = stateOf role;
        StateDirectoryMode = "0700";
        LoadCredential = lib.mapAttrsToList (id: path: "${id}:${path}") (access.credentials // credentials);
      };
    };

  # The assertion that a role knows a registry.
  registryKnown = role: {
    assertion = cfg.registry.endpoints != [ ];
    message = "services.microservice-app.${role} needs to know etcd: set services.microservice-app.registry.endpoints = [ \"host:2379\" ];";
  };
}
