# Checks that hosts as in the documentation evaluate, and that their configuration is the expected one.
{
  self,
  lib,
  pkgs,
}:
let
  # evaluates a host with these options of services.microservice-app, and further modules
  evaluatedWith =
    more: services:
    (lib.nixosSystem {
      modules = more ++ [
        self.nixosModules.default
        { services.microservice-app = services; }
        # what every NixOS host has to set
        {
          boot.isContainer = true;
          nixpkgs.hostPlatform = pkgs.stdenv.hostPlatform.system;
          system.stateVersion = "26.05";
        }
      ];
    }).config;
  wrongWith =
    config: map (a: a.message) (lib.filter (a: !a.assertion) config.assertions) ++ config.warnings;
  # the same; fails if an assertion fails or there is a warning
  hostWith =
    more: services:
    let
      config = evaluatedWith more services;
      wrong = wrongWith config;
    in
    if wrong == [ ] then config else throw (lib.concatLines wrong);
  host = hostWith [ ];

  # the text of a unit; fails to evaluate if one of `truths` is false
  check =
    name: config: unit: truths:
    let
      untrue = lib.attrNames (lib.filterAttrs (_: truth: !truth) truths);
    in
    if untrue == [ ] then
      pkgs.writeText name config.systemd.units.${unit}.text
    else
      throw "${name}: not true: ${toString untrue}";

  gateway = host {
    apigateway.enable = true;
    registry.endpoints = [ "192.168.50.10:2379" ];
  };

  # one member of a cluster
  member = host {
    registry.server = {
      enable = true;
      name = "node-0";
      members = {
        node-0 = "192.168.50.10";
        node-5 = "192.168.50.17";
        node-6 = "192.168.50.18";
      };
      peerTls = { };
    };
  };
  environment = member.systemd.services.etcd.environment;

  several = hostWith [ overrides ] {
    registry.endpoints = [ "192.168.50.10:2379" ];
    settings.client.deadline_ms = 700;
    feed = {
      enable = true;
      allowFrom = [ "192.168.50.14" ];
      settings.grpc.advertise_addr = "192.168.50.11:8082";
      settings.log.level = "debug";
      openFirewallOn = [ "enp2s0" ];
      instances.second = {
        port = 8182;
        openFirewall = true;
      };
      instances.third = {
        enable = false;
        port = 8282;
      };
    };
  };
  overrides.systemd.services.microservice-app-feed.serviceConfig = {
    WatchdogSec = 60;
    RestrictAddressFamilies = [ "AF_NETLINK" ];
  };
  inherit (several.services.microservice-app) feed;

  # certificates between the roles, one of them elsewhere; one for callers, and a token for operators
  trusting = hostWith [ acme ] {
    registry.endpoints = [ "192.168.50.10:2379" ];
    adminTokenFile = "/var/lib/secrets/admin-token";
    tls = {
      mode = "permissive";
      trustDomain = "prod.example";
    };
    apigateway = {
      enable = true;
      acmeHost = "api.example.org";
    };
    feed = {
      enable = true;
      settings.tls.cert_file = "/run/certificates/feed.pem";
      instances.second.port = 8182;
    };
  };

  acme.security.acme = {
    acceptTerms = true;
    defaults.email = "administrator@example.org";
    certs."api.example.org".webroot = "/var/lib/acme/acme-challenge";
  };

  # two services in one PostgreSQL, one of them with a user of its own, and one with a file
  shared = host {
    registry.endpoints = [ "192.168.50.10:2379" ];
    store = {
      url = "postgres://app@192.168.50.10/msa?sslmode=verify-full";
      access = {
        caFile = "${pkgs.writeText "ca.pem" "certificates are public"}";
        certFile = "/var/lib/secrets/store.crt";
        keyFile = "/var/lib/secrets/store.key";
        passwordFile = "/var/lib/secrets/store-password";
      };
    };
    feed = {
      enable = true;
      instances.second.port = 8182;
    };
    profile = {
      enable = true;
      settings.store.url = "postgres://profile@192.168.50.10/msa";
      credentials.store-password = "/var/lib/secrets/store-password-of-profile";
    };
    topic = {
      enable = true;
      settings.store.url = "sqlite:/var/lib/microservice-app-topic/other.db";
    };
    apigateway.enable = true;
  };
  # the credentials of a unit that begin so
  credentialsIn =
    config: prefix: unit:
    lib.filter (lib.hasPrefix prefix) config.systemd.services.${unit}.serviceConfig.LoadCredential;

  # etcd with TLS and users; the gateway has its own user
  secured = host {
    registry = {
      endpoints = [
        "https://192.168.50.10:2379"
        "https://192.168.50.17:2379"
      ];
      access = {
        caFile = "/var/lib/secrets/ca.crt";
        certFile = "/var/lib/secrets/client.crt";
        keyFile = "/var/lib/secrets/client.key";
        user = "feed";
        passwordFile = "/var/lib/secrets/etcd-password";
      };
    };
    feed = {
      enable = true;
      instances.second.port = 8182;
    };
    apigateway = {
      enable = true;
      settings.registry.user = "apigateway";
      credentials.etcd-password = "/var/lib/secrets/etcd-password-of-the-gateway";
    };
  };
  credentialsOf = unit: secured.systemd.services.${unit}.serviceConfig.LoadCredential;
  second = feed.instances.second.settings;
