# `nix run .#cluster`: runs the seven hosts as VMs on this machine, with the ports of `forwarded` on localhost and a Python
# prompt (`node_1.shell_interact()` opens a shell). The VMs end with the prompt. docs/cluster.md shows what to click.
{
  self,
  lib,
  pkgs,
}:
let
  ours = import ./tests/lib.nix { inherit self lib pkgs; };
  # the ports of this machine that lead to the same ports of a node
  forwarded = {
    node-4 = [ 8080 ];
    monitor = [
      9090
      3000
    ];
    tracer = [ 9411 ];
  };
  forward = port: {
    from = "host";
    # by default QEMU listens on every interface
    host = {
      address = "127.0.0.1";
      inherit port;
    };
    guest = { inherit port; };
  };
  # what differs from the real hosts: Prometheus and Zipkin, which have no password, are reached from this machine
  here = {
    monitor = {
      services.microservice-app.monitoring.prometheus.openFirewall = true;
      virtualisation.memorySize = 1536;
    };
    tracer = {
      services.microservice-app.tracing.openFirewall = true;
      virtualisation = {
        memorySize = 3072;
        cores = 2;
        diskSize = 4096;
      };
    };
  };
  cluster = pkgs.testers.runNixOSTest {
    name = "cluster";
    nodes = lib.mapAttrs (name: _: {
      imports = [
        (ours.host name)
        (here.${name} or { })
      ];
      virtualisation.forwardPorts = map forward (forwarded.${name} or [ ]);
    }) ours.site.nodes;
    # a week: the prompt decides when it ends
    globalTimeout = 7 * 24 * 3600;
    # the framework's type check does not know the prompt
    skipTypeCheck = true;
    testScript = ''
      import ptpython.repl

      # the consoles of seven machines would flood the prompt; `serial_stdout_on()` shows them
      serial_stdout_off()
      start_all()
      for machine, unit in [
          (node_4, "microservice-app-apigateway.service"),
          (monitor, "prometheus.service"),
          (monitor, "grafana.service"),
          (tracer, "zipkin.service"),
      ]:
          machine.wait_for_unit(unit)
      password = monitor.succeed("cat /var/lib/microservice-app-grafana/admin-password").strip()
      print(f"""
      gateway       http://localhost:8080   curl http://localhost:8080/api/topic/list
      Grafana       http://localhost:3000   user admin, password {password}
      Prometheus    http://localhost:9090   targets: http://localhost:9090/targets
      Zipkin        http://localhost:9411   answers after half a minute

      Machines: node_0 to node_4, monitor, tracer. A shell on one: node_1.shell_interact(). A fault: node_1.crash(),
      and node_1.start() again. Ctrl-D ends all of them.
      """)
      ptpython.repl.embed(driver.test_symbols(), {})
    '';
  };
in
{
  type = "app";
  program = lib.getExe' cluster.driver "nixos-test-driver";
  meta.description = "The seven hosts as virtual machines, with a prompt";
}
