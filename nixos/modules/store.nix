# A PostgreSQL that the services of several hosts share.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkOption types;
  cfg = config.services.microservice-app;
  inherit (cfg.store) access url;
  ours = import ./lib.nix { inherit config lib pkgs; };
  inherit (ours) publicFileOption secretFileOption;

  here = "services.microservice-app.store";
  # the services that keep their records there
  users = lib.filter (
    role: cfg.${role}.enable && lib.hasPrefix "postgres" cfg.${role}.settings.store.url
  ) ours.serviceNames;
  urls = map (role: cfg.${role}.settings.store.url) users;
  wantsTls = url: builtins.match ".*[?&]sslmode=(require|verify-full).*" url != null;
  postgres = lib.mkOptionType {
    name = "postgres";
    description = "URL of PostgreSQL, such as postgres://app@192.168.50.10/msa";
    descriptionClass = "noun";
    check = value: lib.isString value && builtins.match "postgres(ql)?://.+" value != null;
    merge = lib.mergeEqualOption;
  };
in
{
  options.services.microservice-app.store = {
    url = mkOption {
      type = types.nullOr postgres;
      default = null;
      example = "postgres://app@192.168.50.10/msa";
      description = ''
        The database of every service of this host; null: each has an SQLite file of its own. To give one service
        another store or a user of its own, set its `settings.store.url` and its `credentials.store-password`.
        ${ours.describe "store.url"}
      '';
    };
    access = {
      passwordFile = secretFileOption "store-password" "store.password_file";
      caFile = publicFileOption "store-ca.crt" "store.ca_file";
      certFile = publicFileOption "store.crt" "store.cert_file";
      keyFile = secretFileOption "store.key" "store.key_file";
    };
  };

  config.assertions = [
    {
      assertion = (access.certFile == null) == (access.keyFile == null);
      message = "${here}.access: `certFile` and `keyFile` go together, set both or none.";
    }
    {
      assertion = access.certFile != null -> access.caFile != null;
      message = "${here}.access: `certFile` is for TLS, which needs `caFile`.";
    }
    {
      assertion = lib.any wantsTls urls -> access.caFile != null;
      message = "${here}.access.caFile has to be set: a URL asks for TLS with `sslmode`.";
    }
    {
      assertion = lib.any (file: file != null) (lib.attrValues access) -> url != null || users != [ ];
      message = "${here}.access has files, but no service of this host keeps its records in PostgreSQL: set ${here}.url.";
    }
  ];
}
