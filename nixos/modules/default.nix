# The flake's nixosModules: one for each role, usable alone or together, and `default` with all of them.
self:
let
  # The host's own `pkgs.microservice-app`, if an overlay has one, else the flake's. The key makes this one module even if several roles import it.
  package = {
    key = "microservice-app-package";
    _file = ./default.nix;
    imports = [
      (
        { lib, pkgs, ... }:
        {
          services.microservice-app.package = lib.mkDefault (
            pkgs.microservice-app or self.packages.${pkgs.stdenv.hostPlatform.system}.default
          );
        }
      )
    ];
  };
  role = file: {
    imports = [
      file
      package
    ];
  };
in
{
  default.imports = [
    self.nixosModules.registry
    self.nixosModules.service
    self.nixosModules.gateway
    self.nixosModules.exporters
    self.nixosModules.monitoring
    self.nixosModules.tracing
    self.nixosModules.database
  ];
  registry = role ./registry.nix;
  service = role ./service.nix;
  gateway = role ./gateway.nix;
  exporters = role ./exporters.nix;
  monitoring = role ./monitoring.nix;
  tracing = role ./tracing.nix;
  database = role ./database.nix;
}
