# The program, built with a profile of itself: once with counters, which run under load (benches/pgo), and once more with what
# they have counted.
{
  self,
  lib,
  pkgs,
}:
let
  package = self.packages.${pkgs.stdenv.hostPlatform.system}.microservice-app;
  build =
    name: flags:
    package.overrideAttrs (old: {
      pname = "microservice-app-${name}";
      env = old.env or { } // {
        RUSTFLAGS = flags;
        # macros and build scripts have counters, too
        LLVM_PROFILE_FILE = "/dev/null";
      };
    });
  counted = build "counted" "-Cprofile-generate";
  profile =
    pkgs.runCommand "microservice-app-profile"
      {
        nativeBuildInputs = [
          pkgs.curl
          pkgs.wrk
          # it has to understand what the compiler's LLVM writes
          (pkgs.rustc.llvm or pkgs.llvm)
        ];
      }
      ''
        bash ${../benches/pgo} train ${lib.getExe counted} raw
        llvm-profdata merge -o $out raw/*.profraw
      '';
in
build "pgo" "-Cprofile-use=${profile}"
