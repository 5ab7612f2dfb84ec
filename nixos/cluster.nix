# `nix run .#cluster`: runs the five hosts as VMs on this machine, with the gateway at http://localhost:8080 and a Python
# prompt (`node_1.shell_interact()` opens a shell). The VMs end with the prompt.
{
  self,
  lib,
  pkgs,
}:
let
  ours = import ./tests/lib.nix { inherit self lib pkgs; };
  # the ports of this machine that lead to a node; add 9090 and 3000 (monitor) and 9411 (tracer) here
  forwarded = {
    node-4 = [
      {
        from = "host";
        # by default QEMU listens on every interface
        host.address = "127.0.0.1";
        host.port = 8080;
        guest.port = 8080;
      }
    ];
  };
  cluster = pkgs.testers.runNixOSTest {
    name = "cluster";
    nodes = lib.mapAttrs (name: _: {
      imports = [ (ours.node name) ];
      virtualisation.forwardPorts = forwarded.${name} or [ ];
    }) ours.site.nodes;
    # a week: the prompt decides when it ends
    globalTimeout = 7 * 24 * 3600;
    # the framework's type check does not know the prompt
    skipTypeCheck = true;
    testScript = ''
      import ptpython.repl

      start_all()
      node_4.wait_for_unit("microservice-app-apigateway.service")
      print("The gateway is at http://localhost:8080. Machines: node_0 to node_4; a shell on one:")
      print("node_1.shell_interact(). Ctrl-D ends all of them.")
      ptpython.repl.embed(driver.test_symbols(), {})
    '';
  };
in
{
  type = "app";
  program = lib.getExe' cluster.driver "nixos-test-driver";
  meta.description = "The five hosts as virtual machines, with a prompt";
}
