# The monitoring: Prometheus, Alertmanager and Grafana, with the configuration, the rules and the dashboards of
# deploy/monitoring, which outside Nix are the same. Uses NixOS' modules, and adds a sandbox.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkDefault mkOption types;
  cfg = config.services.microservice-app.monitoring;
  ours = import ./lib.nix { inherit config lib pkgs; };
  weak = import ./weak.nix { inherit lib; };
  place = import ./place.nix { inherit lib ours; };
  here = "services.microservice-app.monitoring";
  shipped = ../../deploy/monitoring;

  # a template of deploy/monitoring with each ${NAME} replaced
  fill =
    template: values:
    lib.replaceStrings (map (name: "\${${name}}") (lib.attrNames values)) (lib.attrValues values) (
      builtins.readFile template
    );
  list = builtins.toJSON;

  # no address: every interface, IPv4 and IPv6
  addressOf = part: if place.opened part then "" else "127.0.0.1";
  at = port: "127.0.0.1:${toString port}";

  # the static targets, by job
  targets = cfg.targets // {
    prometheus = [ (at cfg.prometheus.port) ];
    alertmanager = [ (at config.services.prometheus.alertmanager.port) ];
  };
  record = name: labels: number: {
    record = "msa:expected_${name}";
    inherit labels;
    expr = "vector(${toString number})";
  };
  # like deploy/monitoring/rules/expected.yml, with the numbers of this site
  expected = pkgs.writeText "expected.yml" (
    builtins.toJSON {
      groups = [
        {
          name = "expected";
          rules =
            lib.mapAttrsToList (service: record "instances" { inherit service; }) cfg.expectedInstances
            ++ lib.mapAttrsToList (job: addresses: record "targets" { inherit job; } (lib.length addresses)) (
              lib.filterAttrs (_: addresses: addresses != [ ]) targets
            );
        }
      ];
    }
  );

  inherit (cfg) alertmanager grafana;
  receiver =
    if alertmanager.slack.urlFile != null && alertmanager.webhook.url != null then
      "both"
    else if alertmanager.slack.urlFile != null then
      "slack"
    else if alertmanager.webhook.url != null then
      "webhook"
    else
      "none";
  alertmanagerCredential = name: "/run/credentials/alertmanager.service/${name}";

  grafanaState = "microservice-app-grafana";
  # a secret of Grafana's that nobody has given is made at the first start
  grafanaSecrets =
    lib.mapAttrs (name: given: if given == null then "/var/lib/${grafanaState}/${name}" else given)
      {
        admin-password = grafana.adminPasswordFile;
        secret-key = grafana.secretKeyFile;
      };
  grafanaCredential = name: "$__file{/run/credentials/grafana.service/${name}}";

  # Grafana ignores a dashboard that it cannot read, with a line in its log
  dashboards =
    pkgs.runCommand "dashboards"
      {
        nativeBuildInputs = [ pkgs.jq ];
        folders = map (folder: "${folder}") ([ "${shipped}/dashboards" ] ++ cfg.grafana.dashboards);
      }
      ''
        mkdir $out
        for folder in $folders; do
          for file in $folder/*.json; do
            [ ! -e $out/''${file##*/} ] || { echo "two dashboards are called ''${file##*/}" >&2; exit 1; }
            jq -e --arg file "$file" '
              def want($what; $ok): if $ok then . else error($file + ": " + $what) end;
              want("no uid"; (.uid | type) == "string" and .uid != "")
              | want("no title"; (.title | type) == "string" and .title != "")
              | want("no panels"; (.panels | length) > 0)
              | want("`__inputs`: export it without `for sharing`"; has("__inputs") | not)
              | want("a panel without a query"; all(.panels[] | select(.type != "row"); (.targets | length) > 0))
            ' "$file" > /dev/null
            cp "$file" $out/
          done
        done
        jq -s -e '(map(.uid) | length == (unique | length)) and (map(.title) | length == (unique | length))' \
          $out/*.json > /dev/null || { echo "two dashboards have the same uid or title" >&2; exit 1; }
      '';

  part =
    what: port:
    {
      port = mkOption {
        type = types.port;
        default = port;
        example = port + 1;
        description = "TCP port of ${what}. Unless the firewall opens it, it listens on loopback only.";
      };
    }
    // place.optionsOf "the port of ${what}";
  targetsOption =
    what: example:
    mkOption {
      type = types.listOf types.str;
      default = [ ];
      example = [ example ];
      description = "Addresses of ${what}.";
    };
  duration =
    default: description:
    mkOption {
      type = types.strMatching "([0-9]+(ms|[smhdwy]))+";
      inherit default description;
      example = "30s";
    };
  secret =
    example: description:
    mkOption {
      type = types.nullOr types.externalPath;
      default = null;
      inherit example description;
    };
in
{
  imports = [ ./common.nix ];

  options.services.microservice-app.monitoring = {
    enable = lib.mkEnableOption "Prometheus, Alertmanager and Grafana for the application";

    gateways = mkOption {
      type = types.listOf types.str;
      default = [ ];
      example = [ "192.168.50.14:6060" ];
      description = ''
        Admin addresses of the gateways. Each lists the processes of the application, which Prometheus finds by
        that alone. A gateway has to name this host in its `admin.allowFrom`.
      '';
    };
    targets = {
      etcd = targetsOption "the metrics of etcd's members" "192.168.50.10:2381";
      node = targetsOption "node exporters" "192.168.50.10:9100";
      cadvisor = targetsOption "cAdvisors" "192.168.50.10:9180";
      zipkin = targetsOption "Zipkins; the first one is Grafana's source of traces" "192.168.50.16:9411";
    };
    expectedInstances = mkOption {
      type = types.attrsOf types.ints.unsigned;
      default = { };
      defaultText = lib.literalMD "the number of `gateways`, and 1 each of feed, profile and topic";
      example = {
        feed = 2;
      };
      description = ''
        How many instances of each service have to be there: the alert ServiceDown compares. 0: it does not matter.
      '';
    };
    scrapeInterval = duration "5s" "Time between two scrapes of a target, and between two evaluations of the rules.";

    prometheus = part "Prometheus" 9090 // {
      retention = duration "30d" "How long Prometheus keeps what it has.";
    };

    alertmanager = {
      groupWait = duration "10s" "How long the first notification of a group waits for further alerts.";
      groupInterval = duration "1m" "Shortest time until the next notification of a group that has changed.";
      repeatInterval = duration "4h" "Time until the notification of an unchanged group is repeated.";
      slack = {
        urlFile = secret "/var/lib/secrets/slack-url" ''
          File with the URL of Slack's incoming webhook, which is a secret. null: nothing is sent to Slack.
        '';
        channel = mkOption {
          type = types.strMatching ''[^"]+'';
          default = "#ops";
          example = "#alerts";
          description = "Slack's channel for the notifications.";
        };
      };
      webhook = {
        url = mkOption {
          type = types.nullOr types.str;
          default = null;
          example = "https://alerts.example.org/hook";
          description = "URL to which the notifications are sent; must not have a secret in it. null: none.";
        };
        tokenFile = secret "/var/lib/secrets/webhook-token" ''
          File with the token that is sent as `Authorization: Bearer`. `webhook.url` needs it.
        '';
      };
    };

    grafana = part "Grafana" 3000 // {
      enable = mkOption {
        type = types.bool;
        default = true;
        example = false;
        description = "Whether to run Grafana beside Prometheus.";
      };
      adminPasswordFile = secret "/var/lib/secrets/grafana-password" ''
        File with the first password of the user `admin`. null: one is made at the first start, in
        /var/lib/${grafanaState}/admin-password. A later change of the file changes nothing: use Grafana's pages, or
        `grafana cli admin reset-admin-password`.
      '';
      secretKeyFile = secret "/var/lib/secrets/grafana-key" ''
        File with the key that Grafana encrypts its own secrets with. null: one is made at the first start, in
        /var/lib/${grafanaState}/secret-key.
      '';
      dashboards = mkOption {
        type = types.listOf types.path;
        default = [ ];
        example = lib.literalExpression "[ ./dashboards ]";
        description = "Further folders with dashboards, a JSON file each. The build checks them.";
      };
    };
  };

  config = lib.mkIf cfg.enable (
    lib.mkMerge [
      (place.firewallOf "${here}.prometheus" cfg.prometheus)
      (lib.mkIf grafana.enable (place.firewallOf "${here}.grafana" grafana))
      {
        assertions = [
          {
            assertion = cfg.gateways != [ ];
            message = "services.microservice-app.monitoring knows no gateway, so it finds nothing: set services.microservice-app.monitoring.gateways = [ \"host:6060\" ];";
          }
          {
            assertion = (alertmanager.webhook.url == null) == (alertmanager.webhook.tokenFile == null);
            message = "services.microservice-app.monitoring.alertmanager.webhook: `url` and `tokenFile` go together, set both or none.";
          }
        ];
        services.microservice-app = {
          monitoring.expectedInstances = lib.mapAttrs (_: mkDefault) {
            apigateway = lib.length cfg.gateways;
            feed = 1;
            profile = 1;
            topic = 1;
          };
          listeners = [
            {
              option = "${here}.alertmanager";
              address = "127.0.0.1";
              inherit (config.services.prometheus.alertmanager) port;
            }
          ];
        };
        services.prometheus = {
          enable = true;
          inherit (cfg.prometheus) port;
          listenAddress = mkDefault (addressOf cfg.prometheus);
          retentionTime = mkDefault cfg.prometheus.retention;
          # promtool checks it, and the rules that it names, while the system is built
          configText = fill "${shipped}/prometheus.yml" {
            SCRAPE_INTERVAL = cfg.scrapeInterval;
            EVAL_INTERVAL = cfg.scrapeInterval;
            RULES = "${shipped}/rules";
            EXPECTED = "${expected}";
            GATEWAYS = list (
              map (gateway: {
                url = "http://${gateway}/sd/targets";
                refresh_interval = "5s";
              }) cfg.gateways
            );
            ALERTMANAGER = list targets.alertmanager;
            PROMETHEUS = list targets.prometheus;
            ETCD = list targets.etcd;
            NODE = list targets.node;
            CADVISOR = list targets.cadvisor;
            ZIPKIN = list targets.zipkin;
          };
        };
        systemd.services.prometheus = {
          startLimitIntervalSec = 0;
          serviceConfig = weak [ ];
        };

        services.prometheus.alertmanager = {
          enable = true;
          listenAddress = mkDefault "127.0.0.1";
          # a single one, without the gossip of several
          extraFlags = [ "--cluster.listen-address=" ];
          configText = fill "${shipped}/alertmanager.yml" {
            RECEIVER = receiver;
            GROUP_WAIT = alertmanager.groupWait;
            GROUP_INTERVAL = alertmanager.groupInterval;
            REPEAT_INTERVAL = alertmanager.repeatInterval;
            SLACK_CHANNEL = alertmanager.slack.channel;
            SLACK_URL_FILE = alertmanagerCredential "slack-url";
            WEBHOOK_URL =
              if alertmanager.webhook.url == null then "http://127.0.0.1/" else alertmanager.webhook.url;
            WEBHOOK_TOKEN_FILE = alertmanagerCredential "webhook-token";
          };
        };
        systemd.services.alertmanager = {
          startLimitIntervalSec = 0;
          serviceConfig = weak [ "RestrictAddressFamilies" ] // {
            LoadCredential =
              lib.optional (alertmanager.slack.urlFile != null) "slack-url:${alertmanager.slack.urlFile}"
              ++ lib.optional (
                alertmanager.webhook.tokenFile != null
              ) "webhook-token:${alertmanager.webhook.tokenFile}";
          };
        };
      }

      (lib.mkIf grafana.enable {
        services.grafana = {
          enable = true;
          settings = {
            server = {
              http_addr = mkDefault (addressOf grafana);
              http_port = grafana.port;
            };
            security = {
              admin_password = grafanaCredential "admin-password";
              secret_key = grafanaCredential "secret-key";
            };
            analytics = {
              reporting_enabled = mkDefault false;
              check_for_updates = mkDefault false;
              check_for_plugin_updates = mkDefault false;
            };
            users.allow_sign_up = mkDefault false;
            # the first page is the dashboard of the services
            dashboards.default_home_dashboard_path = mkDefault "${dashboards}/services.json";
          };
          provision = {
            enable = true;
            datasources.settings = {
              apiVersion = 1;
              datasources = [
                {
                  name = "Prometheus";
                  type = "prometheus";
                  uid = "prometheus";
                  url = "http://${at cfg.prometheus.port}";
                  isDefault = true;
                  # from it Grafana takes the smallest $__rate_interval
                  jsonData.timeInterval = cfg.scrapeInterval;
                }
              ]
              ++ lib.optional (targets.zipkin != [ ]) {
                name = "Zipkin";
                type = "zipkin";
                uid = "zipkin";
                url = "http://${lib.head targets.zipkin}";
              };
            };
            dashboards.settings = {
              apiVersion = 1;
              providers = [
                {
                  name = "microservice-app";
                  options.path = dashboards;
                }
              ];
            };
          };
        };
        systemd.services.grafana = {
          startLimitIntervalSec = 0;
          serviceConfig = weak [ "MemoryDenyWriteExecute" ] // {
            LoadCredential = lib.mapAttrsToList (name: file: "${name}:${file}") grafanaSecrets;
          };
        };

        systemd.services.microservice-app-grafana-secrets = {
          description = "microservice-app: secrets of Grafana that nobody has given";
          requiredBy = [ "grafana.service" ];
          before = [ "grafana.service" ];
          # there is one start of it for each boot, and what is there stays
          script = ''
            for name in ${toString (lib.attrNames grafanaSecrets)}; do
              file=$STATE_DIRECTORY/$name
              [ -s "$file" ] || { head -c 24 /dev/urandom | base64 -w0 > "$file.new" && mv "$file.new" "$file"; }
            done
          '';
          serviceConfig = import ./hardening.nix // {
            Type = "oneshot";
            RemainAfterExit = true;
            StateDirectory = grafanaState;
            StateDirectoryMode = "0700";
            RestrictAddressFamilies = [ "AF_UNIX" ];
            PrivateNetwork = true;
          };
        };
      })
    ]
  );
}
