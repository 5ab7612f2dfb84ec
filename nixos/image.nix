# The OCI image: the program, which is its own health check, and a directory for data. The arguments choose the role;
# without arguments one process runs all roles.
#   nix build .#oci-image && ./result | podman load
{
  self,
  lib,
  pkgs,
}:
let
  package = self.packages.${pkgs.stdenv.hostPlatform.system}.default;
  # a user that no host has; only /data belongs to it
  user = "65532:65532";
in
pkgs.dockerTools.streamLayeredImage {
  name = "microservice-app";
  tag = package.version;
  # brings /etc/nsswitch.conf, without which the names of other containers are not found
  contents = [ pkgs.dockerTools.fakeNss ];
  fakeRootCommands = ''
    mkdir data
    chown ${user} data
  '';
  config = {
    Entrypoint = [ (lib.getExe package) ];
    Cmd = [
      "up"
      "--http-addr=:8080"
      "--data-dir=/data"
    ];
    User = user;
    WorkingDir = "/data";
    Volumes."/data" = { };
    ExposedPorts = {
      "8080/tcp" = { };
      "8082/tcp" = { };
      "8083/tcp" = { };
      "8084/tcp" = { };
    };
    # the same admin port for every role, so that one health check works for all; reachable in the container only
    Env = [ "MSA__ADMIN__ADDR=127.0.0.1:6060" ];
    Healthcheck = {
      Test = [
        "CMD"
        (lib.getExe package)
        "check-health"
      ];
      # nanoseconds
      Interval = 10 * 1000000000;
      Timeout = 3 * 1000000000;
      StartPeriod = 5 * 1000000000;
      Retries = 3;
    };
  };
}
