# The sandbox of hardening.nix for a unit of a NixOS module: what that module sets itself wins, even where it sets a mere
# default. `except` names the directives that the service does not bear.
{ lib }:
except: lib.mapAttrs (_: lib.mkOverride 1100) (removeAttrs (import ./hardening.nix) except)
