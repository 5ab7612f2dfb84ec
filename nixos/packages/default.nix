# The packages that nixpkgs lacks, or has in another version.
{ pkgs }:
{
  zipkin-server = pkgs.callPackage ./zipkin-server.nix { };
  zipkin-dependencies = pkgs.callPackage ./zipkin-dependencies { };
}
