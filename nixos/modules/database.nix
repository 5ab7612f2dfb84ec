# The shared database: PostgreSQL on this host alone, or a member of a cluster that Patroni keeps, in which no acknowledged
# write is lost with a host. Uses NixOS' modules, and adds a sandbox.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkDefault mkOption types;
  app = config.services.microservice-app;
  cfg = app.database;
  inherit (cfg) cluster;
  ours = import ./lib.nix { inherit config lib pkgs; };
  weak = import ./weak.nix { inherit lib; };
  place = import ./place.nix { inherit lib ours; };

  inherit (config.services) patroni;
  watchdog = patroni.settings.watchdog or { };
  clustered = cluster.members != { };
  unit = if clustered then "patroni" else "postgresql";
  credential = of: name: "/run/credentials/${of}.service/${name}";
  opened = place.opened cfg;
  others = removeAttrs cluster.members [ cluster.name ];

  # who may connect, in the words of pg_hba.conf
  isV6 = lib.hasInfix ":";
  network =
    source:
    if lib.hasInfix "/" source then source else "${source}/${if isV6 source then "128" else "32"}";
  sources =
    # on one interface or on all: pg_hba.conf knows no interfaces
    if cfg.openFirewall || cfg.openFirewallOn != [ ] then
      [
        "0.0.0.0/0"
        "::/0"
      ]
    else
      map network cfg.allowFrom;
  connection = if cfg.tls == null then "host" else "hostssl";
  clientLines = map (source: "${connection} ${cfg.name} ${cfg.user} ${source} scram-sha-256") sources;

  tlsSettings = lib.optionalAttrs (cfg.tls != null) {
    ssl = true;
    ssl_cert_file = credential unit "db-cert";
    ssl_key_file = credential unit "db-key";
  };
  tlsCredentials = lib.optionals (cfg.tls != null) [
    "db-cert:${cfg.tls.certFile}"
    "db-key:${cfg.tls.keyFile}"
  ];

  # With these a standby follows a new primary within a second, and leaves one that is silent. PostgreSQL's defaults are 5 s
  # and 60 s: so long hang the commits that wait for the standby.
  following = {
    wal_retrieve_retry_interval = mkDefault "200ms";
    wal_receiver_timeout = mkDefault "5s";
  };
  hugePages = lib.optionalAttrs (cfg.hugePages != null) { huge_pages = mkDefault "try"; };

  # psql reads the password itself: it would be seen in an argument
  readPassword = ''\set password `cat "$CREDENTIALS_DIRECTORY/db-password"`'';
  psql = "${cfg.package}/bin/psql --no-psqlrc --quiet -v ON_ERROR_STOP=1";

  secret =
    example: description:
    mkOption {
      type = types.nullOr types.externalPath;
      default = null;
      inherit example description;
    };
  fileOption =
    name: description:
    mkOption {
      type = types.externalPath;
      default = "/var/lib/secrets/${name}";
      example = "/run/secrets/${name}";
      inherit description;
    };

  # Patroni's etcd is the registry's
  inherit (app.registry) access;
  endpoints = app.registry.endpoints;
  etcdTls = lib.any (lib.hasPrefix "https://") endpoints;
  etcdFiles = lib.filterAttrs (_: file: file != null) {
    cacert = access.caFile;
    cert = access.certFile;
    key = access.keyFile;
  };
  etcdUser = if cluster.etcd.user == null then access.user else cluster.etcd.user;
  etcdPasswordFile =
    if cluster.etcd.user == null then access.passwordFile else cluster.etcd.passwordFile;
