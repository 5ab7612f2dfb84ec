//! grpc-go and etcd's own resolver for it, in the Go program of `tests/interop/go`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use super::{Program, last_line, program, services_of_feed};
use crate::kit::app::App;
use crate::kit::etcd::Etcd;
use crate::kit::http::get;
use crate::kit::system::Role;
use crate::kit::wait_for;

/// The program with versions that Debian's Go builds.
const PINNED: &str = "interop";
/// The same with the newest versions; `make test-interop` builds it.
const LATEST: &str = "interop-latest";

/// A prefix with which Go clients need no authority of their own.
const PLAIN: [(&str, &str); 1] = [("MSA__REGISTRY__PREFIX", "services-")];

fn feeds(etcd: &Etcd, env: &[(&str, &str)]) -> [Role; 3] {
    [(); 3].map(|()| Role::start(&etcd.addr.to_string(), "feed", "127.0.0.1:0", env))
}

/// Returns a command that calls what etcd's resolver finds.
fn resolve(go: &Path, etcd: &Etcd, target: &str, more: &[&str]) -> Command {
    let mut command = Command::new(go);
    command.args(["resolve", "-etcd", &etcd.addr.to_string(), "-target", target]).args(more);
    command
}

/// Returns the instances that answered, and how often.
fn calls(round: &Value) -> Vec<u64> {
    let calls = round["calls"].as_object().expect("counts");
    calls.values().map(|count| count.as_u64().expect("a number")).collect()
}

#[tokio::test]
async fn etcds_resolver_finds_our_services_and_asks_nothing_of_its_caller() {
    if let Some(go) = program(PINNED, "etcd's resolver for Go finds our services") {
        resolver_finds_services(go).await;
    }
}

#[tokio::test]
#[ignore = "wants a new Go: make test-interop"]
async fn the_newest_resolver_finds_our_services() {
    if let Some(go) = program(LATEST, "the newest resolver for Go finds our services") {
        resolver_finds_services(go).await;
    }
}

async fn resolver_finds_services(go: PathBuf) {
    let etcd = Etcd::start().await;
    let [mut stopped, _one, _other] = feeds(&etcd, &PLAIN);
    for target in ["etcd:///services-feed", "etcd:services-feed"] {
        let round = last_line(resolve(&go, &etcd, target, &["-instances", "3"])).await;
        assert_eq!(round["codes"], json!({"OK": 300}), "{target}: {round}");
        let calls = calls(&round);
        assert!(calls.len() == 3 && calls.iter().all(|n| (95..=105).contains(n)), "{target}: {round}");
    }

    // a planned stop fails none of its calls either
    let more = ["-instances", "3", "-calls", "100", "-rounds", "0"];
    let mut client = Program::start(&mut resolve(&go, &etcd, "etcd:///services-feed", &more));
    let rounds = tokio::task::spawn_blocking(move || {
        client.next();
        stopped.process.stop(Duration::from_secs(12));
        std::thread::sleep(Duration::from_millis(500));
        client.finish()
    });
    let rounds = rounds.await.expect("it ends");
    assert!(rounds.iter().all(|round| round["codes"] == json!({"OK": 100})), "{rounds:#?}");
    assert_eq!((calls(&rounds[0]).len(), calls(&rounds[rounds.len() - 1]).len()), (3, 2), "{rounds:#?}");
}

/// The limit is not ours: grpc-go makes `%2Fservices%2Ffeed` the authority, and the crate http takes no `%` in one. If
/// this fails because the calls succeed, docs/api.md need not ask for `grpc.WithAuthority` any longer.
#[tokio::test]
async fn with_the_default_keys_the_caller_has_to_name_an_authority() {
    let Some(go) = program(PINNED, "etcd's resolver for Go with the default keys") else { return };
    let etcd = Etcd::start().await;
    let _feeds = feeds(&etcd, &[]);
    let target = "etcd:////services/feed";
    let round = last_line(resolve(&go, &etcd, target, &["-calls", "20"])).await;
    assert_eq!(round["codes"], json!({"Internal": 20}), "{round}");
    assert!(round["last_error"].as_str().expect("an error").contains("PROTOCOL_ERROR"), "{round}");
    let more = ["-instances", "3", "-calls", "30", "-authority", "feed"];
    let round = last_line(resolve(&go, &etcd, target, &more)).await;
    assert_eq!(round["codes"], json!({"OK": 30}), "{round}");
}

