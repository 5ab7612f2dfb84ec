//! `microservice-app status`: the page of the system in a terminal.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use crate::kit::app::App;
use crate::kit::free_addr;
use crate::kit::http::get;
use crate::kit::process::{PROGRAM, run};

/// Runs the program in a terminal of 60 columns; returns its exit status and what it prints.
fn in_a_terminal(arguments: &str, env: &[(&str, &str)]) -> (Option<i32>, String) {
    let line = format!("stty cols 60 rows 40; {PROGRAM} {arguments}");
    let mut script = Command::new("script");
    script
        .args(["-qec", &line, "/dev/null"])
        .env_remove("NO_COLOR")
        .env("TERM", "xterm")
        .stdin(Stdio::null());
    let output = script.envs(env.iter().copied()).output().expect("script of util-linux");
    (output.status.code(), String::from_utf8(output.stdout).expect("UTF-8").replace("\r\n", "\n"))
}

/// Runs the command against an app of this test, from a thread of its own.
async fn status(arguments: Vec<String>) -> (Option<i32>, String, String) {
    let asked = tokio::task::spawn_blocking(move || {
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        run(&[&["status"], arguments.as_slice()].concat())
    });
    let (status, out, err) = asked.await.unwrap();
    (status.code(), out, err)
}

#[tokio::test]
async fn the_exit_status_is_the_health_in_status() {
    let app = App::start().await;
    let admin = app.addresses.admin;
    let (code, out, err) = status(vec![admin.to_string()]).await;
    assert_eq!((code, err.as_str()), (Some(0), ""), "{out}");
    assert!(out.starts_with("ok  0.") && out.contains("\nFEED: ok") && !out.contains('\u{1b}'), "{out}");
    assert_eq!(get(admin, "/status").await.json()["health"], "ok");
    // by name, and by the short form
    for addr in [format!("localhost:{}", admin.port()), format!(":{}", admin.port())] {
        assert_eq!(status(vec![addr]).await.0, Some(0));
    }
    let dead = free_addr();
    let _registration = app.register("topic", dead);
    crate::kit::wait_for("it is down", || async {
        (get(admin, "/status").await.json()["health"] == "fail").then_some(())
    })
    .await;
    let (code, out, _) = status(vec![admin.to_string()]).await;
    assert_eq!(code, Some(1), "{out}");
    let line = format!("  topic {dead}: down: it cannot be connected to; ");
    assert!(out.starts_with("fail  0.") && out.lines().any(|said| said.starts_with(&line)), "{out}");
    let (code, out, _) = status(vec![admin.to_string(), "--json".to_owned()]).await;
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &json["health"]), (Some(1), &serde_json::json!("fail")));

    // on a terminal
    let address = admin.to_string();
    let seen = tokio::task::spawn_blocking(move || {
        (
            in_a_terminal(&format!("status {address}"), &[]),
            in_a_terminal(&format!("status {address}"), &[("NO_COLOR", "1")]),
        )
    });
    let ((code, coloured), (_, bare)) = seen.await.unwrap();
    assert_eq!(code, Some(1), "{coloured}");
    assert!(coloured.starts_with("\u{1b}[31mfail  0.") && coloured.contains("\u{1b}[32m"), "{coloured:?}");
    assert!(!bare.contains('\u{1b}') && bare.starts_with("fail  0."), "{bare:?}");
    assert!(bare.lines().all(|line| line.chars().count() <= 60) && bare.contains('…'), "{bare}");
}

#[tokio::test]
async fn a_process_that_cannot_be_asked_is_status_2() {
    let nobody = free_addr().to_string();
    let app = App::start().await;
    let gateway = app.gateway().to_string();
    for (addr, said) in [
        (nobody.as_str(), "is it running, and is this its admin address (admin.addr, --debug-addr)?"),
        (&gateway, "answers 404 Not Found"),
        ("nowhere", "is not an address to call"),
        ("no-such-host.invalid:1", "has no address"),
    ] {
        let (code, out, err) = status(vec![addr.to_owned()]).await;
        assert_eq!((code, out.as_str()), (Some(2), ""), "{addr}: {err}");
        assert!(err.contains(said), "{addr}: {err}");
    }
}

#[tokio::test]
async fn watching_goes_on_until_nobody_reads() {
    let app = App::start().await;
    let admin = app.addresses.admin.to_string();
    let heads = tokio::task::spawn_blocking(move || {
        let mut child =
            Command::new(PROGRAM).args(["status", "--watch", &admin]).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let heads: Vec<_> =
            lines.by_ref().map_while(Result::ok).filter(|line| line.starts_with("ok  0.")).take(2).collect();
        drop(lines);
        (heads, child.wait().unwrap())
    });
    let limited = tokio::time::timeout(crate::kit::SOON, heads).await;
    let (heads, ended) = limited.expect("it ends with its reader").unwrap();
    assert_eq!((heads.len(), ended.code()), (2, Some(0)));
}
