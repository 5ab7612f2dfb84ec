# Checks that a host that cannot work is refused, with a message that says why. The modules are evaluated without NixOS,
# so that this takes no time.
{
  self,
  lib,
  pkgs,
}:
let
  inherit (lib) types;
  option = type: default: lib.mkOption { inherit default type; };
  # An option whose value has these options and whatever else is set. Unlike `anything`, one part may depend on another.
  freely =
    options:
    option (types.submodule {
      freeformType = types.lazyAttrsOf types.anything;
      inherit options;
    }) { };
  evaluatedWith =
    more: services:
    (lib.evalModules {
      modules = more ++ [
        self.nixosModules.default
        {
          # stand for NixOS' own
          options = {
            networking = {
              hostName = option types.str "node-0";
              enableIPv6 = option types.bool true;
              nftables.enable = option types.bool false;
              firewall = {
                enable = option types.bool true;
                backend = option types.str "iptables";
                allowedTCPPorts = option (types.listOf types.port) [ ];
                interfaces = option types.anything { };
                extraCommands = option types.lines "";
                extraInputRules = option types.lines "";
              };
            };
            boot = option types.anything { };
            systemd = option types.anything { };
            services = {
              cadvisor = option types.anything { };
              etcd = option types.anything { };
              grafana = option types.anything { };
              opensearch = option types.anything { };
              patroni = option types.anything { };
              postgresql = option types.anything { enableJIT = false; };
              prometheus = freely { alertmanager = freely { port = option types.port 9093; }; };
            };
            users = option types.anything { };
            assertions = option (types.listOf types.raw) [ ];
            warnings = option (types.listOf types.str) [ ];
          };
          config._module.args.pkgs = lib.mkDefault pkgs;
        }
        { services.microservice-app = services; }
      ];
    }).config;
  evaluated = evaluatedWith [ ];
  wrongWith =
    config: map (a: a.message) (lib.filter (a: !a.assertion) config.assertions) ++ config.warnings;
  says = reason: config: lib.any (lib.hasInfix reason) (wrongWith config);

  # Each is true if a host is as expected.
  refused = reason: services: says reason (evaluated services);
  accepted = services: wrongWith (evaluated services) == [ ];
  # a value that its type refuses
  mistyped =
    services: !(builtins.tryEval (builtins.deepSeq (wrongWith (evaluated services)) true)).success;

  known = {
    registry.endpoints = [ "192.168.50.10:2379" ];
  };
  feed =
    settings:
    known
    // {
      feed = settings // {
        enable = true;
      };
    };
  gateway =
    settings:
    known
    // {
      apigateway = settings // {
        enable = true;
      };
    };
  server = settings: {
    registry.server = settings // {
      enable = true;
    };
  };
  from = sources: feed { allowFrom = sources; };
  firewall = settings: services: evaluatedWith [ { networking.firewall = settings; } ] services;
  overlay.nixpkgs = lib.mkForce (
    pkgs
    // {
      microservice-app = pkgs.curl // {
        meta.mainProgram = "microservice-app";
      };
    }
  );

  monitoring = settings: {
    monitoring = settings // {
      enable = true;
    };
  };
  database = settings: {
    database = settings // {
      enable = true;
    };
  };
  members = {
    db-0 = "192.168.50.20";
    db-1 = "192.168.50.21";
  };

  checks = {
    machines = {
      monitoringWithoutAGateway = refused "monitoring knows no gateway" (monitoring { });
      aWebHookWithoutItsToken = refused "`url` and `tokenFile` go together" (monitoring {
        gateways = [ "192.168.50.14:6060" ];
        alertmanager.webhook.url = "https://alerts.example.org/hook";
      });
      aPasswordFileInTheStore =
        let
          config = evaluated (monitoring {
            gateways = [ "192.168.50.14:6060" ];
            grafana.adminPasswordFile = ./refused.nix;
          });
        in
        !(builtins.tryEval config.services.microservice-app.monitoring.grafana.adminPasswordFile).success;
      aDatabaseForOthersWithoutAPassword = refused "database.passwordFile is not set" (database {
        allowFrom = [ "192.168.50.11" ];
      });
      aDatabaseForThisHostAlone = accepted (database { });
      aMemberThatIsNotNamed = refused "does not name this member, `node-0`" (
        known
        // database {
          passwordFile = "/var/lib/secrets/db-password";
          cluster = { inherit members; };
        }
      );
      aClusterWithoutEtcd = refused "needs to know etcd" (database {
        passwordFile = "/var/lib/secrets/db-password";
        cluster = {
          inherit members;
          name = "db-0";
        };
      });
      aQuorumWithoutWatchdog = refused "softwareWatchdog" (
        known
        // database {
          passwordFile = "/var/lib/secrets/db-password";
          cluster = {
            inherit members;
            name = "db-0";
            settings.bootstrap.dcs.synchronous_mode = "quorum";
          };
        }
      );
      aPatroniThatDoesNotLogInAgain =
        let
          with' =
            version:
            evaluatedWith
              [
                {
                  _module.args.pkgs = lib.mkForce (
                    pkgs
                    // {
                      patroni = pkgs.patroni // {
                        inherit version;
                      };
                      etcd = pkgs.etcd // {
                        version = "3.6.0";
                      };
                    }
                  );
                }
              ]
              (
                known
                // database {
                  passwordFile = "/var/lib/secrets/db-password";
                  cluster = {
                    inherit members;
                    name = "db-0";
                    etcd = {
                      user = "patroni";
                      passwordFile = "/var/lib/secrets/etcd-patroni";
                    };
                  };
                }
              );
          reason = "never logs in again";
        in
        says reason (with' "4.1.0") && !says reason (with' "4.1.1");
      cadvisorOnTheGatewaysPort = refused "both listen on port 8080" (
        gateway { }
        // {
          exporters = {
            enable = true;
            cadvisor = {
              enable = true;
              port = 8080;
            };
          };
        }
      );
    };
    addresses = {
      aSocketElsewhereThanThePort = refused "settings.http.addr is :9000, but" (gateway {
        settings.http.addr = ":9000";
      });
      aServiceElsewhere = refused "feed.settings.grpc.addr is 0.0.0.0:9000, but" (feed {
        settings.grpc.addr = "0.0.0.0:9000";
      });
      anInstanceElsewhere = refused "feed.instances.second.settings.grpc.addr" (feed {
        instances.second = {
          port = 8182;
          settings.grpc.addr = ":9000";
        };
      });
      anAdminPortElsewhere = refused "feed.settings.admin.addr is :9000, but" (
        feed { } // { settings.admin.addr = ":9000"; }
      );
      equalIsAccepted = accepted (feed {
        settings.grpc.addr = "[::]:8082";
      });
      bothFamiliesByDefault =
        (evaluated (feed {
          admin.allowFrom = [ "fd00::15" ];
        })).services.microservice-app.feed.settings.admin.addr == "[::]:6062";
      callersOfAFamilyThatIsNotBound =
        refused "allowFrom names fd00::14, but `address` is 0.0.0.0, which is IPv4 only"
          (feed {
            address = "0.0.0.0";
            allowFrom = [
              "192.168.50.14"
              "fd00::14"
            ];
          });
      monitorsOfAFamilyThatIsNotBound =
        refused "admin.allowFrom names 192.168.50.15, but `admin.address` is fd00::11"
          (feed {
            admin.address = "fd00::11";
            admin.allowFrom = [ "192.168.50.15" ];
          });
      anOpenPortOfLoopback = refused "which no other host can reach" (feed {
        address = "127.0.0.1";
        allowFrom = [ "192.168.50.14" ];
      });
      noAddress = mistyped (feed {
        address = "localhost";
      });
    };

    ports = {
      twoRoles =
        refused
          "services.microservice-app.feed and services.microservice-app.profile both listen on port 8083"
          (feed { port = 8083; } // { profile.enable = true; });
      twoInstances =
        refused "feed.instances.a and services.microservice-app.feed.instances.b both listen on port 8182"
          (feed {
            instances = {
              a.port = 8182;
              b = {
                port = 8182;
                admin.port = 7000;
              };
            };
          });
      anInstanceAndAnAdminPort = refused "both listen on port 6062" (feed {
        instances.a = {
          port = 6062;
          admin.port = 7000;
        };
      });
      twoAdminPorts = refused "both listen on port 6060" (
        feed { admin.port = 6060; } // { apigateway.enable = true; }
      );
      etcd =
        refused "feed and services.microservice-app.registry.server (clients) both listen on port 2379"
          (
            {
              feed = {
                enable = true;
                port = 2379;
              };
            }
            // server { }
          );
      otherAddressesAreAccepted = accepted (feed {
        address = "192.168.50.11";
        instances.a = {
          address = "192.168.50.12";
          port = 8082;
          admin.port = 7000;
        };
      });
      anInstanceThatIsTurnedOff = accepted (feed {
        instances.a = {
          enable = false;
          port = 8082;
        };
      });
      noDefaultForTheAdminPort =
        refused "feed.instances.a.admin.port has to be set: with port 1500"
          (feed {
            instances.a.port = 1500;
          });
      aPrivilegedPort = refused "feed.port is 80: ports below 1024" (feed {
        port = 80;
      });
      aPrivilegedAdminPort = refused "apigateway.admin.port is 1023: ports below 1024" (gateway {
        admin.port = 1023;
      });
      # systemd opens it
      theGatewaysPortMayBePrivileged = accepted (gateway {
        port = 80;
      });
    };

    firewall = {
      offAndNobodyIsNamed = wrongWith (firewall { enable = false; } (feed { })) == [ ];
      offAndSomebodyIsNamed =
        says
          "every host can connect, because\nnetworking.firewall.enable is false: 8082 (services.microservice-app.feed)"
          (firewall { enable = false; } (from [ "192.168.50.14" ]));
      firewalldAndSomebodyIsNamed =
        says "with networking.firewall.backend = \"firewalld\": 8082 (services.microservice-app.feed)"
          (firewall { backend = "firewalld"; } (from [ "192.168.50.14" ]));
      firewalldAndNobodyIsNamed =
        wrongWith (
          firewall { backend = "firewalld"; } (feed {
            openFirewall = true;
          })
        ) == [ ];
      nftablesByItsNewName = lib.hasInfix "ip saddr 192.168.50.14 tcp dport 8082 accept" (
        (firewall { backend = "nftables"; } (from [ "192.168.50.14" ])).networking.firewall.extraInputRules
      );
      names = mistyped (from [ "node-4.example" ]);
      nothing = mistyped (from [ ":" ]);
    };

    registry = {
      aKeyWithoutCertificate = refused "`certFile` and `keyFile` go together" {
        registry.access.keyFile = "/var/lib/secrets/client.key";
      };
      aUserWithoutPassword = refused "`user` and `passwordFile` go together" {
        registry.access.user = "feed";
      };
      certificatesWithoutTls = refused "no endpoint of" {
        registry.endpoints = [ "192.168.50.10:2379" ];
        registry.access.caFile = "/var/lib/secrets/ca.crt";
      };
      halfTls = refused "all with https:// or none" {
        registry.endpoints = [
          "https://192.168.50.10:2379"
          "192.168.50.17:2379"
        ];
      };
      tlsHereWantsTheAuthority = refused "registry.access.caFile" (
        server { tls = { }; } // { feed.enable = true; }
      );
      tlsHereWantsACertificate = refused "registry.access.certFile and keyFile" {
        registry.server = {
          enable = true;
          tls = { };
        };
        registry.access.caFile = "/var/lib/secrets/ca.crt";
        apigateway.enable = true;
      };
      tlsWithoutClientCertificates = accepted {
        registry.server = {
          enable = true;
          tls.clientCertAuth = false;
        };
        registry.access.caFile = "/var/lib/secrets/ca.crt";
        apigateway.enable = true;
      };
      aNameForAnAddress = mistyped (server {
        address = "node-0.example";
      });
      everyInterfaceForAnAddress =
        refused "registry.server.address is ::, which no other host can call"
          (server {
            address = "::";
          });
      anOpenPortOfLoopback = refused "etcd serves this host alone" (server {
        allowFrom = [ "192.168.50.0/24" ];
      });
      aMemberThatIsNotOne = refused "does not name this member, `node-0`" (server {
        members.node-9 = "192.168.50.19";
        address = "192.168.50.19";
      });
      aRoleWithoutRegistry = refused "set services.microservice-app.registry.endpoints" {
        feed.enable = true;
      };
      publicFilesMayBeInTheStore = accepted {
        registry.endpoints = [ "https://192.168.50.10:2379" ];
        registry.access.caFile = ./refused.nix;
      };
      secretsMayNot = mistyped {
        registry.access.passwordFile = "${pkgs.writeText "secret" "secret"}";
        registry.access.user = "x";
      };
    };

    stores = {
      aFileThatTheUnitCannotWrite =
        refused "settings.store.url is /srv/feed.db, which the unit cannot write"
          (feed {
            settings.store.url = "sqlite:/srv/feed.db";
          });
      aFileElsewhere = refused "which the unit cannot write" (feed {
        settings.store.url = "sqlite:/var/lib/microservice-app-feed/../feed.db";
      });
      aRelativeFile = refused "which the unit cannot write" (feed {
        settings.store.url = "sqlite:feed.db";
      });
      aViewThatTheUnitCannotWrite =
        refused "settings.registry.snapshot_file is /srv/view, which"
          (gateway {
            settings.registry.snapshot_file = "/srv/view";
          });
      aPasswordInTheUrl = refused "store.url holds a password" (feed {
        settings.store.url = "postgres://app:secret@db.example/msa";
      });
      aPasswordInAParameter = refused "store.url holds a password" (
        feed { } // { store.url = "postgres://app@db.example/msa?password=secret"; }
      );
      aKeyWithoutCertificate = refused "store.access: `certFile` and `keyFile` go together" {
        store.access.keyFile = "/var/lib/secrets/store.key";
      };
      aCertificateWithoutTls = refused "`certFile` is for TLS, which needs `caFile`" {
        store.access.certFile = "/var/lib/secrets/store.crt";
        store.access.keyFile = "/var/lib/secrets/store.key";
      };
      tlsWantsTheAuthority = refused "store.access.caFile has to be set" (
        feed { } // { store.url = "postgres://app@db.example/msa?connect_timeout=2&sslmode=require"; }
      );
      filesWithoutADatabase = refused "no service of this host keeps its records in PostgreSQL" (
        feed { } // { store.access.passwordFile = "/var/lib/secrets/store-password"; }
      );
      copiesOfNoFile = refused "no service of this host keeps its records in a file" (
        feed { settings.store.url = "memory:"; } // { backup.enable = true; }
      );
      copiesOfAFile = accepted (feed { } // { backup.enable = true; });
      aFileForAllServices = mistyped (feed { } // { store.url = "sqlite:/var/lib/x.db"; });
      aDatabase = accepted (
        feed { }
        // {
          store.url = "postgres://app@db.example/msa";
          store.access.passwordFile = "/var/lib/secrets/x";
        }
      );
    };

    names = {
      ofAnInstance = refused "feed.instances has the name \"a b/c\"" (feed {
        instances."a b/c".port = 8182;
      });
      ofTheFirstInstance = refused "feed.instances has the name \"feed\"" (feed {
        instances.feed.port = 8182;
      });
      ofAUnitForCopies = refused "feed.instances has the name \"backup\"" (feed {
        instances.backup.port = 8182;
      });
      ofAnInstanceThatIsFine = accepted (feed {
        instances.the-2nd.port = 8182;
      });
      ofAnotherPackage = refused "`meta.mainProgram` is not microservice-app" (
        feed { } // { package = pkgs.curl; }
      );
      anOverlayWins =
        (evaluatedWith [ { _module.args.pkgs = overlay.nixpkgs; } ] (feed { }))
        .services.microservice-app.package.name == pkgs.curl.name;
    };
  };

  ip = import ../modules/ip.nix { inherit lib; };
  good = [
    "0.0.0.0"
    "192.168.50.255"
    "::"
    "::1"
    "fd00::"
    "2001:DB8::1:2"
    "1:2:3:4:5:6:7:8"
    "::2:3:4:5:6:7:8"
  ];
  bad = [
    ""
    ":"
    ":::"
    "1"
    "a"
    "1.2.3"
    "1.2.3.256"
    "01.2.3.4"
    "1.2.3.4.5"
    "1:2:3:4:5:6:7"
    "1:2:3:4:5:6:7:8:9"
    "1::2::3"
    "::1:2:3:4:5:6:7:8"
    "12345::"
    "g::"
    "fd00::1%eth0"
    "node-4"
    "192.168.50.14 "
    "[::1]"
    "1.2.3.4/24"
  ];
  networks = [
    "10.0.0.0/8"
    "0.0.0.0/0"
    "fd00::/64"
    "::/0"
    "1.2.3.4/32"
  ];
  badNetworks = [
    "10.0.0.0/33"
    "fd00::/129"
    "10.0.0.0/"
    "/8"
    "10.0.0.0/8/8"
    "node/8"
    "10.0.0.0/-1"
  ];
  parsed = {
    good = lib.filter (text: !ip.address.check text || !ip.source.check text) good;
    bad =
      lib.filter ip.address.check (bad ++ networks ++ badNetworks)
      ++ lib.filter ip.source.check (lib.remove "1.2.3.4/24" bad ++ badNetworks);
    networks = lib.filter (text: !ip.source.check text) networks;
    said = lib.optional (
      !lib.hasInfix "IP address or network, such as" ip.source.description
    ) "description";
  };

  untrue =
    lib.concatLists (
      lib.mapAttrsToList (
        group: truths:
        map (name: "${group}.${name}") (lib.attrNames (lib.filterAttrs (_: truth: !truth) truths))
      ) checks
    )
    ++ lib.concatLists (lib.mapAttrsToList (what: map (text: "${what}: ${text}")) parsed);
in
{
  refused-hosts =
    if untrue == [ ] then
      pkgs.writeText "refused-hosts" "${toString (lib.length (lib.concatMap lib.attrNames (lib.attrValues checks)))} hosts are refused or accepted as they should be\n"
    else
      throw "not true: ${lib.concatStringsSep ", " untrue}";
}
