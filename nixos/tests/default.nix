# The VM tests, and the checks of the hosts that run without a VM.
{
  self,
  lib,
  pkgs,
}@arguments:
{
  app = import ./app.nix arguments;
}
