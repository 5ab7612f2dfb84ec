//! Clients that others generate from the description: they compile, and make the README's walk.

use std::process::Command;

use super::{file, part, succeed};
use crate::kit::app::App;

#[tokio::test]
async fn a_generated_client_in_typescript_makes_the_walk() {
    const CHECK: &str = "a generated client in TypeScript makes the walk";
    let Some(bin) = part("node/node_modules/.bin/tsc", CHECK) else { return };
    let (bin, app) = (bin.parent().unwrap().to_owned(), App::start().await);
    // beside the packages, which it imports
    let dir = tempfile::tempdir_in(file("target/web/node")).unwrap();
    for name in ["walk.ts", "tsconfig.json"] {
        std::fs::copy(file("tests/web/node").join(name), dir.path().join(name)).unwrap();
    }
    std::fs::write(dir.path().join("package.json"), r#"{"type":"module"}"#).unwrap();
    let command = |program: &str, args: &[&str]| {
        let mut command = Command::new(bin.join(program));
        command.args(args).current_dir(dir.path());
        command
    };
    let description = file("docs/openapi.json").display().to_string();
    succeed(command("openapi-typescript", &[&description, "-o", "api.ts"])).await;
    succeed(command("tsc", &[])).await;
    let mut walk = Command::new("node");
    walk.arg("walk.js").arg(format!("http://{}", app.gateway())).current_dir(dir.path());
    assert_eq!(succeed(walk).await, "walked\n");
}

#[tokio::test]
async fn a_generated_client_in_python_makes_the_walk() {
    const CHECK: &str = "a generated client in Python makes the walk";
    let Some(bin) = part("python/bin/openapi-python-client", CHECK) else { return };
    let (bin, app) = (bin.parent().unwrap().to_owned(), App::start().await);
    let dir = tempfile::tempdir().unwrap();
    let mut generate = Command::new(bin.join("openapi-python-client"));
    generate.args(["generate", "--fail-on-warning", "--meta", "none", "--output-path", "client", "--path"]);
    generate.arg(file("docs/openapi.json")).current_dir(dir.path());
    // it runs ruff by its name
    let path = std::env::join_paths(
        [bin.clone()].into_iter().chain(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())),
    );
    generate.env("PATH", path.unwrap());
    succeed(generate).await;
    let python = |args: &[&str]| {
        let mut command = Command::new(bin.join("python"));
        command.args(args).env("PYTHONPATH", dir.path()).current_dir(dir.path());
        command
    };
    succeed(python(&["-m", "compileall", "-q", "client"])).await;
    let walk = file("tests/web/python/walk.py").display().to_string();
    assert_eq!(succeed(python(&[&walk, &format!("http://{}", app.gateway())])).await, "walked\n");
}
