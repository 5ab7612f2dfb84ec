# What the VM tests share: nodes with the role modules and the addresses of the hosts, the timings, and the beginning of
# the test script.
{
  self,
  lib,
  pkgs,
}:
let
  site = import ../hosts/site.nix;

  # In seconds, used by the nodes and by the script. VMs share the cores of the builder, and without KVM they are ten
  # times slower: a test asserts order and final state, never speed.
  timings = {
    ttl = 15;
    # longest wait for a machine to boot and its units to be ready
    boot = 900;
    # longest wait for a change to be seen everywhere
    settle = 90;
    # longest time of one call
    call = 20;
    outage = 30;
  };

  machine =
    address:
    { lib, ... }:
    {
      networking.interfaces.eth1.ipv4.addresses = lib.mkOverride 0 [
        {
          inherit address;
          inherit (site) prefixLength;
        }
      ];
      networking.interfaces.eth1.ipv6.addresses = lib.mkOverride 0 [ ];
      # the test framework writes /etc/hosts from these
      networking.primaryIPAddress = lib.mkForce address;
      networking.primaryIPv6Address = lib.mkForce "";
    };
  # The secrets that a host expects. In a test everybody may know them.
  secrets = {
    systemd.tmpfiles.rules = [
      "d /var/lib/secrets 0700 root root"
    ]
    ++ map (name: "f+ /var/lib/secrets/${name} 0400 root root - secret-of-${name}") [
      "db-password"
      "webhook-token"
    ];
  };
in
rec {
  inherit
    machine
    secrets
    site
    timings
    ;

  # A host of site.nix as a machine.
  host =
    name:
    { config, ... }:
    {
      imports = [
        self.nixosModules.default
        ../hosts/common.nix
        (../hosts + "/${name}.nix")
        (machine site.nodes.${name})
        secrets
      ];
      # as in base.nix, which the machines leave out
      environment.systemPackages = [ config.services.microservice-app.package ];
    };

  # The same with the timings of a test.
  node = name: {
    imports = [
      (host name)
      slow
    ];
  };

  # Times that machines keep which are ten times slower than real ones.
  slow =
    { config, lib, ... }:
    {
      # the first start makes the database, in more than the two minutes of NixOS' module
      systemd.services = lib.mkIf config.services.postgresql.enable {
        postgresql.serviceConfig.TimeoutStartSec = timings.boot;
      };
      services.microservice-app = {
        # it looks at every control group again and again
        exporters.cadvisor.enable = lib.mkOverride 90 false;
        settings = {
          registry = {
            ttl_s = timings.ttl;
            keepalive_ms = timings.ttl * 1000 / 3;
            timeout_ms = 5000;
            watch_silence_ms = timings.ttl * 1000;
          };
          client = {
            # equal shares, as in the original: the test counts them
            balancer = "round_robin";
            deadline_ms = timings.call * 500;
            connect_timeout_ms = 5000;
            keepalive_timeout_ms = 10000;
          };
          store.timeout_ms = timings.call * 1000;
        };
      };
    };

  # A machine without any role. `steady-calls URL...` sends GETs until /tmp/enough exists. For each call it appends a
  # line to /tmp/calls: the status, curl's exit code, and the header x-degraded.
  outsider = address: {
    imports = [
      (machine address)
      caller
    ];
  };
  caller = {
    environment.systemPackages = [
      pkgs.curl
      (pkgs.writeShellScriptBin "steady-calls" ''
        until [ -e /tmp/enough ]; do
          for url in "$@"; do
            ${lib.getExe pkgs.curl} --silent --output /dev/null --max-time ${toString timings.call} \
              --write-out '%{http_code} %{exitcode} %header{x-degraded}\n' "$url" >> /tmp/calls
          done
        done
      '')
    ];
  };

  # Builds a test. `script` follows the timings and the helpers that all scripts use; `from` is the machine that calls
  # the gateway.
  test =
    {
      name,
      nodes,
      script,
      from ? "client",
    }:
    let
      variable = lib.replaceStrings [ "-" ] [ "_" ];
    in
    pkgs.testers.runNixOSTest {
      inherit name nodes;
      globalTimeout = 3 * 3600;
      testScript = lib.concatStrings (
        lib.mapAttrsToList (what: seconds: "${lib.toUpper what} = ${toString seconds}\n") timings
        ++ [
          "ADDRESSES = ${builtins.toJSON site.nodes}\n"
          "NODES = {${
            lib.concatMapStringsSep ", " (node: "\"${node}\": ${variable node}") (lib.attrNames nodes)
          }}\n"
          "CALLER = NODES[\"${from}\"]\n"
          (builtins.readFile ./prelude.py)
          script
          "\nreport_void()\n"
        ]
      );
    };
}
