//! Compiles the .proto files (with protox, so this crate itself needs no `protoc`) and records the
//! commit that `--version` names.

use std::process::Command;

use prost::Message as _;

/// Each in a file of its own. No file imports another one.
const PACKAGES: [&str; 3] = ["feed", "profile", "topic"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(PACKAGES.map(|package| format!("{package}.proto")), ["proto"])?;
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    for package in PACKAGES {
        let mut own = descriptors.clone();
        own.file.retain(|file| file.package() == package);
        std::fs::write(out.join(format!("{package}.bin")), own.encode_to_vec())?;
    }
    // the feeds of a profile are passed on as they came, not copied
    tonic_prost_build::configure()
        .build_transport(false)
        .bytes(".profile.GetProfileResponse.feeds")
        .compile_fds(descriptors)?;

    println!("cargo::rerun-if-env-changed=MSA_COMMIT");
    for file in [".git/HEAD", ".git/logs/HEAD"] {
        // a file that is missing (a source archive) would rerun this script at every build
        if std::path::Path::new(file).exists() {
            println!("cargo::rerun-if-changed={file}");
        }
    }
    let commit = std::env::var("MSA_COMMIT").ok().or_else(commit_of_checkout);
    println!("cargo::rustc-env=MSA_COMMIT={}", commit.as_deref().unwrap_or("unknown"));
    Ok(())
}

/// Returns the short commit of the checkout, or nothing outside of one.
fn commit_of_checkout() -> Option<String> {
    let out = Command::new("git").args(["rev-parse", "--short=12", "HEAD"]).output().ok()?;
    let commit = String::from_utf8(out.stdout).ok()?;
    (out.status.success()).then(|| commit.trim().to_owned())
}
