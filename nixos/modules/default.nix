# The flake's nixosModules: one a role, to be used alone or together, and `default` with all of them.
self:
let
  # the flake's own package, unless the host says otherwise; the key keeps it one module when several
  # roles are imported
  package = {
    key = "microservice-app-package";
    _file = ./default.nix;
    imports = [
      (
        { lib, pkgs, ... }:
        {
          services.microservice-app.package =
            lib.mkDefault
              self.packages.${pkgs.stdenv.hostPlatform.system}.default;
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
    # monitoring, tracing and database: modules beside these, listed here
  ];
  registry = role ./registry.nix;
  service = role ./service.nix;
  gateway = role ./gateway.nix;
}
