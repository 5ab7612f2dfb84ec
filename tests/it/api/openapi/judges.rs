//! Tools of others that judge the description and the gateway by it: a linter and schemathesis.

use std::process::Command;

use super::{file, part, succeed};
use crate::kit::process::Process;
use crate::kit::skip;

/// Returns true if the Node of this machine can run the linter.
fn has_node() -> bool {
    let recent = "const [a, b] = process.versions.node.split('.').map(Number); process.exit(a > 20 || a == 20 && b >= 19 ? 0 : 1)";
    Command::new("node").args(["-e", recent]).status().is_ok_and(|status| status.success())
}

#[tokio::test]
async fn a_linter_finds_nothing_in_the_description() {
    const CHECK: &str = "redocly judges the description of the API";
    let Some(redocly) = part("node/node_modules/.bin/redocly", CHECK) else { return };
    if !has_node() {
        return skip(CHECK, "it wants Node 20.19 or newer");
    }
    let dir = tempfile::tempdir().unwrap();
    let lint = |path: &std::path::Path| {
        let mut command = Command::new(&redocly);
        command
            .args(["lint", "--extends=recommended-strict", "--format=stylish"])
            .arg(path)
            .current_dir(dir.path());
        // it asks nobody for a newer version of itself
        command.env("REDOCLY_SUPPRESS_UPDATE_NOTICE", "true").env("REDOCLY_TELEMETRY", "off");
        command
    };
    let said = succeed(lint(&file("docs/openapi.json"))).await;
    // with these rules each finding is an error
    assert!(said.contains("Your API description is valid"), "{said}");
    // it does see a fault
    let text = std::fs::read_to_string(file("docs/openapi.json")).unwrap();
    let broken = dir.path().join("broken.json");
    std::fs::write(&broken, text.replace("#/components/schemas/Feeds", "#/components/schemas/Fleeds"))
        .unwrap();
    let mut command = lint(&broken);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    assert!(!output.status.success(), "{output:?}");
}

/// All checks, in all phases, with cases that are the same at every run; `tests/web/python/schemathesis.toml` says how.
#[tokio::test]
async fn schemathesis_finds_nothing() {
    const CHECK: &str = "schemathesis judges the gateway";
    let Some(schemathesis) = part("python/bin/schemathesis", CHECK) else { return };
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data").display().to_string();
    let mut up = Process::start(&["up", "--free-ports", "--data-dir", &data]);
    let gateway = up.wait_for_roles()["apigateway"];
    let run = |url: String| {
        let mut command = Command::new(&schemathesis);
        let python = file("tests/web/python");
        command.arg("--config-file").arg(python.join("schemathesis.toml")).arg("run");
        command.arg(file("docs/openapi.json")).args(["--no-color", "--url", &url]);
        // it keeps what it has learnt in the working directory
        command.env("PYTHONPATH", &python).env("PYTHONDONTWRITEBYTECODE", "1").current_dir(dir.path());
        command
    };
    let said = succeed(run(format!("http://{gateway}"))).await;
    assert!(said.contains("No issues found"), "{said}");
    let tested = format!("Tested: {}", microservice_app::gateway::ROUTES.len() + 1);
    assert!(said.contains(&tested), "not {tested}: {said}");
    for phase in ["Examples", "Coverage", "Fuzzing", "Stateful"] {
        assert!(said.contains(&format!("\u{2705} {phase}")), "{phase}: {said}");
    }
    for complaint in ["warning", "WARNING", "Warning", "Failed to", "skipped"] {
        assert!(!said.contains(complaint), "{complaint}: {said}");
    }
}
