//! grpcurl, grpc-health-probe and Node, which `make test-interop` fetches.

use std::process::Command;

use microservice_app::config::Role;
use serde_json::{Value, json};

use super::{built, last_line, program, services_of_feed};
use crate::kit::app::App;
use crate::kit::skip;

/// Runs a command off the runtime's thread; returns its exit status, standard output and standard error.
async fn run(mut command: Command) -> (Option<i32>, String, String) {
    let output = tokio::task::spawn_blocking(move || command.output()).await.expect("no panic");
    let output = output.expect("it starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[tokio::test]
#[ignore = "wants a new Go: make test-interop"]
async fn grpcurl_lists_describes_and_calls() {
    let Some(grpcurl) = program("grpcurl", "grpcurl lists, describes and calls") else { return };
    let app = App::start().await;
    let addr = app.addresses.of(Role::Feed).expect("feed").to_string();
    let ask = async |before: &[&str], after: &[&str]| {
        let mut command = Command::new(&grpcurl);
        command.arg("-plaintext").args(before).arg(&addr).args(after);
        run(command).await
    };
    let (status, out, err) = ask(&[], &["list"]).await;
    assert_eq!((status, json!(out.lines().collect::<Vec<_>>())), (Some(0), services_of_feed()), "{err}");
    let (_, out, err) = ask(&[], &["describe", "feed.Feed.GetFeeds"]).await;
    assert!(out.contains("rpc GetFeeds ( .feed.GetFeedsRequest ) returns"), "{out}{err}");
    let feed = r#"{"id":1,"user_id":7,"content":"one"}"#;
    let (status, _, err) = ask(&["-d", feed], &["feed.Feed/CreateFeed"]).await;
    assert_eq!(status, Some(0), "{err}");
    let page = r#"{"user_id":7,"size":1}"#;
    let (_, out, err) = ask(&["-d", page], &["feed.Feed/GetFeeds"]).await;
    let found: Value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out}{err}"));
    assert_eq!(found, json!({"feeds": [{"id": "1", "userId": "7", "content": "one"}]}));
    let (status, _, err) = ask(&["-d", r#"{"user_id":8,"size":1}"#], &["feed.Feed/GetFeeds"]).await;
    assert!(status != Some(0) && err.contains("Code: NotFound"), "{status:?} {err}");
    let (status, _, err) = ask(&[], &["describe", "topic.Topic"]).await;
    assert!(status != Some(0) && err.contains("not found"), "{status:?} {err}");
}

#[tokio::test]
#[ignore = "wants a new Go: make test-interop"]
async fn grpc_health_probe_tells_health_by_its_status() {
    let Some(probe) = program("grpc-health-probe", "grpc-health-probe tells health") else { return };
    let app = App::start().await;
    let addr = app.addresses.of(Role::Topic).expect("topic").to_string();
    let ask = async |more: &[&str]| {
        let mut command = Command::new(&probe);
        command.args(["-addr", &addr]).args(more);
        run(command).await
    };
    for service in ["", "topic.Topic"] {
        let (status, _, err) = ask(&["-service", service]).await;
        assert!(status == Some(0) && err.contains("SERVING"), "{service}: {status:?} {err}");
    }
    let (status, _, err) = ask(&["-service", "feed.Feed"]).await;
    assert_eq!(status, Some(3), "the rpc fails: {err}");
}

#[tokio::test]
#[ignore = "fetches packages: make test-interop"]
async fn a_node_client_calls_by_our_protos() {
    let packages = built("node/node_modules");
    if !packages.exists() {
        return skip("a Node client calls a feed server", "its packages were not installed: is npm there?");
    }
    let app = App::start().await;
    let addr = app.addresses.of(Role::Feed).expect("feed").to_string();
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut command = Command::new("node");
    command.arg(root.join("tests/interop/node/walk.js")).args([&addr]).arg(root.join("proto"));
    let told = last_line({
        command.env("NODE_PATH", packages);
        command
    });
    let want = json!({
        "health": ["SERVING", "NOT_FOUND", "SERVICE_UNKNOWN"],
        "page": {"feeds": [{"id": "2", "user_id": "7", "content": "two"}], "shortened": false},
        "missing": "NOT_FOUND",
    });
    assert_eq!(told.await, want);
}
