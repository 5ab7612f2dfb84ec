# What the hosts come to, checked without a VM: scrape configuration, rules, routes of notifications, provisioning, units,
# and what a switch to another generation restarts.
{
  self,
  lib,
  pkgs,
}:
let
  host = name: self.nixosConfigurations.${name};
  changed = name: module: ((host name).extendModules { modules = [ module ]; }).config;
  serviceOf = config: unit: config.systemd.services.${unit}.serviceConfig;

  # fails to evaluate if one of `truths` is false
  truly =
    name: truths: result:
    let
      untrue = lib.attrNames (lib.filterAttrs (_: truth: !truth) truths);
    in
    if untrue == [ ] then result else throw "${name}: not true: ${toString untrue}";
  check = name: truths: truly name truths (pkgs.writeText name "true");

  monitor = (host "monitor").config;
  prometheus = monitor.services.prometheus.configText;
  discovery = builtins.toJSON [
    {
      refresh_interval = "5s";
      url = "http://192.168.50.14:6060/sd/targets";
    }
  ];
  scraped =
    last:
    lib.all (port: lib.hasInfix "\"192.168.50.${toString last}:${port}\"" prometheus) [
      "9100"
      "9180"
    ];
  # with both receivers
  told = changed "monitor" {
    services.microservice-app.monitoring.alertmanager = {
      slack.urlFile = lib.mkForce "/var/lib/secrets/slack-url";
      webhook = lib.mkForce {
        url = "https://alerts.example.org/hook";
        tokenFile = "/var/lib/secrets/webhook-token";
      };
    };
  };
  grafana = monitor.services.grafana;
  folder = (lib.head grafana.provision.dashboards.settings.providers).options.path;

  tracer = (host "tracer").config;
  zipkin = tracer.systemd.services.zipkin;

  node0 = (host "node-0").config;
  feed = feedHost.services.microservice-app.feed;
  login = "host msa app 192.168.50.11/32 scram-sha-256";
  cluster = lib.nixosSystem {
    modules = [
      self.nixosModules.default
      {
        boot.isContainer = true;
        nixpkgs.hostPlatform = pkgs.stdenv.hostPlatform.system;
        system.stateVersion = "26.05";
        networking.hostName = "db-0";
        services.microservice-app = {
          registry.endpoints = [ "https://192.168.50.20:2379" ];
          registry.access = {
            caFile = "/var/lib/secrets/ca.crt";
            user = "patroni";
            passwordFile = "/var/lib/secrets/etcd-patroni";
          };
          database = {
            enable = true;
            passwordFile = "/var/lib/secrets/db-password";
            allowFrom = [ "192.168.50.11" ];
            hugePages = 1101;
            cluster.members = {
              db-0 = "192.168.50.20";
              db-1 = "192.168.50.21";
              db-2 = "192.168.50.22";
            };
          };
        };
      }
    ];
  };
  member = cluster.config;
  quorum =
    (cluster.extendModules {
      modules = [
        {
          services.microservice-app.database.cluster.settings.bootstrap.dcs.synchronous_mode = "quorum";
          services.patroni.softwareWatchdog = true;
        }
      ];
    }).config;
  patroni = member.services.patroni.settings;
  large = changed "node-0" { services.microservice-app.database.hugePages = 4400; };
  # a standby, of Patroni or by hand, is there again soon after a failover
  followsSoon =
    parameters:
    parameters.wal_retrieve_retry_interval or "" == "200ms"
    && parameters.wal_receiver_timeout or "" == "5s";

  # the rules of iptables
  lets =
    config: source: port:
    lib.hasInfix "-s ${source} --dport ${toString port} -j nixos-fw-accept" config.networking.firewall.extraCommands;

  gateway = "microservice-app-apigateway";
  now = (host "node-4").config;
  feedHost = (host "node-1").config;
  # another build of the program
  other = pkgs.runCommand "microservice-app-next" { meta.mainProgram = "microservice-app"; } ''
    install -D ${lib.getExe now.services.microservice-app.package} $out/bin/microservice-app
  '';
  # the names of the units whose text differs
  changedUnits =
    one: two:
    let
      textOf = config: lib.mapAttrs (_: unit: unit.text) config.systemd.units;
      before = textOf one;
      after = textOf two;
    in
    lib.filter (name: before.${name} or null != after.${name} or null) (
      lib.attrNames (before // after)
    );

  template =
    ((import ../template/flake.nix).outputs {
      nixpkgs = { inherit lib; };
      microservice-app = self;
    }).nixosConfigurations.web.config;
in
{
  scrape-config = check "scrape-config" {
    nothingIsLeftToFill = !lib.hasInfix "\${" prometheus;
    servicesAreFound = lib.hasInfix "http_sd_configs: ${discovery}" prometheus;
    etcd = lib.hasInfix ''- targets: ["192.168.50.10:2381"]'' prometheus;
    everyHost = lib.all scraped (lib.range 10 16);
    # node exporter asks how far the clock is off
    clockErrorIsSeen =
      lib.last (serviceOf node0 "prometheus-node-exporter").SystemCallFilter == "adjtimex";
    zipkin = lib.hasInfix ''- targets: ["192.168.50.16:9411"]'' prometheus;
    alertmanager = lib.hasInfix ''- targets: ["127.0.0.1:9093"]'' prometheus;
    # the monitor reads metrics, and nobody else
    exportersAreOpen = lets node0 "192.168.50.15" 9100 && lets node0 "192.168.50.15" 2381;
    forNobodyElse = !lets node0 "192.168.50.11" 9100;
    onlyGrafanaIsOpen =
      monitor.networking.firewall.allowedTCPPorts == [
        22
        3000
      ];
    prometheusOnLoopback = monitor.services.prometheus.listenAddress == "127.0.0.1";
  };

  # the rules and their tests by the promtool that the hosts get, and the numbers that this site expects
  rules =
    pkgs.runCommand "rules" { nativeBuildInputs = [ monitor.services.prometheus.package.cli ]; }
      ''
        cp -r ${../../deploy/monitoring/rules} rules
        chmod -R u+w rules
        cd rules
        promtool check rules --lint-fatal recording.yml alerts.yml expected.yml
        promtool test rules tests/*.yml
        touch $out
      '';

  routes =
    truly "routes"
      {
        # in one pair of quotes: two make it empty
        channelOfSlack = lib.hasInfix "channel: \"#ops\"\n" told.services.prometheus.alertmanager.configText;
        nobodyByDefault = lib.hasInfix "receiver: none" monitor.services.prometheus.alertmanager.configText;
        secretsAreHandedOver =
          (serviceOf told "alertmanager").LoadCredential == [
            "slack-url:/var/lib/secrets/slack-url"
            "webhook-token:/var/lib/secrets/webhook-token"
          ];
        noSecretIsNamed = !lib.hasInfix "/var/lib/secrets" told.services.prometheus.alertmanager.configText;
      }
      (
        pkgs.runCommand "routes"
          {
            nativeBuildInputs = [ told.services.prometheus.alertmanager.package ];
            config = pkgs.writeText "alertmanager.yml" told.services.prometheus.alertmanager.configText;
          }
          ''
            amtool check-config $config
            for labels in 'alertname=ServiceDown component=services service=feed' 'alertname=DiskFull component=host'; do
              amtool config routes test --config.file=$config --verify.receivers=both $labels
            done
            touch $out
          ''
      );

  provisioning =
    truly "provisioning"
      {
        source =
          (lib.head grafana.provision.datasources.settings.datasources).url == "http://127.0.0.1:9090";
        traces =
          (lib.last grafana.provision.datasources.settings.datasources).url == "http://192.168.50.16:9411";
        passwordFromFile =
          grafana.settings.security.admin_password
          == "$__file{/run/credentials/grafana.service/admin-password}";
        keyFromFile =
          grafana.settings.security.secret_key == "$__file{/run/credentials/grafana.service/secret-key}";
        madeAtFirstStart =
          lib.head (serviceOf monitor "grafana").LoadCredential
          == "admin-password:/var/lib/microservice-app-grafana/admin-password";
      }
      (
        pkgs.runCommand "provisioning" { inherit folder; } ''
          diff <(ls $folder) - << END
          callpath.json
          containers.json
          etcd.json
          hosts.json
          registry.json
          services.json
          END
          touch $out
        ''
      );

  tracing-host = check "tracing-host" {
    stored = zipkin.environment.ES_HOSTS == "http://127.0.0.1:9200";
    jobIsTimed = tracer.systemd.services.microservice-app-dependencies.startAt == [ "00:30 UTC" ];
    missedRunsAreMade = tracer.systemd.timers.microservice-app-dependencies.timerConfig.Persistent;
    openForRoles = lets tracer "192.168.50.14" 9411 && lets tracer "192.168.50.15" 9411;
    notForOthers =
      !lets tracer "192.168.50.10" 9411 && tracer.networking.firewall.allowedTCPPorts == [ 22 ];
    rolesSendThere = feed.settings.trace.zipkin_addr == "http://192.168.50.16:9411/api/v2/spans";
  };

  database-host = check "database-host" {
    feedUsesIt = feed.settings.store.url == "postgres://app@192.168.50.10/msa";
    passwordIsHandedOver =
      (serviceOf node0 "postgresql-setup").LoadCredential
      == [ "db-password:/var/lib/secrets/db-password" ];
    onlyWithPassword = lib.hasInfix login node0.services.postgresql.authentication;
    openForFeed = lets node0 "192.168.50.11" 5432 && !lets node0 "192.168.50.13" 5432;
    clusterIsStrict =
      patroni.bootstrap.dcs.synchronous_mode
      && patroni.bootstrap.dcs.synchronous_mode_strict
      && patroni.bootstrap.dcs.failsafe_mode
      && patroni.bootstrap.dcs.primary_start_timeout == 0;
    quorumBySetting =
      quorum.services.patroni.settings.bootstrap.dcs.synchronous_mode == "quorum"
      && quorum.services.patroni.settings.bootstrap.dcs.synchronous_mode_strict;
    watchdogIsReached = serviceOf quorum "patroni" ? DeviceAllow;
    standbysFollowSoon =
      followsSoon patroni.postgresql.parameters && followsSoon node0.services.postgresql.settings;
    newStandbysAreCopiedAtOnce = patroni.postgresql.basebackup == [ { checkpoint = "fast"; } ];
    hugePagesAreReserved =
      large.boot.kernel.sysctl."vm.nr_hugepages" == 2200
      && large.services.postgresql.settings.huge_pages == "try";
    hugePagesOfTheCluster =
      member.boot.kernel.sysctl."vm.nr_hugepages" == 551
      && patroni.postgresql.parameters.huge_pages == "try";
    noneByDefault = !node0.boot.kernel.sysctl ? "vm.nr_hugepages";
    # without it Patroni ignores the password of etcd
    passwordOfEtcdIsTaken =
      (member.systemd.services.patroni.environment.PATRONI_ETCD3_PROTOCOL or "") == "https"
      && member.services.patroni.environmentFiles ? PATRONI_ETCD3_PASSWORD;
    # Patroni reads /proc/stat, and finds a PostgreSQL that has gone on without it
    procIsWhole = lib.all (name: !member.systemd.services.patroni.serviceConfig ? ${name}) [
      "ProcSubset"
      "ProtectProc"
    ];
    # a PostgreSQL that goes on without Patroni keeps its shared memory
    sharedMemoryStays = !(member.systemd.services.patroni.serviceConfig ? RemoveIPC);
    clusterUsesTheRegistry =
      patroni.etcd3 == {
        hosts = [ "192.168.50.20:2379" ];
        protocol = "https";
        cacert = "/run/credentials/patroni.service/etcd-cacert";
        username = "patroni";
      };
    clusterHasNoServerOfItsOwn = !member.services.postgresql.enable;
    membersFindEachOther = lets member "192.168.50.21" 5432 && lets member "192.168.50.22" 8008;
    servicesFindTheDatabaseOnly = lets member "192.168.50.11" 5432 && !lets member "192.168.50.11" 8008;
  };

  # What NixOS compares when it switches, for the gateway behind its socket and for feed, which has none. The test
  # `upgrade` shows the switch itself.
  switch-plan = check "switch-plan" {
    aSettingRestartsTheGatewayAlone =
      changedUnits now (
        changed "node-4" {
          services.microservice-app.apigateway.settings.log.level = "debug";
        }
      ) == [ "${gateway}.service" ];
    aPackageToo =
      changedUnits now (changed "node-4" { services.microservice-app.package = lib.mkForce other; })
      == [ "${gateway}.service" ];
    aPortAlsoChangesTheSocket =
      changedUnits now (changed "node-4" { services.microservice-app.apigateway.port = 8090; }) == [
        "firewall.service"
        "${gateway}.service"
        "${gateway}.socket"
      ];
    aSettingRestartsFeedAlone =
      changedUnits feedHost (
        changed "node-1" {
          services.microservice-app.feed.settings.log.level = "debug";
        }
      ) == [ "microservice-app-feed.service" ];
    feedHasNoSocket = !feedHost.systemd.sockets ? microservice-app-feed;
    # otherwise the gateway's socket would be stopped with it
    restartedNotStopped = lib.all (unit: unit.restartIfChanged && !unit.stopIfChanged) [
      now.systemd.services.${gateway}
      feedHost.systemd.services.microservice-app-feed
    ];
  };

  template = check "template" {
    evaluates = lib.filter (a: !a.assertion) template.assertions == [ ] && template.warnings == [ ];
    twoRoles = template.systemd.services ? etcd && template.systemd.services ? ${gateway};
    builds = template.system.build.toplevel.drvPath != "";
  };
}
