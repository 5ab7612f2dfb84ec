# The Rust package and its checks, by crane. Dependencies are one derivation, shared by all others, and
# rebuilt only when Cargo.lock or Cargo.toml changes.
{ pkgs, craneLib }:
let
  inherit (pkgs) lib stdenv;
  inherit (lib) fileset;

  # What cargo needs to build the crate, and nothing else: editing a NixOS module or a page rebuilds no
  # Rust. (crane's own filter would drop the .proto files.)
  crate = fileset.unions [
    ../Cargo.lock
    ../Cargo.toml
    ../proto
    ../src
  ];
  # the checks also see the tests, but not the scripts beside them
  crateAndTests = fileset.unions [
    crate
    (fileset.difference (fileset.maybeMissing ../tests) (
      fileset.unions [
        (fileset.maybeMissing ../tests/check-dashboards)
        (fileset.maybeMissing ../tests/check-nix)
        (fileset.maybeMissing ../tests/deps)
        (fileset.maybeMissing ../tests/parts)
      ]
    ))
    (fileset.maybeMissing ../benches)
    (fileset.maybeMissing ../.clippy.toml)
    (fileset.maybeMissing ../.rustfmt.toml)
  ];
  sourceOf =
    files:
    fileset.toSource {
      root = ../.;
      fileset = files;
    };
  src = sourceOf crate;

  common = {
    src = sourceOf crateAndTests;
    strictDeps = true;
    # etcd-client compiles etcd's own protos, and so wants protoc and the well-known types
    nativeBuildInputs = [ pkgs.protobuf ];
  };
  cargoArtifacts = craneLib.buildDepsOnly common;
  withDeps = common // {
    inherit cargoArtifacts;
  };

  package = craneLib.buildPackage (
    withDeps
    // {
      inherit src;
      nativeBuildInputs = common.nativeBuildInputs ++ [ pkgs.installShellFiles ];
      # `--version` names the sources by hash, not the commit: with the commit in it, every commit, even
      # one to a module, would rebuild the crate. Hosts name theirs: `nixos-version --configuration-revision`.
      env.MSA_COMMIT = "src-${
        builtins.substring 0 12 (builtins.unsafeDiscardStringContext (baseNameOf src.outPath))
      }";
      # the tests are the check `tests`, so that a host waits for none of them
      doCheck = false;
      postInstall = lib.optionalString (stdenv.buildPlatform.canExecute stdenv.hostPlatform) ''
        app=$out/bin/microservice-app
        installShellCompletion --cmd microservice-app \
          --bash <($app completions bash) --fish <($app completions fish) --zsh <($app completions zsh)
        $app man > microservice-app.1
        installManPage microservice-app.1
      '';
      meta = {
        description = "Microservice system with discovery, resilience and telemetry";
        license = lib.licenses.asl20;
        mainProgram = "microservice-app";
        platforms = lib.platforms.linux;
      };
    }
  );

  # Programs that the tests start. Two go by Debian's names there.
  debianNames = pkgs.runCommand "debian-names" { } ''
    mkdir -p $out/bin
    ln -s ${lib.getExe' pkgs.prometheus-alertmanager "alertmanager"} $out/bin/prometheus-alertmanager
    ln -s ${lib.getExe' pkgs.prometheus-node-exporter "node_exporter"} $out/bin/prometheus-node-exporter
  '';
  testTools = [
    debianNames
    pkgs.curl
    pkgs.etcd
    pkgs.jre_headless
    pkgs.libfaketime
    pkgs.prometheus
    pkgs.prometheus-alertmanager # amtool
    pkgs.prometheus.cli # promtool
    pkgs.util-linux # tests/stack: flock, setsid
  ];
  # the file that tests/deps fetches where ZIPKIN_JAR names none
  zipkinJar = pkgs.fetchurl {
    url = "mirror://maven/io/zipkin/zipkin-server/3.6.1/zipkin-server-3.6.1-exec.jar";
    hash = "sha256-2DJuDtT0OFXbqBIo9ohVRwblJXinx4LZqQtz+GgGVKE=";
  };
  checks = {
    inherit package;
    clippy = craneLib.cargoClippy (
      withDeps // { cargoClippyExtraArgs = "--all-targets -- --deny warnings"; }
    );
    fmt = craneLib.cargoFmt { inherit (common) src; };
    doc = craneLib.cargoDoc (withDeps // { env.RUSTDOCFLAGS = "--deny warnings"; });
    tests = craneLib.cargoTest (
      withDeps
      // {
        # some compare pages with the program, some run its rules and dashboards
        src = sourceOf (
          fileset.unions [
            crateAndTests
            ../README.md
            ../docs
            ./modules
            ./monitoring
          ]
        );
        nativeCheckInputs = testTools;
        env.ZIPKIN_JAR = zipkinJar;
      }
    );
  };
in
{
  inherit package checks;
  shell = craneLib.devShell {
    inherit checks;
    ZIPKIN_JAR = zipkinJar;
    packages = testTools ++ [
      pkgs.deadnix
      pkgs.jq
      pkgs.nixfmt
    ];
  };
}
