# The tracing: Zipkin, its store (OpenSearch on this host), and the nightly job that draws who calls whom. OpenSearch is
# NixOS' module with a sandbox.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkDefault mkOption types;
  cfg = config.services.microservice-app.tracing;
  ours = import ./lib.nix { inherit config lib pkgs; };
  hardening = import ./hardening.nix;
  weak = import ./weak.nix { inherit lib; };
  place = import ./place.nix { inherit lib ours; };

  stored = cfg.storage == "opensearch";
  opensearch = config.services.opensearch;
  hosts = "http://${opensearch.settings."network.host"}:${toString opensearch.settings."http.port"}";

  # The virtual machine of Java writes code while it runs, and reads how much memory the host has.
  javaHardening = removeAttrs hardening [
    "MemoryDenyWriteExecute"
    "ProcSubset"
  ];
  heap =
    default: what:
    mkOption {
      type = types.strMatching "[0-9]+[mg]";
      inherit default;
      example = "1g";
      description = "Memory for the heap of ${what}.";
    };
  packageOption =
    name: file:
    mkOption {
      type = types.package;
      default = pkgs.callPackage file { };
      defaultText = lib.literalMD "this repository's ${name}";
      example = lib.literalExpression "pkgs.${name}";
      description = "The ${name} package.";
    };
