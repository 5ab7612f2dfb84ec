# What a host tells the monitoring about itself: node exporter, cAdvisor, and etcd's own metrics where etcd runs. Uses
# NixOS' modules, and adds a sandbox.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkDefault mkOption types;
  cfg = config.services.microservice-app;
  exporters = cfg.exporters;
  ours = import ./lib.nix { inherit config lib pkgs; };
  weak = import ./weak.nix { inherit lib; };

  etcdHere = cfg.registry.server.enable;
  port =
    what: default:
    mkOption {
      type = types.port;
      inherit default;
      example = default + 1;
      description = "TCP port of ${what}.";
    };
in
{
  imports = [
    ./common.nix
    ./registry.nix
  ];

  options.services.microservice-app.exporters = {
    enable = lib.mkEnableOption "node exporter on this host, and etcd's metrics if etcd runs here";
    allowFrom = ours.allowFromOption "the ports of the exporters, for the monitoring hosts,";
    node.port = port "node exporter" 9100;
    etcd.port = port "etcd's metrics, which are not behind etcd's TLS and users" 2381;
    cadvisor = {
      enable = lib.mkEnableOption "cAdvisor, which tells how much each unit and each container uses";
      port = port "cAdvisor" 9180;
      address = mkOption {
        type = types.str;
        default = if exporters.allowFrom == [ ] then "127.0.0.1" else "0.0.0.0";
        defaultText = lib.literalMD "loopback; every interface with IPv4 if `exporters.allowFrom` is not empty";
        example = "[::]";
        description = "IP address of cAdvisor.";
      };
    };
  };

  config = lib.mkIf exporters.enable {
    services.microservice-app.listeners =
      map
        (exporter: {
          option = "services.microservice-app.exporters.${exporter}";
          inherit (exporters.${exporter}) port;
          address = if exporters.allowFrom == [ ] then "127.0.0.1" else "::";
          from = exporters.allowFrom;
        })
        ([ "node" ] ++ lib.optional etcdHere "etcd" ++ lib.optional exporters.cadvisor.enable "cadvisor");

    services.prometheus.exporters.node = {
      enable = true;
      inherit (exporters.node) port;
      # no address: every interface, IPv4 and IPv6
      listenAddress = mkDefault (if exporters.allowFrom == [ ] then "127.0.0.1" else "");
    };
    # It reads the counters of the whole machine, so /proc and /sys stay as they are, and how far its clock is off
    systemd.services.prometheus-node-exporter.serviceConfig =
      weak [
        "ProcSubset"
        "ProtectClock"
        "ProtectProc"
        "RestrictAddressFamilies"
        "SystemCallFilter"
      ]
      // {
        SystemCallFilter = lib.mkOverride 1100 (
          (import ./hardening.nix).SystemCallFilter ++ [ "adjtimex" ]
        );
      };

    services.etcd.extraConf = lib.mkIf etcdHere {
      LISTEN_METRICS_URLS = mkDefault "http://${
        if exporters.allowFrom == [ ] then "127.0.0.1" else "0.0.0.0"
      }:${toString exporters.etcd.port}";
    };

    services.cadvisor = lib.mkIf exporters.cadvisor.enable {
      enable = true;
      listenAddress = mkDefault exporters.cadvisor.address;
      inherit (exporters.cadvisor) port;
      extraOptions = [
        # looks at what changes slowly less often: the default costs a few per cent of a core
        "-housekeeping_interval=10s"
        # of a unit, the counters of the dashboards and no more
        "-disable_metrics=advtcp,cpu_topology,cpuset,hugetlb,memory_numa,percpu,process,referenced_memory,resctrl,sched,tcp,udp"
      ];
    };
    # root, for it reads the control groups of all users, but without a capability
    systemd.services.cadvisor.serviceConfig = lib.mkIf exporters.cadvisor.enable (
      weak [
        "PrivateUsers"
        "ProcSubset"
        "ProtectProc"
      ]
      // {
        Restart = mkDefault "always";
      }
    );
  };
}
