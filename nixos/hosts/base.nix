# What every host has, whatever its role: a fixed address, ssh for the administrator, garbage collection, tools. The VM
# tests leave this file out: the test framework has its own network and its own access.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkOption types;
  cfg = config.site;
in
{
  options.site = {
    administratorKeys = mkOption {
      type = types.listOf (types.strMatching "(ssh-|ecdsa-|sk-)[^\n]+");
      default = [ ];
      example = [ "ssh-ed25519 AAAAC3... you@example.org" ];
      description = "Public SSH keys that may log in as root. Required: there is no other way to log in.";
    };
    address = mkOption {
      type = types.str;
      example = "192.168.50.10";
      description = "IPv4 address of this host.";
    };
    nodes = mkOption {
      type = types.attrsOf types.str;
      default = { };
      example = {
        node-0 = "192.168.50.10";
      };
      description = "Name and address of every host, for /etc/hosts.";
    };
    prefixLength = mkOption {
      type = types.ints.between 1 32;
      default = 24;
      example = 16;
      description = "Length of the network's prefix.";
    };
    gateway = mkOption {
      type = types.str;
      example = "192.168.50.1";
      description = "Address of the router.";
    };
    nameservers = mkOption {
      type = types.listOf types.str;
      default = [ ];
      example = [ "192.168.50.1" ];
      description = "Addresses of the name servers.";
    };
    interface = mkOption {
      type = types.str;
      default = "en*";
      example = "enp1s0";
      description = "Name of the network card; may be a pattern.";
    };
  };

  config = {
    assertions = [
      {
        assertion = cfg.administratorKeys != [ ];
        message = "site.administratorKeys is empty: nobody could log in to ${config.networking.hostName}. Put your public SSH key into nixos/hosts/site.nix.";
      }
    ];
    # with the placeholder the hosts evaluate, so that they can be checked, but they do not build
    system.checks = lib.optional (lib.any (lib.hasInfix "REPLACE-ME") cfg.administratorKeys) (
      pkgs.runCommand "administrator-key" { } ''
        echo "Put your public SSH key into nixos/hosts/site.nix: the placeholder would lock you out." >&2
        exit 1
      ''
    );

    services.openssh = {
      enable = true;
      settings = {
        PasswordAuthentication = false;
        KbdInteractiveAuthentication = false;
        PermitRootLogin = "prohibit-password";
      };
    };
    users.mutableUsers = false;
    users.users.root.openssh.authorizedKeys.keys = cfg.administratorKeys;

    networking = {
      useDHCP = false;
      useNetworkd = true;
      inherit (cfg) nameservers;
      hosts = lib.mapAttrs' (name: address: lib.nameValuePair address [ name ]) cfg.nodes;
    };
    systemd.network.networks."10-lan" = {
      matchConfig.Name = cfg.interface;
      address = [ "${cfg.address}/${toString cfg.prefixLength}" ];
      gateway = [ cfg.gateway ];
    };

    nix.settings.experimental-features = [
      "nix-command"
      "flakes"
    ];
    # keeps a month of generations to roll back to, and the disk from filling up
    nix.gc = {
      automatic = true;
      dates = "weekly";
      options = "--delete-older-than 30d";
    };

    environment.systemPackages = [
      config.services.microservice-app.package
      pkgs.curl
      pkgs.sqlite # backup of the stores
    ];

    system.stateVersion = "26.05";
  };
}