in
{
  imports = [ ./common.nix ];

  options.services.microservice-app.tracing = {
    enable = lib.mkEnableOption "Zipkin, the collector of traces";
    package = packageOption "zipkin-server" ../packages/zipkin-server.nix;
    port = mkOption {
      type = types.port;
      default = 9411;
      example = 9412;
      description = ''
        TCP port of Zipkin, for spans, for its pages and for its metrics. Unless the firewall opens it, it listens on
        loopback only.
      '';
    };
    inherit (place.optionsOf "Zipkin's port") openFirewall openFirewallOn allowFrom;
    heap = heap "256m" "Zipkin";

    storage = mkOption {
      type = types.enum [
        "opensearch"
        "memory"
      ];
      default = if pkgs.stdenv.hostPlatform.isx86_64 then "opensearch" else "memory";
      defaultText = lib.literalMD "`opensearch`; `memory` where nixpkgs has no OpenSearch, which is everywhere but on x86_64";
      example = "memory";
      description = "Where the spans are: in OpenSearch on this host, or in Zipkin's memory until it restarts.";
    };
    opensearch.package = packageOption "opensearch" ../packages/opensearch.nix;
    opensearch.heap = heap "512m" "OpenSearch";
    retentionDays = mkOption {
      type = types.ints.positive;
      default = 14;
      example = 30;
      description = "How many days OpenSearch keeps spans; the nightly job deletes older ones.";
    };
    dependencies = {
      package = packageOption "zipkin-dependencies" ../packages/zipkin-dependencies;
      startAt = mkOption {
        type = types.str;
        default = "00:30 UTC";
        example = "*:15";
        description = ''
          When the job links the spans of yesterday and today (systemd.time(7)). It draws the page "Dependencies".
          `systemctl start microservice-app-dependencies` runs it now.
        '';
      };
      heap = heap "512m" "the job";
    };
  };

  config = lib.mkIf cfg.enable (
    lib.mkMerge [
      (place.firewallOf "services.microservice-app.tracing" cfg)
      {
        systemd.services.zipkin = {
          description = "Zipkin: collector of traces";
          wantedBy = [ "multi-user.target" ];
          wants = [ "network-online.target" ];
          after = [ "network-online.target" ] ++ lib.optional stored "opensearch.service";
          startLimitIntervalSec = 0;
          environment = {
            JAVA_OPTS = "-Xms${cfg.heap} -Xmx${cfg.heap} -XX:+ExitOnOutOfMemoryError";
            QUERY_PORT = toString cfg.port;
            SELF_TRACING_ENABLED = "false";
          }
          // (
            if stored then
              {
                STORAGE_TYPE = "elasticsearch";
                ES_HOSTS = hosts;
                # one node: no copies, and nothing to spread
                ES_INDEX_REPLICAS = "0";
                ES_INDEX_SHARDS = "1";
              }
            else
              {
                STORAGE_TYPE = "mem";
                # what fits in the heap
                MEM_MAX_SPANS = "40000";
              }
          );
          serviceConfig = lib.mapAttrs (_: mkDefault) (
            javaHardening
            // {
              ExecStart =
                lib.getExe cfg.package
                + lib.optionalString (!place.opened cfg) (
                  " --armeria.ports[0].ip=127.0.0.1 --armeria.ports[0].port=${toString cfg.port}"
                  + " --armeria.ports[0].protocols[0]=http"
                );
              Restart = "always";
              RestartSec = "1s";
              # 143: the virtual machine's status after SIGTERM
              SuccessExitStatus = 143;
              LimitNOFILE = 65536;
              DynamicUser = true;
            }
          );
        };
      }

      (lib.mkIf stored {
        services.microservice-app.listeners =
          map
            (port: {
              option = "services.opensearch";
              address = "127.0.0.1";
              inherit port;
            })
            [
              opensearch.settings."http.port"
              opensearch.settings."transport.port"
            ];
        services.opensearch = {
          enable = true;
          package = mkDefault cfg.opensearch.package;
          extraJavaOptions = [
            "-Xms${cfg.opensearch.heap}"
            "-Xmx${cfg.opensearch.heap}"
          ];
          # the job reads Elasticsearch's version, and takes 7.10 but no 2.19
          settings."compatibility.override_main_response_version" = true;
        };
        systemd.services.opensearch = {
          startLimitIntervalSec = 0;
          serviceConfig =
            weak [
              "MemoryDenyWriteExecute"
              "ProcSubset"
            ]
            // {
              RestartSec = "1s";
              SuccessExitStatus = 143;
            };
        };

        # Hadoop, which the job is made of, wants a user with a name
        users.users.zipkin-dependencies = {
          isSystemUser = true;
          group = "zipkin-dependencies";
        };
        users.groups.zipkin-dependencies = { };

        systemd.services.microservice-app-dependencies = {
          description = "microservice-app: links the spans of yesterday and today, and deletes old ones";
          wants = [ "opensearch.service" ];
          after = [ "opensearch.service" ];
          inherit (cfg.dependencies) startAt;
          path = [ pkgs.curl ];
          environment = {
            ES_HOSTS = hosts;
            JAVA_OPTS = "-Xmx${cfg.dependencies.heap}";
            SPARK_LOCAL_HOSTNAME = "localhost";
            SPARK_LOCAL_IP = "127.0.0.1";
          };
          script = ''
            oldest=$(date -u -d '${toString cfg.retentionDays} days ago' +%F)
            # names such as zipkin-span-2026-11-26
            curl -sS --fail --max-time 60 '${hosts}/_cat/indices/zipkin-*?h=index' | while read -r index; do
              day=''${index: -10}
              if [[ $day =~ ^[0-9]{4}-[0-9]{2}-[0-9]{2}$ && $day < $oldest ]]; then
                curl -sS --fail --max-time 60 -o /dev/null -X DELETE "${hosts}/$index"
              fi
            done
            for day in yesterday today; do
              ${lib.getExe cfg.dependencies.package} "$(date -u -d $day +%F)"
            done
          '';
          serviceConfig = lib.mapAttrs (_: mkDefault) (
            javaHardening
            // {
              Type = "oneshot";
              User = "zipkin-dependencies";
              Group = "zipkin-dependencies";
              TimeoutStartSec = "2h";
              # it must not take the host from Zipkin
              Nice = 10;
            }
          );
        };
        # a host that was off at that time runs it when it is on again
        systemd.timers.microservice-app-dependencies.timerConfig.Persistent = true;
      })
    ]
  );
}
