# The Rust package and its checks, built by crane. The dependencies are one derivation that all others share;
# it is rebuilt only when Cargo.lock or Cargo.toml changes.
{ pkgs, craneLib }:
let
  inherit (pkgs) lib stdenv;
  inherit (lib) fileset;

  # What cargo needs to build the crate, and nothing else, so that a change to a NixOS module or a page rebuilds
  # no Rust. (crane's own filter would drop the .proto files.)
  crate = fileset.unions [
    ../Cargo.lock
    ../Cargo.toml
    ../benches # Cargo.toml names a target in it
    ../proto
    ../src
  ];
  # The sources of the checks: the tests as well, without the scripts beside them.
  crateAndTests = fileset.unions [
    crate
    (fileset.difference (fileset.maybeMissing ../tests) (
      fileset.unions [
        (fileset.maybeMissing ../tests/check-dashboards)
        (fileset.maybeMissing ../tests/check-nix)
        (fileset.maybeMissing ../tests/deps)
        (fileset.maybeMissing ../tests/fuzz)
        (fileset.maybeMissing ../tests/interop/build)
        (fileset.maybeMissing ../tests/interop/go)
        (fileset.maybeMissing ../tests/interop/node)
        (fileset.maybeMissing ../tests/interop/tools)
        (fileset.maybeMissing ../tests/parts)
        (fileset.maybeMissing ../tests/web)
      ]
    ))
    # what the fuzzers call, and what they have kept: the tests call it, too
    (fileset.maybeMissing ../fuzz)
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
    # etcd-client compiles etcd's .proto files: it needs protoc and the well-known types.
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
      # `--version` shows a hash of the sources instead of the commit: otherwise every commit, even one that
      # changes only a NixOS module, would rebuild the crate. A host shows its commit with
      # `nixos-version --configuration-revision`.
      env.MSA_COMMIT = "src-${
        builtins.substring 0 12 (builtins.unsafeDiscardStringContext (baseNameOf src.outPath))
      }";
      # The tests are a check of their own, `tests`: installing a host does not wait for them.
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

  # The bill of materials of the program. cargo-cyclonedx reads what cargo resolves, and builds nothing.
  sbom = craneLib.mkCargoDerivation {
    src = sourceOf (
      fileset.unions [
        crate
        ../deploy/sbom
      ]
    );
    pnameSuffix = "-sbom";
    cargoArtifacts = null;
    doInstallCargoArtifacts = false;
    nativeBuildInputs = [
      pkgs.cargo-cyclonedx
      pkgs.python3
    ];
    buildPhaseCargoCommand = "TARGET=${stdenv.hostPlatform.rust.rustcTarget} bash deploy/sbom sbom.json";
    installPhaseCommand = "install -D sbom.json $out/sbom.json";
  };

  # Programs that the tests start. The tests call two of them by the names that Debian gives them.
  debianNames = pkgs.runCommand "debian-names" { } ''
    mkdir -p $out/bin
    ln -s ${lib.getExe' pkgs.prometheus-alertmanager "alertmanager"} $out/bin/prometheus-alertmanager
    ln -s ${lib.getExe' pkgs.prometheus-node-exporter "node_exporter"} $out/bin/prometheus-node-exporter
  '';
  testTools = [
    debianNames
    pkgs.curl
    pkgs.etcd
    pkgs.haproxy
    pkgs.jre_headless
    pkgs.libfaketime
    pkgs.nginx
    pkgs.openssl
    pkgs.patroni
    pkgs.postgresql
    pkgs.prometheus
    pkgs.prometheus-alertmanager # amtool
    pkgs.prometheus.cli # promtool
    (pkgs.python3.withPackages (packages: [
      packages.grpcio
      packages.protobuf
    ]))
    pkgs.sqlite # sqlite3
    pkgs.util-linux # deploy/stack: flock, setsid; script
  ];
  # The file that tests/deps fetches when ZIPKIN_JAR is not set.
  zipkinJar = pkgs.fetchurl {
    url = "mirror://maven/io/zipkin/zipkin-server/3.6.1/zipkin-server-3.6.1-exec.jar";
    hash = "sha256-2DJuDtT0OFXbqBIo9ohVRwblJXinx4LZqQtz+GgGVKE=";
  };
  checks = {
    inherit package sbom;
    clippy = craneLib.cargoClippy (
      withDeps // { cargoClippyExtraArgs = "--all-targets -- --deny warnings"; }
    );
    fmt = craneLib.cargoFmt { inherit (common) src; };
    doc = craneLib.cargoDoc (withDeps // { env.RUSTDOCFLAGS = "--deny warnings"; });
    tests = craneLib.cargoTest (
      withDeps
      // {
        # Some tests compare the pages with the program, others run the rules, the dashboards and the stack.
        src = sourceOf (
          fileset.unions [
            crateAndTests
            ../README.md
            (fileset.maybeMissing ../CHANGELOG.md)
            (fileset.maybeMissing ../CONTRIBUTING.md)
            (fileset.maybeMissing ../SECURITY.md)
            ../docs
            ../deploy
            ./modules
          ]
        );
        nativeCheckInputs = testTools;
        env.ZIPKIN_JAR = zipkinJar;
      }
    );
  };
in
{
  inherit package checks sbom;
  shell = craneLib.devShell {
    inherit checks;
    ZIPKIN_JAR = zipkinJar;
    packages = testTools ++ [
      pkgs.cargo-deny
      pkgs.chromedriver
      pkgs.chromium
      pkgs.deadnix
      pkgs.go
      pkgs.jq
      pkgs.nixfmt
      pkgs.nodejs
    ];
  };
}
