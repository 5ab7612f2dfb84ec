//! The ways of running the application without Nix: the image, compose, Kubernetes. `files` reads what is shipped;
//! the rest runs it, by `make test-containers`.

mod apiserver;
mod compose;
mod files;
mod image;
mod manifests;
mod pods;

use std::path::Path;

use crate::kit::skip;

/// Returns true if deploy/ is here. Nix builds the tests from a part of the repository.
fn shipped() -> bool {
    let there = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/compose.yml").exists();
    if !there {
        skip("containers and Kubernetes", "this is a part of the repository");
    }
    there
}
