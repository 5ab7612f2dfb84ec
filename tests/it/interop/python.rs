//! Python's grpcio, in `tests/interop/python/walk.py`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use microservice_app::config;
use serde_json::json;

use super::{Program, built, last_line, services_of_feed};
use crate::kit::app::App;
use crate::kit::etcd::Etcd;
use crate::kit::mesh::{HOUR, Mesh, uri};
use crate::kit::skip;
use crate::kit::system::Role;

/// Returns a Python that has grpcio and protobuf: the system's, which Debian's packages belong to, or the one of the
/// path.
fn python(check: &str) -> Option<PathBuf> {
    let has_grpc = |python: &&str| {
        let mut command = Command::new(python);
        command.args(["-c", "import grpc, google.protobuf"]).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    let found = ["/usr/bin/python3", "python3"].into_iter().find(|python| has_grpc(python));
    if found.is_none() {
        skip(check, "no Python here has grpcio and protobuf");
    }
    found.map(PathBuf::from)
}

fn walk(python: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(python);
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop/python/walk.py")).args(args);
    command
}

#[tokio::test]
async fn a_python_client_finds_health_reflection_and_calls_as_the_protocols_say() {
    if let Some(python) = python("a Python client walks through a feed server") {
        python_client_walks(&python, &[]).await;
    }
}

/// With the packages that people use, in their newest versions.
#[tokio::test]
#[ignore = "fetches packages: make test-interop"]
async fn the_newest_python_client_walks_too() {
    python_client_walks(&built("python/bin/python3"), &[]).await;
    python_client_walks(&built("python/bin/python3"), &["--packages"]).await;
}

/// A client of others compares DNS names, and shows the certificate of a caller.
#[tokio::test]
async fn a_python_client_with_a_certificate_walks_too() {
    let Some(python) = python("a Python client with a certificate") else { return };
    let mesh = Mesh::start().await;
    mesh.authority.issue_identity(mesh.path(), "feed", &uri("feed"), HOUR, |params| {
        params.subject_alt_names.push(rcgen::SanType::DnsName("feed".try_into().expect("a name")));
    });
    mesh.authority.issue_identity(mesh.path(), "client", &uri("apigateway"), HOUR, |_| {});
    let feed = mesh.role("feed", "strict", &[]);
    let dir = mesh.path().display().to_string();
    python_client_walks_at(&python, &feed.addr.to_string(), &["--tls", &dir]).await;
    // it is refused as ours are
    mesh.authority.issue_identity(mesh.path(), "client", &uri("topic"), HOUR, |_| {});
    let refused = walk(&python, &["walk", &feed.addr.to_string(), "--tls", &dir]).output().expect("it runs");
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("UNAVAILABLE"), "{refused:?}");
}

async fn python_client_walks(python: &Path, options: &[&str]) {
    let app = App::start().await;
    let addr = app.addresses.of(config::Role::Feed).expect("feed").to_string();
    python_client_walks_at(python, &addr, options).await;
}

async fn python_client_walks_at(python: &Path, addr: &str, options: &[&str]) {
    let told = last_line(walk(python, &[&["walk", addr], options].concat())).await;
    let open = |status: &str| json!([status, "DEADLINE_EXCEEDED"]); // the caller's, not the server's
    let health = json!({
        "": ["SERVING", open("SERVING")],
        "feed.Feed": ["SERVING", open("SERVING")],
        "topic.Topic": ["NOT_FOUND", open("SERVICE_UNKNOWN")],
    });
    assert_eq!(told["health"], health, "check and watch");
    assert_eq!(told["services"], services_of_feed());
    let page = json!({"feeds": [{"id": "2", "user_id": "7", "content": "two"}]});
    let calls = json!([
        ["CreateFeed", {}],
        ["CreateFeed", {}],
        ["GetFeeds", page],
        ["GetFeeds", "NOT_FOUND"],
        ["DeleteFeed", "INVALID_ARGUMENT"],
    ]);
    assert_eq!(told["calls"], calls);
}

/// A service that crashes and returns is UNAVAILABLE meanwhile, which a retry policy of gRPC's own is for.
#[tokio::test]
async fn a_python_clients_retry_policy_carries_it_over_a_crash() {
    let Some(python) = python("a Python client's retry policy") else { return };
    let etcd = Etcd::start().await;
    let etcd_addr = etcd.addr.to_string();
    let mut feed = Role::start(&etcd_addr, "feed", "127.0.0.1:0", &[]);
    let addr = feed.addr.to_string();
    let mut client = Program::start(&mut walk(&python, &["retry", &addr]));
    client.next();
    for _ in 0..2 {
        feed.process.kill();
        feed = Role::start(&etcd_addr, "feed", &addr, &[]);
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    }
    let ended = tokio::task::spawn_blocking(move || client.finish()).await.expect("it ends");
    let codes = ended.last().expect("a line")["codes"].as_object().expect("counts");
    assert!(codes.len() == 1 && codes["OK"].as_u64() > Some(10), "{codes:?}");
}
