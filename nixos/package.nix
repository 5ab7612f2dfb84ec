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
        (fileset.maybeMissing ../tests/check-nix)
        (fileset.maybeMissing ../tests/deps)
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

  # programs that the tests start
  testTools = [
    pkgs.curl
    pkgs.etcd
  ];
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
        # some compare the README with the program
        src = sourceOf (
          fileset.unions [
            crateAndTests
            ../README.md
          ]
        );
        nativeCheckInputs = testTools;
      }
    );
  };
in
{
  inherit package checks;
  shell = craneLib.devShell {
    inherit checks;
    packages = testTools ++ [
      pkgs.deadnix
      pkgs.jq
      pkgs.nixfmt
    ];
  };
}