#[tokio::test]
async fn a_go_client_finds_health_reflection_and_calls_as_the_protocols_say() {
    if let Some(go) = program(PINNED, "a Go client walks through a feed server") {
        go_client_walks(&go).await;
    }
}

#[tokio::test]
#[ignore = "wants a new Go: make test-interop"]
async fn the_newest_go_client_walks_too() {
    if let Some(go) = program(LATEST, "the newest Go client walks through a feed server") {
        go_client_walks(&go).await;
    }
}

async fn go_client_walks(go: &Path) {
    let app = App::start().await;
    let addr = app.addresses.of(microservice_app::config::Role::Feed).expect("feed");
    let mut command = Command::new(go);
    command.args(["walk", "-addr", &addr.to_string()]);
    let told = last_line(command).await;
    let health = json!({
        "": ["SERVING", "SERVING"],
        "feed.Feed": ["SERVING", "SERVING"],
        "topic.Topic": ["NotFound", "SERVICE_UNKNOWN"],
    });
    assert_eq!(told["health"], health, "check and watch");
    assert_eq!(told["services"], services_of_feed());
    let calls = told["calls"].as_array().expect("calls").iter();
    let calls: Vec<String> = calls.map(|call| call.as_str().expect("text").replace(' ', "")).collect(); // protojson varies its blanks
    let page = r#"GetFeeds{"feeds":[{"id":"2","user_id":"7","content":"two"}]}"#;
    let want = ["CreateFeed{}", "CreateFeed{}", page, "GetFeedsNotFound", "DeleteFeedInvalidArgument"];
    assert_eq!(calls, want);
}

/// A server of grpc-go with its defaults closes a connection after three pings that come sooner than five minutes
/// after each other while it sends nothing (`too_many_pings`). A health watch that is open changes nothing in that.
#[tokio::test]
async fn a_go_server_that_registers_beside_ours_keeps_our_connections() {
    let Some(go) = program(PINNED, "a Go server keeps our connections") else { return };
    for health in ["true", "false"] {
        // sixteen pings in the time below, if there were any
        let env = [("MSA__CLIENT__KEEPALIVE_MS", "250"), ("MSA__CLIENT__KEEPALIVE_TIMEOUT_MS", "5000")];
        go_server_keeps_connections(&go, health, &env, Duration::from_secs(4)).await;
    }
}

/// The same at the default settings, for as long as five pings would take.
#[tokio::test]
#[ignore = "takes a minute: make test-interop"]
async fn a_go_server_keeps_our_connections_at_the_default_settings() {
    if let Some(go) = program(LATEST, "the newest Go server keeps our connections") {
        go_server_keeps_connections(&go, "true", &[], Duration::from_secs(70)).await;
    }
}

async fn go_server_keeps_connections(go: &Path, health: &str, env: &[(&str, &str)], time: Duration) {
    let etcd = Etcd::start().await;
    let mut command = Command::new(go);
    command.args(["serve", "-etcd", &etcd.addr.to_string(), "-target", "/services/feed"]);
    let mut server = Program::start(command.arg(format!("-health={health}")));
    let addr = server.next()["serving"].as_str().expect("an address").to_owned();
    let gateway = Role::start(&etcd.addr.to_string(), "apigateway", "127.0.0.1:0", env);
    wait_for("it is connected", || async {
        let endpoint = gateway.endpoint("feed", addr.parse().expect("an address")).await?;
        (endpoint["state"] == "up").then_some(())
    })
    .await;
    let call = || get(gateway.addr, "/api/feed/get_feeds?user_id=7");
    assert_eq!(call().await.status, 200, "it answers with an empty page");
    tokio::time::sleep(time).await;
    assert_eq!(call().await.status, 200);
    assert_eq!(server.said()[1..], [json!({"connection": "begins"})], "health service: {health}");
    let lost = "client_connections_total{event=\"lost\",service=\"feed\"}";
    assert!(gateway.metric(lost).await < 0.5, "health service: {health}");
}
