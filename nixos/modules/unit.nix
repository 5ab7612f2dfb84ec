# The unit of a process: `microservice-app ROLE` with its settings file, in a sandbox.
{
  cfg,
  lib,
  pkgs,
  stateOf,
  tlsGroupOf,
  toml,
  withStore,
  etcdCredentials,
}:
let
  inherit (lib) mkDefault;

  # The settings file, checked by the program: a wrong key or value fails the build of the system, and the running unit
  # keeps its old file.
  settingsFile =
    {
      name,
      role,
      settings,
    }:
    let
      file = toml.generate "${name}.toml" settings;
    in
    # a program for another platform cannot run here; it checks the file when it starts
    if pkgs.stdenv.buildPlatform.canExecute cfg.package.stdenv.hostPlatform then
      pkgs.runCommand "${name}.toml" { } ''
        ${lib.getExe cfg.package} check-config --role ${role} --config ${file}
        cp ${file} $out
      ''
    else
      file;

  # single values give way to the host's own, lists are joined with them
  overridable = lib.mapAttrs (_: value: if lib.isList value then value else mkDefault value);
in
{
  unit =
    {
      name,
      role,
      description,
      settings,
      credentials,
    }:
    let
      stored = withStore { inherit settings credentials; };
    in
    {
      description = mkDefault description;
      wantedBy = [ "multi-user.target" ];
      # the address to advertise is found by the route to the registry; the unit does not wait for etcd itself
      wants = [ "network-online.target" ];
      after = [ "network-online.target" ];
      # by default, a switch to a new generation stops every changed unit before the activation and starts it after
      # it; that would also stop the gateway's socket
      stopIfChanged = false;
      # no limit of restarts: the unit must come back after an outage of any length
      startLimitIntervalSec = mkDefault 0;
      serviceConfig = overridable (
        import ./hardening.nix
        // {
          # ready means: settings valid, listeners bound, registration started
          Type = "notify";
          ExecStart = "${lib.getExe cfg.package} ${role} --config ${
            settingsFile {
              inherit name role;
              inherit (stored) settings;
            }
          }";
          Restart = "always";
          # A crashed process is back within 200 ms. If it ends again and again, because a port is taken or a secret
          # is missing, the waits grow to 10 s. A process that has run for 10 s makes them short again.
          RestartSec = "100ms";
          RestartSteps = 6;
          RestartMaxDelaySec = "10s";
          # status 2: the settings are wrong, and a restart does not change them
          RestartPreventExitStatus = 2;
          WatchdogSec = 30;
          # the process itself ends its calls within its grace period
          TimeoutStopSec = (settings.shutdown.grace_ms or 10000) / 1000 + 10;
          LimitNOFILE = 65536;

          DynamicUser = true;
          User = stateOf role;
          StateDirectory = stateOf role;
          StateDirectoryMode = "0700";
          # to read the certificate of the role where it is
          SupplementaryGroups = lib.optional (cfg.tls.mode != "off") (tlsGroupOf role);
          LoadCredential = lib.mapAttrsToList (id: path: "${id}:${path}") (
            lib.optionalAttrs (cfg.adminTokenFile != null) { admin-token = cfg.adminTokenFile; }
            // etcdCredentials
            // stored.credentials
          );
        }
      );
    };
}
