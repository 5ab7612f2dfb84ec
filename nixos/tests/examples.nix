# Checks that hosts as in the documentation evaluate, and that their configuration is the expected one.
{
  self,
  lib,
  pkgs,
}:
let
  # evaluates a host with these options of services.microservice-app
  evaluated =
    services:
    (lib.nixosSystem {
      modules = [
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
  host =
    services:
    let
      config = evaluated services;
      wrong = wrongWith config;
    in
    if wrong == [ ] then config else throw (lib.concatLines wrong);
  # whether a host is refused with a message that contains `reason`
  refused = reason: services: lib.any (lib.hasInfix reason) (wrongWith (evaluated services));

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
      address = "192.168.50.10";
      members = {
        node-0 = "192.168.50.10";
        node-5 = "192.168.50.15";
        node-6 = "192.168.50.16";
      };
      peerTls = { };
    };
  };
  environment = member.systemd.services.etcd.environment;

  several = host {
    registry.endpoints = [ "192.168.50.10:2379" ];
    settings.client.deadline_ms = 700;
    feed = {
      enable = true;
      allowFrom = [ "192.168.50.14" ];
      settings.grpc.advertise_addr = "192.168.50.11:8082";
      settings.log.level = "debug";
      instances.second = {
        port = 8182;
        openFirewall = true;
      };
    };
  };
  inherit (several.services.microservice-app) feed;

  # etcd with TLS and users; the gateway has its own user
  secured = host {
    registry = {
      endpoints = [
        "https://192.168.50.10:2379"
        "https://192.168.50.15:2379"
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
{
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
        "node-5=https://192.168.50.15:2380"
        "node-6=https://192.168.50.16:2380"
      ];
    clientsWithoutTls = environment.ETCD_ADVERTISE_CLIENT_URLS == "http://192.168.50.10:2379";
    readsItsKey = environment.ETCD_PEER_KEY_FILE == "/run/credentials/etcd.service/peer-key";
    peersGetThrough = lib.hasInfix "-s 192.168.50.15 --dport 2380 -j nixos-fw-accept" member.networking.firewall.extraCommands;
    rolesHereFindIt = member.services.microservice-app.registry.endpoints == [ "192.168.50.10:2379" ];
  };

  instances = check "instances" several "microservice-app-feed-second.service" {
    ownAddress = second.grpc == { addr = "[::]:8182"; };
    ownAdminAddress = second.admin == { addr = "127.0.0.1:6162"; };
    sameStore = second.store == feed.settings.store;
    sameSettings = second.log.level == "debug" && second.client.deadline_ms == 700;
    opened = several.networking.firewall.allowedTCPPorts == [ 8182 ];
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
    aKeyWithoutCertificateIsRefused = refused "`certFile` and `keyFile` go together" {
      registry.access.keyFile = "/var/lib/secrets/client.key";
    };
    aUserWithoutPasswordIsRefused = refused "`user` and `passwordFile` go together" {
      registry.access.user = "feed";
    };
    certificatesWithoutTlsAreRefused = refused "no endpoint of" {
      registry.endpoints = [ "192.168.50.10:2379" ];
      registry.access.caFile = "/var/lib/secrets/ca.crt";
    };
    halfTlsIsRefused = refused "all with https:// or none" {
      registry.endpoints = [
        "https://192.168.50.10:2379"
        "192.168.50.15:2379"
      ];
    };
    tlsOfAServerHereWantsTheAuthority = refused "registry.access.caFile" {
      registry.server = {
        enable = true;
        tls = { };
      };
      feed.enable = true;
    };
  };
}