in
import ./refused.nix { inherit self lib pkgs; }
// {
  # node-4 of the VM test `app` shows that such a host runs
  two-line-host = check "two-line-host" gateway "microservice-app-apigateway.service" {
    nothingIsOpened = gateway.networking.firewall.allowedTCPPorts == [ ];
    adminOnLoopback =
      gateway.services.microservice-app.apigateway.settings.admin.addr == "127.0.0.1:6060";
  };

  registry-cluster = check "registry-cluster" member "etcd.service" {
    namesAllMembers =
      environment.ETCD_INITIAL_CLUSTER == lib.concatStringsSep "," [
        "node-0=https://192.168.50.10:2380"
        "node-5=https://192.168.50.17:2380"
        "node-6=https://192.168.50.18:2380"
      ];
    clientsWithoutTls = environment.ETCD_ADVERTISE_CLIENT_URLS == "http://192.168.50.10:2379";
    readsItsKey = environment.ETCD_PEER_KEY_FILE == "/run/credentials/etcd.service/peer-key";
    peersGetThrough = lib.hasInfix "-s 192.168.50.17 --dport 2380 -j nixos-fw-accept" member.networking.firewall.extraCommands;
    # its own member first
    rolesHereFindAllMembers =
      member.services.microservice-app.registry.endpoints == [
        "192.168.50.10:2379"
        "192.168.50.17:2379"
        "192.168.50.18:2379"
      ];
  };

  instances = check "instances" several "microservice-app-feed-second.service" {
    ownAddress = second.grpc == { addr = "[::]:8182"; };
    ownAdminAddress = second.admin == { addr = "127.0.0.1:6162"; };
    sameStore = second.store == feed.settings.store;
    sameSettings = second.log.level == "debug" && second.client.deadline_ms == 700;
    opened = several.networking.firewall.allowedTCPPorts == [ 8182 ];
    openedOnOneInterface =
      several.networking.firewall.interfaces.enp2s0.allowedTCPPorts == [ 8082 ]
      && !(several.networking.firewall.interfaces ? enp3s0);
    oneIsTurnedOff = !(several.systemd.services ? microservice-app-feed-third);
    restartsAreSlowerAndSlower =
      let
        inherit (several.systemd.services.microservice-app-feed-second.serviceConfig)
          RestartSec
          RestartSteps
          RestartMaxDelaySec
          ;
      in
      RestartSec == "100ms" && RestartSteps == 6 && RestartMaxDelaySec == "10s";
    # a single value of the host wins, a list is joined
    theHostHasTheLastWord =
      let
        inherit (several.systemd.services.microservice-app-feed.serviceConfig)
          WatchdogSec
          RestrictAddressFamilies
          ;
      in
      WatchdogSec == 60
      && lib.elem "AF_NETLINK" RestrictAddressFamilies
      && lib.elem "AF_INET" RestrictAddressFamilies;
  };

  registry-access = check "registry-access" secured "microservice-app-feed-second.service" {
    namesAreBare =
      let
        inherit (secured.services.microservice-app.feed.instances.second.settings) registry;
      in
      registry.ca_file == "etcd-ca"
      && registry.cert_file == "etcd-cert"
      && registry.key_file == "etcd-key"
      && registry.password_file == "etcd-password"
      && registry.user == "feed"
      && !(registry ? tls_server_name);
    filesAreHandedOver =
      credentialsOf "microservice-app-feed-second" == [
        "etcd-ca:/var/lib/secrets/ca.crt"
        "etcd-cert:/var/lib/secrets/client.crt"
        "etcd-key:/var/lib/secrets/client.key"
        "etcd-password:/var/lib/secrets/etcd-password"
      ];
    aRoleMayHaveItsOwnUser =
      secured.services.microservice-app.apigateway.settings.registry.user == "apigateway"
      &&
        lib.last (credentialsOf "microservice-app-apigateway")
        == "etcd-password:/var/lib/secrets/etcd-password-of-the-gateway";
  };

  # Runs what the timer runs, beside somebody who writes.
  backup =
    let
      name = "microservice-app-feed-backup";
      config = host {
        registry.endpoints = [ "192.168.50.10:2379" ];
        feed.enable = true;
        backup = {
          enable = true;
          keep = 2;
        };
      };
      inherit (config.systemd.services.${name}.serviceConfig) ExecStart;
      text = check "backup" config "${name}.timer" {
        readsTheFileOfTheService = lib.hasSuffix " /var/lib/microservice-app-feed/feed.db 2" ExecStart;
        isMadeEveryDay = config.systemd.services.${name}.startAt == [ "daily" ];
      };
    in
    pkgs.runCommand "backup"
      {
        inherit text;
        script = lib.head (lib.splitString " " ExecStart);
        nativeBuildInputs = [ pkgs.sqlite ];
      }
      ''
        export STATE_DIRECTORY=$PWD/state
        file=$STATE_DIRECTORY/feed.db copies=$STATE_DIRECTORY/backup
        mkdir $STATE_DIRECTORY
        $script $file 2   # before the first start of the service
        [ ! -e $file ] && [ ! -e $copies ]
        sqlite3 $file "PRAGMA journal_mode = WAL; CREATE TABLE feeds (id INTEGER)" > /dev/null
        mkfifo writer
        sqlite3 $file < writer &
        exec 9> writer
        for n in 1 2 3; do
          echo "INSERT INTO feeds VALUES ($n);" >&9
          for try in $(seq 100); do
            [ "$(sqlite3 $file 'SELECT count(*) FROM feeds')" = $n ] && break
            sleep 0.1
          done
          # not committed: in no copy
          echo "BEGIN; INSERT INTO feeds VALUES (100);" >&9
          $script $file 2
          echo "ROLLBACK;" >&9
        done
        exec 9>&-
        wait
        set -- $copies/*
        [ $# = 2 ] || { echo "$# copies: $*"; exit 1; }
        [ "$(sqlite3 $1 'SELECT group_concat(id) FROM feeds')" = 1,2 ]
        [ "$(sqlite3 $2 'SELECT group_concat(id) FROM feeds')" = 1,2,3 ]
        # a damaged file gives no copy, and takes none away
        head -c 100 /dev/urandom > $file
        rm -f $file-wal $file-shm
        ! $script $file 2
        [ "$(echo $copies/*)" = "$1 $2" ]
        grep -qx 'Persistent=true' $text
        cp $text $out
      '';

  # The same of certificates.
  certificates =
    let
      units = [
        "microservice-app-feed"
        "microservice-app-feed-second"
        "microservice-app-apigateway"
      ];
      serviceOf = name: trusting.systemd.services.${name}.serviceConfig;
      files = map (name: (serviceOf name).ExecStart) units;
      text = check "certificates" trusting "microservice-app-apigateway.service" {
        eachRoleMayReadItsOwn =
          map (
            name: lib.filter (lib.hasPrefix "microservice-app-tls") (serviceOf name).SupplementaryGroups
          ) units == [
            [ "microservice-app-tls-feed" ]
            [ "microservice-app-tls-feed" ]
            [ "microservice-app-tls-apigateway" ]
          ];
        theGatewayMayReadTheOneForCallers =
          lib.elem "acme" (serviceOf "microservice-app-apigateway").SupplementaryGroups
          && !lib.elem "acme" (serviceOf "microservice-app-feed").SupplementaryGroups;
        everyRoleHasTheToken = lib.all (
          name: lib.elem "admin-token:/var/lib/secrets/admin-token" (serviceOf name).LoadCredential
        ) units;
        theirDirectoriesAreThere =
          lib.filter (lib.hasInfix "microservice-app-tls") trusting.systemd.tmpfiles.rules == [
            "d /var/lib/microservice-app-tls 0755 root root -"
            "d /var/lib/microservice-app-tls/feed 2750 root microservice-app-tls-feed -"
            "d /var/lib/microservice-app-tls/apigateway 2750 root microservice-app-tls-apigateway -"
          ];
        nobodyElseIsInTheGroups =
          lib.all (role: trusting.users.groups."microservice-app-tls-${role}".members == [ ])
            [
              "feed"
              "apigateway"
            ];
        withoutThemThereIsNoGroup =
          gateway.systemd.services.microservice-app-apigateway.serviceConfig.SupplementaryGroups == [ ]
          && !lib.any (lib.hasPrefix "microservice-app-tls") (lib.attrNames gateway.users.groups);
      };
    in
    pkgs.runCommand "certificates" { inherit files text; } ''
      set -- $(grep -o '/nix/store/[^ ]*[.]toml' <<< "$files")
      for file in "$@"; do
        for line in 'tls = "permissive"' 'trust_domain = "prod.example"' 'ca_file = "/var/lib/microservice-app-tls/ca.crt"'; do
          grep -qxF "$line" "$file" || { echo "$file has no $line"; exit 1; }
        done
      done
      for file in "$@"; do
        grep -qxF 'token_file = "admin-token"' "$file"
      done
      grep -qxF 'cert_file = "/var/lib/acme/api.example.org/fullchain.pem"' "$3"
      for file in "$1" "$2"; do
        grep -qxF 'cert_file = "/run/certificates/feed.pem"' "$file"
        grep -qxF 'key_file = "/var/lib/microservice-app-tls/feed/feed.key"' "$file"
      done
      grep -qxF 'key_file = "/var/lib/microservice-app-tls/apigateway/apigateway.key"' "$3"
      cp $text $out
    '';

  # The build of the settings files checks that the program takes them.
  shared-store =
    let
      unit = "microservice-app-feed-second";
      files = lib.map (name: shared.systemd.services.${name}.serviceConfig.ExecStart) [
        unit
        "microservice-app-profile"
        "microservice-app-topic"
      ];
      text = check "shared-store" shared "${unit}.service" {
        filesAreHandedOver =
          lib.drop 1 (credentialsIn shared "store-" unit) == [
            "store-cert:/var/lib/secrets/store.crt"
            "store-key:/var/lib/secrets/store.key"
            "store-password:/var/lib/secrets/store-password"
          ];
        aCertificateMayBeInTheStore = lib.hasPrefix "store-ca:${builtins.storeDir}/" (
          lib.head (credentialsIn shared "store-" unit)
        );
        aServiceMayHaveItsOwnUser =
          lib.last (credentialsIn shared "store-" "microservice-app-profile")
          == "store-password:/var/lib/secrets/store-password-of-profile";
        aServiceMayHaveItsOwnFile = credentialsIn shared "store-" "microservice-app-topic" == [ ];
        theGatewayHasNone = credentialsIn shared "store-" "microservice-app-apigateway" == [ ];
      };
    in
    pkgs.runCommand "shared-store" { inherit files text; } ''
      set -- $(grep -o '/nix/store/[^ ]*[.]toml' <<< "$files")
      for file in "$1" "$2"; do
        for line in 'ca_file = "store-ca"' 'cert_file = "store-cert"' 'key_file = "store-key"' \
          'password_file = "store-password"'; do
          grep -qxF "$line" "$file" || { echo "$file has no $line"; exit 1; }
        done
      done
      grep -qxF 'url = "postgres://app@192.168.50.10/msa?sslmode=verify-full"' "$1"
      grep -qxF 'url = "postgres://profile@192.168.50.10/msa"' "$2"
      ! grep -q 'password_file' "$3"
      cp $text $out
    '';
}
