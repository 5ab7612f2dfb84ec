//! `/metrics` of every role as a process, after some load: what Prometheus' own tool says of it, and what is
//! there before anything has happened.

use std::io::Write as _;
use std::process::{Command, Stdio};

use http::StatusCode;

use crate::kit::etcd::Etcd;
use crate::kit::fake::{Behaviour, Fake};
use crate::kit::http::{get, put, raw, request, send};
use crate::kit::metrics::{find, find_metric, metric};
use crate::kit::process::{PROGRAM, Process};
use crate::kit::system::Role;
use crate::kit::{SOON, skip, wait_for};

/// Runs `promtool check metrics`; returns what it complains of.
fn lint(text: &str) -> String {
    let mut child = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool is installed (make deps)");
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(text.as_bytes()).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8(said).unwrap();
    assert!(output.status.success() || !said.is_empty(), "{}", output.status);
    said
}

fn no_lint(role: &str, text: &str) {
    assert_eq!(lint(text), "", "{role}");
    let (mut series, mut names) = (std::collections::BTreeSet::new(), std::collections::BTreeSet::new());
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("# TYPE ") {
            assert!(names.insert(name.to_owned()), "{role}: {name} is there twice");
        } else if !line.starts_with('#') {
            let (labelled, _) = line.rsplit_once(' ').unwrap();
            assert!(series.insert(labelled.to_owned()), "{role}: {labelled} is there twice");
        }
    }
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    let start = value(text, "process_start_time_seconds");
    assert!((now - 600.0..=now).contains(&start), "{role}: {start}");
}

fn value(text: &str, line: &str) -> f64 {
    find(text, line).unwrap_or_else(|| panic!("{line} is not in\n{text}"))
}

#[test]
fn promtool_would_complain() {
    assert!(lint("# TYPE a_total gauge\na_total 1\n").contains("a_total"));
    assert!(!lint("a{b=\"1\"} x\n").is_empty());
}

#[tokio::test]
async fn every_role_tells_metrics_without_a_fault() {
    let etcd = Etcd::start().await;
    let addr = etcd.addr.to_string();
    let [feed, profile, topic, gateway] =
        ["feed", "profile", "topic", "apigateway"].map(|role| Role::start(&addr, role, "127.0.0.1:0", &[]));
    // what is there before the first request: a rate needs a value to begin with
    let text = get(gateway.admin, "/metrics").await.body;
    for line in [
        "http_server_request_duration_seconds_count{code=\"200\",method=\"PUT\",route=\"/api/topic/put_topic\"}",
        "http_server_request_duration_seconds_count{code=\"503\",method=\"GET\",route=\"/api/topic/list\"}",
        "http_server_refused_total{reason=\"in_flight\"}",
        "server_connections_cut_total{reason=\"flood\"}",
        "grpc_client_attempt_duration_seconds_count{code=\"UNAVAILABLE\",method=\"GetFeeds\",service=\"feed.Feed\"}",
        "client_best_effort_state{method=\"GetFeeds\",service=\"feed\",state=\"open\"}",
        "trace_spans_dropped_total{reason=\"queue\"}",
    ] {
        assert!(value(&text, line).abs() < f64::EPSILON, "{line}");
    }
    let text = get(feed.admin, "/metrics").await.body;
    for line in [
        "grpc_server_handling_seconds_count{code=\"UNAVAILABLE\",method=\"GetFeeds\",service=\"feed.Feed\"}",
        "grpc_server_refused_total{reason=\"deadline\",service=\"feed.Feed\"}",
    ] {
        assert!(value(&text, line).abs() < f64::EPSILON, "{line}");
    }
    assert!(!text.contains("service=\"topic.Topic\""), "what it does not serve it does not count");

    for role in ["feed", "profile", "topic"] {
        gateway.wait_for_certain(role, 1).await;
    }
    let data = tempfile::tempdir().unwrap();
    let mut up = Process::start(&["up", "--free-ports", "--data-dir", data.path().to_str().unwrap()]);
    let (up_gateway, up_admin) = up.wait_for_role("apigateway");
    wait_for("up is ready", || async { (get(up_admin, "/readyz").await.body == "ready\n").then_some(()) })
        .await;
    for target in [gateway.addr, up_gateway] {
        let content = "{\"id\":1,\"user_id\":7,\"content\":\"\"}";
        assert_eq!(put(target, "/api/feed/create_feed", content).await.status, StatusCode::OK);
        put(
            target,
            "/api/profile/put_profile",
            "{\"user_id\":7,\"name\":\"\",\"company\":\"\",\"title\":\"\"}",
        )
        .await;
        put(target, "/api/topic/put_topic", "nonsense").await;
        for path in
            ["/api/profile/get_profile?user_id=7", "/api/profile/get_profile?user_id=8", "/api/x", "/"]
        {
            get(target, path).await;
        }
        for method in ["BREW", "OPTIONS", "TRACE"] {
            send(target, request(method, "/api/topic/list", "")).await.unwrap();
        }
        raw(target, b"garbage\r\n\r\n").await;
    }
    let unknown = "http_server_request_duration_seconds_count{code=\"404\",method=\"GET\",route=\"unknown\"}";
    let other =
        "http_server_request_duration_seconds_count{code=\"405\",method=\"other\",route=\"/api/topic/list\"}";
    let text = get(gateway.admin, "/metrics").await.body;
    assert!(
        (value(&text, unknown) - 2.0).abs() < f64::EPSILON
            && (value(&text, other) - 2.0).abs() < f64::EPSILON
    );
    for (name, admin) in [
        ("feed", feed.admin),
        ("profile", profile.admin),
        ("topic", topic.admin),
        ("gateway", gateway.admin),
        ("up", up_admin),
    ] {
        for _ in 0..2 {
            no_lint(name, &get(admin, "/metrics").await.body);
        }
    }
    let version = env!("CARGO_PKG_VERSION");
    let text = get(up_admin, "/metrics").await.body;
    let build = text.lines().find(|line| line.starts_with("build_info{")).unwrap();
    assert!(build.contains("commit=\"") && build.contains(&format!("version=\"{version}\"")), "{build}");
    up.stop(SOON);

    // best-effort calls are suspended while they keep failing, and that can be seen
    drop(feed);
    wait_for("best-effort calls of feed are suspended", || async {
        assert_eq!(get(gateway.addr, "/api/profile/get_profile?user_id=7").await.status, StatusCode::OK);
        let status = profile.status().await;
        (status["best_effort"][0]["feed"]["GetFeeds"] == "open").then_some(())
    })
    .await;
    let text = get(profile.admin, "/metrics").await.body;
    for (line, least) in [
        ("client_best_effort_state{method=\"GetFeeds\",service=\"feed\",state=\"open\"}", 1.0),
        ("client_best_effort_transitions_total{method=\"GetFeeds\",service=\"feed\",to=\"open\"}", 1.0),
    ] {
        assert!(value(&text, line) >= least, "{line} in\n{text}");
    }
}

