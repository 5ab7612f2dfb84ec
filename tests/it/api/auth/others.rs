//! Tokens and key sets that others make: PyJWT and jose.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::super::openapi::{file, part, succeed};
use super::Secured;
use crate::kit::authority::replace;
use crate::kit::token::{AUDIENCE, ISSUER, Signer};
use crate::kit::wait_for;

/// Publishes the keys that a program printed, and sends its tokens.
async fn try_tokens(printed: &str) {
    let printed: Value = serde_json::from_str(printed).expect("JSON");
    let first = Signer::es256("first");
    let secured = Secured::start(&[&first], |_| {}).await;
    replace(&secured.file.path, &printed["jwks"].to_string());
    wait_for("the keys are read", || async {
        (secured.app.metric("http_auth_keys").await > 2.5).then_some(())
    })
    .await;
    let tokens = printed["tokens"].as_array().expect("tokens");
    assert!(tokens.len() >= 10, "{printed}");
    for token in tokens {
        let answer = secured.list(token["token"].as_str().expect("a token")).await;
        assert_eq!(
            u64::from(answer.status.as_u16()),
            token["status"].as_u64().unwrap(),
            "{token}: {answer:?}"
        );
    }
}

#[tokio::test]
async fn tokens_of_pyjwt_are_judged_as_it_says() {
    let Some(python) = part("python/bin/python", "tokens of PyJWT are judged as it says") else { return };
    let mut command = Command::new(python);
    command.arg(file("tests/web/python/tokens.py")).args([ISSUER, AUDIENCE]);
    try_tokens(&succeed(command).await).await;
}

#[tokio::test]
async fn tokens_of_jose_are_judged_as_it_says() {
    let Some(tsc) = part("node/node_modules/.bin/tsc", "tokens of jose are judged as it says") else {
        return;
    };
    // beside the packages, which it imports
    let modules = tsc.ancestors().nth(3).map(Path::to_owned).expect("the folder of node_modules");
    let dir = tempfile::tempdir_in(modules).unwrap();
    std::fs::copy(file("tests/web/node/tokens.mjs"), dir.path().join("tokens.mjs")).unwrap();
    let mut command = Command::new("node");
    command.arg("--no-warnings"); // Node 18 has Ed25519 as an experiment, and says so among the tokens
    command.arg(dir.path().join("tokens.mjs")).args([ISSUER, AUDIENCE]);
    try_tokens(&succeed(command).await).await;
}
