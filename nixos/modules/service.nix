# The services feed, profile and topic, all made by one function. Each keeps its records in an SQLite file in its state
# directory, which the instances of a service on one host share, or in a PostgreSQL that all hosts share.
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

  services = {
    feed = {
      port = 8082;
      adminPort = 6062;
    };
    profile = {
      port = 8083;
      adminPort = 6063;
    };
    topic = {
      port = 8084;
      adminPort = 6064;
    };
  };

  storeOption = role: {
    store.url = mkOption {
      type = types.str;
      default =
        if cfg.store.url == null then "sqlite:/var/lib/${ours.stateOf role}/${role}.db" else cfg.store.url;
      defaultText = lib.literalMD "`services.microservice-app.store.url`; if that is null, `sqlite:/var/lib/${ours.stateOf role}/${role}.db`";
      example = "memory:";
      description = ours.describe "store.url";
    };
  };

  optionsOf =
    role: ports:
    mkOption {
      default = { };
      example = lib.literalExpression "{ enable = true; allowFrom = [ \"192.168.50.14\" ]; }";
      description = "The ${role} service.";
      type = types.submodule {
        imports = [
          (ours.process (
            ports
            // {
              inherit role;
              what = "the ${role} service";
              listen = "grpc";
              extraSettings = storeOption role;
            }
          ))
        ];
        options = {
          enable = lib.mkEnableOption "the ${role} service";
          instances = mkOption {
            type = types.attrsOf (
              types.submodule {
                imports = [
                  (ours.process {
                    inherit role;
                    what = "this instance";
                    port = null;
                    adminPort = null;
                    listen = "grpc";
                    inherited = sharedOf cfg.${role}.settings;
                  })
                ];
                options.enable = mkOption {
                  type = types.bool;
                  default = true;
                  example = false;
                  description = "Whether to run this instance.";
                };
              }
            );
            default = { };
            example = lib.literalExpression "{ second.port = ${toString (ports.port + 100)}; }";
            description = ''
              Further instances on this host, by name. Each is a unit `${ours.stateOf role}-NAME`. It has the
              settings and credentials of the first instance, except for the addresses, and shares its store.
            '';
          };
        };
      };
    };

  # Settings without those that each instance has for itself.
  sharedOf =
    settings:
    let
      withoutAddresses =
        section:
        removeAttrs section [
          "addr"
          "advertise_addr"
        ];
    in
    settings
    // {
      grpc = withoutAddresses settings.grpc;
      admin = withoutAddresses settings.admin;
      registry = removeAttrs settings.registry [ "snapshot_file" ];
    };

  enabled = lib.filterAttrs (role: _: cfg.${role}.enable) services;
  instancesOf = role: lib.filterAttrs (_: instance: instance.enable) cfg.${role}.instances;
  # the processes by the names of their units
  processes = lib.concatMapAttrs (
    role: _:
    let
      option = "services.microservice-app.${role}";
      main = cfg.${role} // {
        inherit option;
      };
      instances = lib.mapAttrs' (
        name: instance:
        lib.nameValuePair "${ours.stateOf role}-${name}" (
          instance // { option = "${option}.instances.${name}"; }
        )
      ) (instancesOf role);
    in
    lib.mapAttrs (
      _: process:
      process
      // {
        inherit role;
        credentials = main.credentials // process.credentials;
      }
    ) ({ ${ours.stateOf role} = main; } // instances)
  ) enabled;

  # a name is part of the names of a unit and of files; two are taken
  nameOfInstance = role: name: {
    assertion =
      builtins.match "[a-z0-9]([a-z0-9-]*[a-z0-9])?" name != null
      && !lib.elem name [
        role
        "backup"
      ];
    message = "services.microservice-app.${role}.instances has the name \"${name}\": use small letters, digits and hyphens, and neither the name of the service nor \"backup\".";
  };

  unitOf =
    name: process:
    ours.unit {
      inherit name;
      inherit (process) role settings credentials;
      description = "microservice-app: ${process.role} service";
    };
in
{
  imports = [
    ./backup.nix
    ./common.nix
    ./store.nix
    ./tls.nix
  ];

  options.services.microservice-app = lib.mapAttrs optionsOf services;

  config = lib.mkMerge [
    (ours.hostOf "grpc" (lib.attrValues processes))
    {
      assertions = lib.concatLists (
        lib.mapAttrsToList (
          role: _: map (nameOfInstance role) (lib.attrNames cfg.${role}.instances)
        ) enabled
      );
      systemd.services = lib.mapAttrs unitOf processes;
    }
  ];
}
