# The services: feed, profile and topic, by one function. Each keeps its records in SQLite in its state
# directory, which the instances of a host share.
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

  stateOf = role: "microservice-app-${role}";
  storeOption = role: {
    store.url = mkOption {
      type = types.str;
      default = "sqlite:/var/lib/${stateOf role}/${role}.db";
      example = "memory:";
      description = "Where the records are kept: `sqlite:PATH`, or `memory:`, which forgets them at each stop.";
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
              name = "the ${role} service";
              listen = "grpc";
              extraSettings = storeOption role;
            }
          ))
        ];
        options = {
          enable = lib.mkEnableOption "the ${role} service";
          instances = mkOption {
            type = types.attrsOf (
              types.submodule (
                ours.process {
                  name = "this instance";
                  port = null;
                  adminPort = null;
                  listen = "grpc";
                  inherited = addressesAside cfg.${role}.settings;
                }
              )
            );
            default = { };
            example = lib.literalExpression "{ second.port = ${toString (ports.port + 100)}; }";
            description = ''
              Further instances on this host, by name. Each is a unit `${stateOf role}-NAME`, takes the
              settings and credentials of the first instance, except for its addresses, and shares its store.
            '';
          };
        };
      };
    };

  # An instance takes its own for these.
  addressesAside =
    settings:
    lib.mapAttrs (
      section: values:
      if section == "grpc" || section == "admin" then
        removeAttrs values [
          "addr"
          "advertise_addr"
        ]
      else
        values
    ) settings;

  enabled = lib.filterAttrs (role: _: cfg.${role}.enable) services;
  # name of unit -> process
  processes = lib.concatMapAttrs (
    role: _:
    let
      main = cfg.${role};
      instances = lib.mapAttrs' (name: lib.nameValuePair "${stateOf role}-${name}") main.instances;
    in
    lib.mapAttrs (
      _: process:
      process
      // {
        inherit role;
        credentials = main.credentials // process.credentials;
      }
    ) ({ ${stateOf role} = main; } // instances)
  ) enabled;

  unitOf =
    name: process:
    let
      unit = ours.unit {
        inherit name;
        inherit (process) role settings credentials;
        description = "microservice-app: ${process.role} service";
      };
    in
    unit
    // {
      serviceConfig = unit.serviceConfig // {
        StateDirectory = stateOf process.role;
        StateDirectoryMode = "0700";
      };
    };
in
{
  imports = [ ./common.nix ];

  options.services.microservice-app = lib.mapAttrs optionsOf services;

  config = lib.mkMerge [
    (ours.firewallOf (lib.attrValues processes))
    {
      assertions = lib.mapAttrsToList (role: _: ours.registryKnown role) enabled;
      systemd.services = lib.mapAttrs unitOf processes;
    }
  ];
}
