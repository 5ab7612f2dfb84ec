# The VM tests, and the checks of the hosts that run without a VM.
{ pkgs, ... }@arguments:
import ./golden.nix arguments
// {
  app = import ./app.nix arguments;
  ha = import ./ha.nix arguments;
  monitoring = import ./monitoring.nix arguments;
  trust = import ./trust.nix arguments;
  upgrade = import ./upgrade.nix arguments;
}
# nixpkgs has OpenSearch for no other platform
// pkgs.lib.optionalAttrs pkgs.stdenv.hostPlatform.isx86_64 {
  tracing = import ./tracing.nix arguments;
}