in
{
  imports = [ ./common.nix ];

  options.services.microservice-app.database = {
    enable = lib.mkEnableOption "PostgreSQL, the database that the instances of a service share";

    package = mkOption {
      type = types.package;
      default = pkgs.postgresql_17;
      defaultText = lib.literalExpression "pkgs.postgresql_17";
      example = lib.literalExpression "pkgs.postgresql_18";
      description = ''
        The PostgreSQL package, 15 or newer. Another major version does not take the data of the one before: see
        "Upgrading" in NixOS' manual on PostgreSQL.
      '';
    };
    name = mkOption {
      type = types.strMatching "[a-z][a-z0-9_]*";
      default = "msa";
      example = "records";
      description = "Name of the database. Each service makes a schema of its own in it.";
    };
    user = mkOption {
      type = types.strMatching "[a-z][a-z0-9_]*";
      default = "app";
      example = "services";
      description = "The database's owner, as whom the services log in.";
    };
    passwordFile = secret "/var/lib/secrets/db-password" ''
      File with the password of `user`. Needed for connections from other hosts. A changed password takes effect at
      the next start of `postgresql-setup.service`; in a cluster change it by hand (`ALTER ROLE`).
    '';
    port = mkOption {
      type = types.port;
      default = 5432;
      example = 5433;
      description = "TCP port of PostgreSQL.";
    };
    hugePages = mkOption {
      type = types.nullOr types.ints.positive;
      default = null;
      example = 4400;
      description = ''
        Memory in MiB that the kernel reserves in huge pages of 2 MiB, which PostgreSQL takes for `shared_buffers`: a
        tenth more than that (`postgres -C shared_memory_size_in_huge_pages` tells the number of pages). Nobody else can
        use it. With too few of them PostgreSQL starts without, and `SHOW huge_pages_status` tells so. null: none are
        reserved.
      '';
    };
    inherit (place.optionsOf "PostgreSQL's port, and to log in with the password,")
      openFirewall
      openFirewallOn
      allowFrom
      ;

    tls = mkOption {
      default = null;
      example = lib.literalExpression ''
        {
          certFile = "/var/lib/secrets/db.crt";
          keyFile = "/var/lib/secrets/db.key";
        }
      '';
      description = ''
        TLS for the services, without which nobody may log in then; null: no TLS. Only root has to be able to read
        the files. The services need `store.ca_file`.
      '';
      type = types.nullOr (
        types.submodule {
          options = {
            certFile = fileOption "db.crt" "The server's certificate (PEM), valid for the name in the services' URL.";
            keyFile = fileOption "db.key" "The certificate's key (PEM).";
          };
        }
      );
    };

    cluster = {
      members = mkOption {
        type = types.attrsOf ours.ip.address;
        default = { };
        example = {
          db-0 = "192.168.50.20";
          db-1 = "192.168.50.21";
          db-2 = "192.168.50.22";
        };
        description = ''
          All members of a Patroni cluster with their IP addresses, including this host; the same value on each of
          them. Three, for with two of them writes stop when one is lost. Empty: PostgreSQL on this host alone. The
          firewall opens PostgreSQL's and Patroni's ports for the other members. The members find each other
          by `registry.endpoints`, with `registry.access`.
        '';
      };
      name = mkOption {
        type = types.str;
        default = config.networking.hostName;
        defaultText = lib.literalExpression "config.networking.hostName";
        example = "db-0";
        description = "Name of this member.";
      };
      scope = mkOption {
        type = types.str;
        default = "microservice-app";
        example = "records";
        description = "Name of the cluster, below `/service/` in etcd.";
      };
      restPort = mkOption {
        type = types.port;
        default = 8008;
        example = 8009;
        description = "TCP port at which the members ask each other.";
      };
      superuserPasswordFile = fileOption "db-superuser" "File with the password of PostgreSQL's superuser; the same on each member.";
      replicationPasswordFile = fileOption "db-replication" "File with the password with which the standbys follow; the same on each member.";
      etcd = {
        user = mkOption {
          type = types.nullOr types.str;
          default = null;
          example = "patroni";
          description = "User of etcd, who needs to read and write below `/service/`. null: that of `registry.access`.";
        };
        passwordFile = secret "/var/lib/secrets/etcd-password-of-patroni" "File with the password of `etcd.user`.";
      };
      settings = mkOption {
        inherit (pkgs.formats.yaml { }) type;
        default = { };
        example = {
          bootstrap.dcs.synchronous_mode = "quorum";
        };
        description = ''
          Further settings of Patroni; with the example, a commit waits for whichever standby is the quickest, and
          `services.patroni.softwareWatchdog` has to be set. Those in `bootstrap.dcs` count when the cluster is made; change them later by `patronictl edit-config`.
        '';
      };
    };
  };

  config = lib.mkIf cfg.enable (
    lib.mkMerge [
      {
        assertions = [
          {
            assertion = (opened || clustered) -> cfg.passwordFile != null;
            message = "services.microservice-app.database.passwordFile is not set, and the services of other hosts log in with a password.";
          }
        ];
      }
      (place.firewallOf "services.microservice-app.database" (
        cfg // { allowFrom = lib.unique (cfg.allowFrom ++ lib.attrValues others); }
      ))

      (lib.mkIf (cfg.hugePages != null) {
        boot.kernel.sysctl."vm.nr_hugepages" = mkDefault ((cfg.hugePages + 1) / 2);
      })

      (lib.mkIf (!clustered) {
        services.postgresql = {
          enable = true;
          # wins over the default of NixOS' module
          package = lib.mkOverride 900 cfg.package;
          enableTCPIP = mkDefault opened;
          settings = {
            inherit (cfg) port;
          }
          // following
          // hugePages
          // tlsSettings;
          ensureDatabases = [ cfg.name ];
          ensureUsers = [ { name = cfg.user; } ];
          authentication = lib.concatLines clientLines;
        };
        systemd.services.postgresql = {
          startLimitIntervalSec = 0;
          serviceConfig =
            # PostgreSQL's compiler of statements writes code
            weak (lib.optional config.services.postgresql.enableJIT "MemoryDenyWriteExecute") // {
              Restart = "always";
              LoadCredential = tlsCredentials;
            };
        };
        # after it, postgresql.target means that the services can log in
        systemd.services.postgresql-setup = {
          script = lib.mkAfter ''
            ${psql} -d postgres <<'SQL'
            ALTER DATABASE "${cfg.name}" OWNER TO "${cfg.user}";
            ${lib.optionalString (cfg.passwordFile != null) ''
              ${readPassword}
              ALTER ROLE "${cfg.user}" PASSWORD :'password';
            ''}
            SQL
          '';
          serviceConfig = weak [ ] // {
            LoadCredential = lib.optional (cfg.passwordFile != null) "db-password:${cfg.passwordFile}";
          };
        };
      })

      (lib.mkIf clustered {
        assertions = [
          {
            assertion = cluster.members ? ${cluster.name};
            message = "services.microservice-app.database.cluster.members does not name this member, `${cluster.name}`.";
          }
          (ours.registryKnown "database.cluster")
          {
            assertion = (cluster.etcd.user == null) == (cluster.etcd.passwordFile == null);
            message = "services.microservice-app.database.cluster.etcd: `user` and `passwordFile` go together, set both or none.";
          }
          {
            # etcd 3.6 words the errors of its streams in another way
            assertion =
              etcdUser == null
              || lib.versionAtLeast pkgs.patroni.version "4.1.1"
              || lib.versionOlder (config.services.etcd.package or pkgs.etcd).version "3.6";
            message = "services.microservice-app.database.cluster: Patroni ${pkgs.patroni.version} does not notice that etcd 3.6 refuses its token, and never logs in again: users of etcd need Patroni 4.1.1 or newer.";
          }
          {
            # a standby may confirm commits of the old primary after it has voted for the new one
            assertion =
              (patroni.settings.bootstrap.dcs.synchronous_mode or null) != "quorum"
              || watchdog.mode or null == "required";
            message = "services.microservice-app.database.cluster.settings: with `synchronous_mode` \"quorum\" a Patroni that dies alone may lose writes, unless a watchdog resets its host; set services.patroni.softwareWatchdog.";
          }
        ];
        services.microservice-app.listeners = [
          {
            option = "services.microservice-app.database.cluster.restPort";
            address = cluster.members.${cluster.name} or "::";
            port = cluster.restPort;
            from = lib.attrValues others;
          }
        ];

        services.patroni = {
          enable = true;
          inherit (cluster) name scope;
          postgresqlPackage = mkDefault cfg.package;
          postgresqlPort = cfg.port;
          restApiPort = cluster.restPort;
          nodeIp = cluster.members.${cluster.name} or "0.0.0.0";
          otherNodesIps = lib.attrValues others;
          environmentFiles = {
            PATRONI_SUPERUSER_PASSWORD = credential unit "db-superuser";
            PATRONI_REPLICATION_PASSWORD = credential unit "db-replication";
            PATRONI_REWIND_PASSWORD = credential unit "db-superuser";
          }
          // lib.optionalAttrs (etcdUser != null) {
            PATRONI_ETCD3_PASSWORD = credential unit "etcd-password";
          };
          settings = lib.mkMerge [
            cluster.settings
            {
              bootstrap = {
                # docs/storage.md tells what each of them is for
                dcs =
                  lib.mapAttrs (_: mkDefault) {
                    ttl = 30;
                    loop_wait = 10;
                    retry_timeout = 10;
                    failsafe_mode = true;
                    synchronous_mode = true;
                    synchronous_mode_strict = true;
                    primary_start_timeout = 0;
                  }
                  // {
                    postgresql = {
                      use_pg_rewind = mkDefault true;
                      parameters.synchronous_commit = mkDefault "on";
                    };
                  };
                initdb = [
                  { encoding = "UTF8"; }
                  { locale = "C"; }
                  "data-checksums"
                ];
                # runs once, on the first primary; there is no standby yet that a commit could wait for
                post_init = toString (
                  pkgs.writeShellScript "make-database" ''
                    exec ${psql} -d "$1" <<'SQL'
                    SET synchronous_commit = local;
                    ${readPassword}
                    CREATE ROLE "${cfg.user}" LOGIN PASSWORD :'password';
                    CREATE DATABASE "${cfg.name}" OWNER "${cfg.user}";
                    SQL
                  ''
                );
              };
              etcd3 = {
                hosts = map (lib.removePrefix "https://") endpoints;
              }
              // lib.optionalAttrs etcdTls { protocol = "https"; }
              // lib.mapAttrs (name: _: credential unit "etcd-${name}") etcdFiles
              // lib.optionalAttrs (etcdUser != null) { username = etcdUser; };
              # a switchover or a restart is asked for by a member only
              restapi.allowlist = [ "127.0.0.1" ] ++ lib.attrValues cluster.members;
              postgresql = {
                authentication = {
                  superuser.username = "postgres";
                  rewind.username = "postgres";
                  replication.username = "replicator";
                };
                parameters = {
                  unix_socket_directories = "/run/patroni";
                  password_encryption = "scram-sha-256";
                }
                // following
                // hugePages
                // tlsSettings;
                use_unix_socket = true;
                # a new standby is copied at once, and not after a checkpoint of minutes
                basebackup = [ { checkpoint = "fast"; } ];
                remove_data_directory_on_diverged_timelines = true;
                pg_hba = [
                  "local all all scram-sha-256"
                ]
                ++ lib.concatMap (member: [
                  "host replication replicator ${network member} scram-sha-256"
                  "host all postgres ${network member} scram-sha-256"
                ]) (lib.attrValues cluster.members)
                ++ clientLines;
              };
            }
          ];
        };
        systemd.services.patroni = {
          wants = [ "network-online.target" ];
          after = [ "network-online.target" ];
          startLimitIntervalSec = 0;
          # Patroni takes the password of etcd only beside another variable of etcd, and else makes a database user of it
          environment = lib.optionalAttrs (etcdUser != null) {
            PATRONI_ETCD3_PROTOCOL = if etcdTls then "https" else "http";
          };
          # ProcSubset: Patroni knows its PostgreSQL by the time of its start, for which it reads /proc/stat
          # ProtectProc: the PostgreSQL that goes on is in the user namespace of the Patroni before, and would be hidden
          # RemoveIPC: the shared memory of the PostgreSQL that goes on when Patroni ends alone
          serviceConfig =
            weak [
              "MemoryDenyWriteExecute"
              "ProcSubset"
              "ProtectProc"
              "RemoveIPC"
            ]
            // lib.optionalAttrs (watchdog.mode or "off" != "off") {
              PrivateDevices = false;
              DevicePolicy = "closed";
              DeviceAllow = [ "${watchdog.device or "/dev/watchdog"} rw" ];
            }
            // {
              Restart = lib.mkForce "always";
              RestartSec = "1s";
              RuntimeDirectory = "patroni";
              # NixOS' module kills Patroni alone: PostgreSQL goes on, which Patroni finds again when it returns
              RuntimeDirectoryPreserve = "restart";
              LoadCredential = [
                "db-password:${cfg.passwordFile}"
                "db-superuser:${cluster.superuserPasswordFile}"
                "db-replication:${cluster.replicationPasswordFile}"
              ]
              ++ tlsCredentials
              ++ lib.mapAttrsToList (name: file: "etcd-${name}:${file}") etcdFiles
              ++ lib.optional (etcdUser != null) "etcd-password:${etcdPasswordFile}";
            };
        };
      })
    ]
  );
}