/// Both the gateway and profile call feed; what each sees of it does not depend on who looked last.
#[tokio::test]
async fn an_instance_counts_once_however_many_call_it() {
    let data = tempfile::tempdir().unwrap();
    let dir = data.path().to_str().unwrap();
    let mut up = Process::start(&["up", "--free-ports", "--data-dir", dir, "--replicas", "feed=3"]);
    let (_, admin) = up.wait_for_role("apigateway");
    // there are none until the first instance is known
    let state = async |series| find_metric(admin, series).await.unwrap_or(0.0);
    wait_for("three are up, and told so", || async {
        let ups = state("client_endpoints{service=\"feed\",state=\"up\"}").await;
        let all = state("client_endpoints{service=\"feed\",").await;
        ((ups - 3.0).abs() < f64::EPSILON && (all - 3.0).abs() < f64::EPSILON).then_some(())
    })
    .await;
    let status = get(admin, "/status").await.json();
    assert_eq!(status["clients"].as_array().unwrap().len(), 2, "{status:#}");
    assert_eq!(status["best_effort"], serde_json::json!([{}, {}]), "{status:#}");
}

/// As a unit with `ProcSubset=pid` sees it.
#[tokio::test]
async fn the_start_time_is_told_without_the_systems_files() {
    let hidden = ["-m", "sh", "-c", "mount -t proc -o subset=pid proc /proc && [ ! -e /proc/stat ]"];
    if !Command::new("unshare")
        .args(hidden)
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
    {
        return skip(
            "the start time of a process that sees its own /proc only",
            "no leave to mount /proc anew",
        );
    }
    let data = tempfile::tempdir().unwrap();
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", "mount -t proc -o subset=pid proc /proc && exec \"$@\"", "sh", PROGRAM]);
    command.args(["up", "--free-ports", "--data-dir"]).arg(data.path());
    let mut up = Process::spawn(command);
    let (_, admin) = up.wait_for_role("apigateway");
    no_lint("up", &get(admin, "/metrics").await.body);
}

#[tokio::test]
async fn a_page_is_never_older_than_its_request() {
    const COUNT: &str =
        "http_server_request_duration_seconds_count{code=\"200\",method=\"GET\",route=\"/api/topic/list\"}";
    let data = tempfile::tempdir().unwrap();
    let mut up = Process::start(&["up", "--free-ports", "--data-dir", data.path().to_str().unwrap()]);
    let (gateway, admin) = up.wait_for_role("apigateway");
    // others ask all the time
    let mut scrapers = tokio::task::JoinSet::new();
    for _ in 0..8 {
        scrapers.spawn(async move { while get(admin, "/metrics").await.status == 200 {} });
    }
    for asked in 1..=20 {
        assert_eq!(get(gateway, "/api/topic/list").await.status, 200);
        assert_eq!(metric(admin, COUNT).await as u64, asked);
    }
    scrapers.shutdown().await;
}

#[tokio::test]
async fn a_request_whose_caller_hangs_up_is_counted() {
    use tokio::io::AsyncWriteExt as _;
    let etcd = Etcd::start().await;
    let gateway = Role::gateway(&etcd.addr.to_string());
    let slow = Behaviour { delay: SOON, ..Behaviour::default() };
    let fake = Fake::start_with(slow, 64).await;
    let key = format!("/services/topic/{}", fake.addr);
    etcd.client().await.put(key, fake.addr.to_string(), None).await.unwrap();
    gateway.wait_for_certain("topic", 1).await;
    let mut caller = tokio::net::TcpStream::connect(gateway.addr).await.unwrap();
    caller.write_all(b"GET /api/topic/list HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    wait_for("the call is under way", || async { (fake.calls() > 0).then_some(()) }).await;
    drop(caller);
    let line =
        "http_server_request_duration_seconds_count{code=\"499\",method=\"GET\",route=\"/api/topic/list\"}";
    wait_for("it is counted", || async { gateway.metric_above(line, 0.5).await.then_some(()) }).await;
}
