# What must be true of the processes of this host. A process is one of lib.nix, with `option`, the path of its options,
# and `role`.
{
  lib,
  cfg,
  ip,
}:
let
  # `settings.SECTION.addr` would move a listener that the firewall, the socket and the other checks look for elsewhere
  sameAddress =
    process: section: prefix:
    { address, port, ... }:
    let
      set = process.settings.${section}.addr;
      want = ip.hostPort address port;
    in
    {
      assertion = set == want;
      message = "${process.option}.settings.${section}.addr is ${toString set}, but `${prefix}address` and `${prefix}port` say ${want}, for which the firewall is opened: set those instead.";
    };
  # somebody whom the firewall lets through would find nobody
  sameFamily =
    process: prefix:
    { address, allowFrom, ... }:
    let
      lost = lib.filter (source: !lib.elem (ip.familyOf source) (ip.familiesAt address)) allowFrom;
    in
    {
      assertion = lost == [ ];
      message = "${process.option}.${prefix}allowFrom names ${lib.concatStringsSep ", " lost}, but `${prefix}address` is ${address}, which is ${lib.head (ip.familiesAt address)} only.";
    };
  # an open port that leads to loopback only
  reachable =
    process: prefix:
    {
      address,
      allowFrom,
      openFirewall ? false,
      ...
    }:
    {
      assertion = allowFrom != [ ] || openFirewall -> !(lib.hasPrefix "127." address || address == "::1");
      message = "${process.option}: the firewall opens `${prefix}port`, but `${prefix}address` is ${address}, which no other host can reach.";
    };
  # the unit has no capability
  unprivileged = option: port: {
    assertion = port >= 1024;
    message = "${option} is ${toString port}: ports below 1024 need a capability, which the unit does not have.";
  };
  adminPort =
    {
      option,
      admin,
      port,
      ...
    }:
    if admin.port == 0 then
      {
        assertion = false;
        message = "${option}.admin.port has to be set: with port ${toString port} its default, `port` - 2020, would be below 1024.";
      }
    else
      unprivileged "${option}.admin.port" admin.port;

  # the rest of the file system is read-only for the unit
  inState =
    process: key: path:
    let
      state = "/var/lib/microservice-app-${process.role}/";
    in
    {
      assertion = lib.hasPrefix state path && !lib.hasInfix "/../" path;
      message = "${process.option}.settings.${key} is ${path}, which the unit cannot write: it has to be below ${state}.";
    };
  store =
    process:
    let
      url = process.settings.store.url;
    in
    lib.optional (lib.hasPrefix "sqlite:" url) (
      inState process "store.url" (lib.removePrefix "sqlite:" url)
    )
    ++ lib.optional (lib.hasPrefix "postgres" url) {
      # checked here as well because whatever is evaluated may end up in the Nix store, which everyone can read
      assertion = builtins.match "[a-z]+://[^/@]*:[^/@]*@.*|.*[?&]password=.*" url == null;
      message = "${process.option}.settings.store.url holds a password, which everyone on the host could read: name a file in services.microservice-app.store.access.passwordFile.";
    };
  registryKnown = option: {
    assertion = cfg.registry.endpoints != [ ];
    message = "${option} needs to know etcd: set services.microservice-app.registry.endpoints = [ \"host:2379\" ];";
  };
in
{
  inherit registryKnown;

  # The assertions for a list of processes.
  #   listen  section of the settings that has the address to listen on
  of =
    listen:
    lib.concatMap (
      process:
      [
        (sameAddress process listen "" process)
        (sameAddress process "admin" "admin." process.admin)
        (sameFamily process "" process)
        (sameFamily process "admin." process.admin)
        (reachable process "" process)
        (reachable process "admin." process.admin)
        (adminPort process)
        (inState process "registry.snapshot_file" process.settings.registry.snapshot_file)
        {
          assertion = (cfg.package.meta.mainProgram or null) == "microservice-app";
          message = "services.microservice-app.package is ${cfg.package.name}, whose `meta.mainProgram` is not microservice-app.";
        }
        (registryKnown process.option)
      ]
      ++ lib.optional (listen == "grpc") (unprivileged "${process.option}.port" process.port)
      ++ lib.optionals (process.settings ? store.url) (store process)
    );
}
