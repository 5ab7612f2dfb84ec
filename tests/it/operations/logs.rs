//! The log of a real process: its two forms, its level, and what is never in it.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::Full;
use serde_json::Value;

use crate::kit::authority::Authority;
use crate::kit::etcd::{Etcd, Options};
use crate::kit::http::{get, put, raw, request, send};
use crate::kit::metrics::metric_above;
use crate::kit::process::{PROGRAM, Process};
use crate::kit::system::Role;
use crate::kit::token::{AUDIENCE, ISSUER, KeyFile, Signer, claims};
use crate::kit::{SOON, free_addr, skip, wait_for};

/// Stands for everything that a user or an administrator would not like to read in a log.
const MARKER: &str = "zQ7SECRETmarkerX9";

/// `up` as a process with JSON lines.
struct Up {
    process: Process,
    gateway: SocketAddr,
    admin: SocketAddr,
    _data: tempfile::TempDir,
}

fn up(more: &[&str]) -> Up {
    let data = tempfile::tempdir().unwrap();
    let dir = data.path().to_str().unwrap();
    let mut process = Process::start(&[&["up", "--free-ports", "--data-dir", dir], more].concat());
    let (gateway, admin) = process.wait_for_role("apigateway");
    Up { process, gateway, admin, _data: data }
}

async fn ready(admin: SocketAddr) {
    wait_for("it is ready", || async { (get(admin, "/readyz").await.body == "ready\n").then_some(()) }).await;
}

/// Sends one request that is answered well, in a trace.
async fn traced(gateway: SocketAddr, trace_id: &str) {
    let mut list = request("GET", "/api/topic/list", "");
    list.headers_mut().insert("x-b3-traceid", trace_id.parse().unwrap());
    assert_eq!(send(gateway, list).await.unwrap().status, StatusCode::OK);
}

fn is_of<'a>(trace_id: &'a str, message: &'a str) -> impl Fn(&Value) -> bool + 'a {
    move |line| line["trace_id"] == trace_id && line["message"] == message
}

#[tokio::test]
async fn every_request_is_logged_while_the_level_is_debug() {
    let mut up = up(&[]);
    ready(up.admin).await;
    assert_eq!(get(up.admin, "/loglevel").await.body, "info\n");
    traced(up.gateway, "0000000000000001").await;

    let changed = put(up.admin, "/loglevel", "debug\n").await;
    assert_eq!((changed.status, changed.body.as_str()), (StatusCode::OK, "debug\n"));
    assert_eq!(get(up.admin, "/loglevel").await.body, "debug\n");
    traced(up.gateway, "0000000000000002").await;
    // the gateway's and the service's, each once, with the id as it was sent
    let line = up.process.wait_for_log("request", is_of("0000000000000002", "request"));
    assert_eq!((&line["route"], &line["status"]), (&"/api/topic/list".into(), &200.into()), "{line}");
    let line = up.process.wait_for_log("call", is_of("0000000000000002", "call"));
    assert_eq!((&line["rpc"], &line["code"]), (&"/topic.Topic/ListTopics".into(), &"OK".into()), "{line}");

    assert_eq!(put(up.admin, "/loglevel", "info").await.status, StatusCode::OK);
    traced(up.gateway, "0000000000000003").await;
    // a change is told, from both sides of it; so the lines before it are here
    let told = |from, to| move |l: &Value| l["from"] == from && l["to"] == to && l["level"] == "INFO";
    put(up.admin, "/loglevel", "error").await;
    put(up.admin, "/loglevel", "info,microservice_app::gateway=debug").await;
    for (from, to) in [("info", "debug"), ("debug", "info"), ("info", "error")] {
        up.process.wait_for_log("a change", told(from, to));
    }
    up.process.wait_for_log("the last change", told("error", "info,microservice_app::gateway=debug"));
    for silent in ["0000000000000001", "0000000000000003"] {
        assert_eq!(up.process.count_logs(|line| line["trace_id"] == silent), 0, "{silent}");
    }
    traced(up.gateway, "0000000000000004").await;
    up.process.wait_for_log("request", is_of("0000000000000004", "request"));
    up.process.stop(SOON);
    assert_eq!(up.process.count_logs(is_of("0000000000000004", "call")), 0, "only http is at debug");
    assert_eq!(up.process.count_logs(Value::is_string), 0, "every line is JSON");
}

#[tokio::test]
async fn a_wrong_level_is_refused_by_name_and_changes_nothing() {
    let mut up = up(&[]);
    let long = "x".repeat(2000);
    for (body, reason) in [
        (
            "deubg",
            "level: \"deubg\" is not a level, want off, error, warn, info, debug, trace, or module=level,...",
        ),
        ("info,h2=loud", "level: \"loud\" is not a level"),
        ("", "level: \"\" is not a level"),
        (&long, "level: is over 1024 bytes"),
    ] {
        let refused = put(up.admin, "/loglevel", body).await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{body:?}");
        assert!(refused.body.starts_with(reason), "{:?}", refused.body);
    }
    let bytes =
        Request::put("/loglevel").header("host", "localhost").body(Full::new(Bytes::from_static(b"\xff")));
    assert_eq!(send(up.admin, bytes.unwrap()).await.unwrap().body, "level: is not UTF-8\n");
    let post = send(up.admin, request("POST", "/loglevel", "debug")).await.unwrap();
    assert_eq!((post.status, post.header("allow")), (StatusCode::METHOD_NOT_ALLOWED, "GET, HEAD, PUT"));
    assert_eq!(get(up.admin, "/loglevel").await.body, "info\n");
    up.process.stop(SOON);
    assert_eq!(up.process.count_logs(|line| !line["to"].is_null()), 0);
}

/// Returns an address of this host that is not loopback, if it has one.
fn outward() -> Option<std::net::IpAddr> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?; // sends nothing
    Some(socket.local_addr().ok()?.ip()).filter(|ip| !ip.is_loopback() && !ip.is_unspecified())
}

#[tokio::test]
async fn only_callers_on_this_host_change_the_level_or_take_a_profile() {
    let Some(ip) = outward() else {
        return skip("who may change the level from outside", "this host has no address but loopback");
    };
    let everywhere = free_addr().port();
    let up = up(&["--debug-addr", &format!("0.0.0.0:{everywhere}")]);
    let from_outside = SocketAddr::new(ip, everywhere);
    assert_eq!(put(from_outside, "/loglevel", "debug").await.status, StatusCode::FORBIDDEN);
    assert_eq!(get(from_outside, "/debug/pprof/profile?seconds=1").await.status, StatusCode::FORBIDDEN);
    assert_eq!(get(from_outside, "/loglevel").await.body, "info\n");
    assert_eq!(get(from_outside, "/livez").await.status, StatusCode::OK);
    let from_here = SocketAddr::from(([127, 0, 0, 1], up.admin.port()));
    assert_eq!(put(from_here, "/loglevel", "debug").await.status, StatusCode::OK);
}

/// A process whose log goes to a file.
struct Logged(Child);

impl Drop for Logged {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn logfmt_is_what_there_is_by_default() {
    let dir = tempfile::tempdir().unwrap();
    let (log, admin) = (dir.path().join("log"), free_addr());
    let child = Command::new(PROGRAM)
        .args([
            "up",
            "--free-ports",
            "--log-level",
            "debug",
            "--debug-addr",
            &admin.to_string(),
            "--data-dir",
        ])
        .arg(dir.path().join("two words=\"data\""))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(&log).unwrap())
        .spawn()
        .unwrap();
    let process = Logged(child);
    wait_for("it is ready", || async {
        let answer = send(admin, request("GET", "/readyz", "")).await.ok()?;
        (answer.body == "ready\n").then_some(())
    })
    .await;
    let status = get(admin, "/status").await.json();
    let roles = status["roles"].as_array().unwrap();
    let gateway = roles.iter().find(|role| role["name"] == "apigateway").unwrap();
    traced(gateway["addr"].as_str().unwrap().parse().unwrap(), "463ac35c9f6413ad48485a3953bb6124").await;
    let line = wait_for("the line of the request", || async {
        let log = fs::read_to_string(&log).unwrap();
        log.lines().find(|line| line.contains(" msg=request ")).map(ToOwned::to_owned)
    })
    .await;
    drop(process);
    for part in [
        " level=debug target=microservice_app::gateway msg=request route=/api/topic/list method=GET status=200 ",
        " trace_id=463ac35c9f6413ad48485a3953bb6124",
    ] {
        assert!(line.contains(part), "{part:?} is not in {line:?}");
    }
    for line in fs::read_to_string(&log).unwrap().lines() {
        assert!(line.starts_with("ts=20") && line.contains(" level=") && line.contains(" msg="), "{line:?}");
    }
}

// --- what is never logged ---

/// Sends the marker in every place where a request has room for it. None of these changes an id.
async fn send_everywhere(gateway: SocketAddr) {
    let content = format!("{{\"id\":1,\"user_id\":7,\"content\":\"{MARKER}\"}}");
    assert_eq!(put(gateway, "/api/feed/create_feed", &content).await.status, StatusCode::OK);
    let profile = format!("{{\"user_id\":7,\"name\":\"{MARKER}\",\"company\":\"{MARKER}\",\"title\":\"\"}}");
    assert_eq!(put(gateway, "/api/profile/put_profile", &profile).await.status, StatusCode::OK);
    let topic = format!("{{\"topic_id\":7,\"subject\":\"{MARKER}\",\"content\":\"{MARKER}\"}}");
    assert_eq!(put(gateway, "/api/topic/put_topic", &topic).await.status, StatusCode::OK);
    for path in
        ["/api/feed/get_feeds?user_id=7", "/api/profile/get_profile?user_id=7", "/api/topic/view?topic_id=7"]
    {
        assert!(get(gateway, path).await.body.contains(MARKER), "{path}");
    }
    for bad in [
        format!("{{\"{MARKER}\":1}}"),
        format!("{{\"id\":\"{MARKER}\",\"user_id\":7,\"content\":\"\"}}"),
        format!("{MARKER} is not JSON"),
        format!("{{\"id\":1,\"user_id\":7,\"content\":\"{MARKER}\\u0000\"}}"),
        format!("{{\"id\":1,\"user_id\":7,\"content\":\"{MARKER}{}\"}}", "x".repeat(40_000)),
    ] {
        assert_eq!(
            put(gateway, "/api/feed/create_feed", &bad).await.status,
            StatusCode::BAD_REQUEST,
            "{bad:.80}"
        );
    }
    for (path, status) in [
        (format!("/api/feed/get_feeds?user_id={MARKER}"), 400),
        (format!("/api/feed/get_feeds?user_id=7&{MARKER}=1"), 400),
        (format!("/{MARKER}?{MARKER}"), 404),
        (format!("/api/topic/list?{}", MARKER.repeat(600)), 414),
    ] {
        assert_eq!(get(gateway, &path).await.status, status, "{path:.80}");
    }
    for name in [
        "authorization",
        "cookie",
        "user-agent",
        "referer",
        "x-forwarded-for",
        "x-evil",
        "b3",
        "x-b3-traceid",
        "x-b3-spanid",
        "traceparent",
        "tracestate",
        "baggage",
        "x-request-timeout-ms",
        "content-type",
        "host",
    ] {
        let mut list = request("GET", "/api/topic/list", "");
        list.headers_mut().insert(name, MARKER.parse().unwrap());
        send(gateway, list).await.unwrap();
    }
    let mut list = request("GET", "/api/topic/list", "");
    list.headers_mut().insert("x-request-id", format!("two words {MARKER}").parse().unwrap());
    send(gateway, list).await.unwrap();
    let method = Request::builder().method(MARKER).uri("/api/topic/list").header("host", "test");
    send(gateway, method.body(Full::default()).unwrap()).await.unwrap();
    for bytes in [
        format!("GET /{MARKER} HTTP/9.9\r\n\r\n"),
        format!("{MARKER}\r\n\r\n"),
        format!("GET / HTTP/1.1\r\n{MARKER}\r\n\r\n"),
        format!(
            "PUT /api/topic/put_topic HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n{MARKER}\r\n"
        ),
    ] {
        raw(gateway, bytes.as_bytes()).await;
    }
}

/// Sends tokens of somebody with the marker as a name: one that counts, and some that do not.
async fn ask_with_tokens(gateway: SocketAddr, key: &Signer) {
    let sub = format!("{MARKER}-ada");
    let good = key.token(&sub);
    let mut late = claims(&sub);
    late["exp"] = 1.into();
    let expired = key.sign(&key.head(), &late);
    let forged = Signer::eddsa("1").token(&sub);
    for (token, status) in [(&good, 404), (&expired, 401), (&forged, 401)] {
        let mut asked = request("DELETE", "/api/feed/delete_feed?user_id=7&id=999", "");
        asked.headers_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        assert_eq!(send(gateway, asked).await.unwrap().status, status);
    }
}

/// The same straight to a service.
async fn call_everywhere(topic: SocketAddr) {
    use microservice_app::api::proto::topic::{PutTopicRequest, topic_client::TopicClient};
    let channel = tonic::transport::Endpoint::from_shared(format!("http://{topic}")).unwrap();
    let channel = channel.connect().await.unwrap();
    let text = format!("{MARKER}\0");
    let topic = PutTopicRequest { topic_id: 1, subject: text, content: MARKER.to_owned() };
    let mut call = tonic::Request::new(topic);
    for name in ["authorization", "x-b3-traceid", "x-b3-spanid", "grpc-timeout", "x-msa-other"] {
        call.metadata_mut().insert(name, MARKER.parse().unwrap());
    }
    let refused = TopicClient::new(channel.clone()).put_topic(call).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument);
    let mut unknown = tonic::client::Grpc::new(channel);
    unknown.ready().await.unwrap();
    let path = format!("/topic.Topic/{MARKER}").parse().unwrap();
    let codec = tonic_prost::ProstCodec::<(), ()>::default();
    assert!(unknown.unary(tonic::Request::new(()), path, codec).await.is_err());
}

/// Everything that a user sends and every secret in the settings, at the level that says most.
#[tokio::test]
async fn neither_contents_nor_secrets_are_logged_at_any_level() {
    let (authority, dir, https) = (Authority::new("one"), tempfile::tempdir().unwrap(), free_addr());
    let hour = Duration::from_hours(1);
    authority.issue(dir.path(), "server", &["127.0.0.1"], hour);
    authority.issue(dir.path(), "client", &[], hour);
    fs::write(dir.path().join("ca.pem"), authority.pem()).unwrap();
    let file = |name: &str| dir.path().join(name).display().to_string();
    let args = ["--cert-file=server.pem", "--key-file=server.key", "--trusted-ca-file=ca.pem"];
    let args =
        args.map(|arg| arg.split_once('=').map(|(flag, name)| format!("{flag}={}", file(name))).unwrap());
    let args = args.into_iter().chain(["--client-cert-auth".to_owned()]).collect();
    let etcd = Etcd::start_with(Options { https: Some(https), args, ..Options::default() }).await;
    let mut root = etcd.client().await;
    root.user_add("root", MARKER, None).await.unwrap();
    root.user_grant_role("root", "root").await.unwrap();
    root.auth_enable().await.unwrap();
    fs::write(dir.path().join("password"), MARKER).unwrap();
    let pem = ["client.key", "client.pem"].map(|name| fs::read_to_string(file(name)).unwrap()).concat();
    let secrets: Vec<_> = pem.lines().filter(|line| line.len() > 30).collect();
    assert!(secrets.len() > 4, "lines of a key and of a certificate: {secrets:?}");

    // the crates that carry these bytes are asked for everything, too
    let others =
        ["etcd_client", "h2", "hyper", "hyper_util", "mio", "rusqlite", "rustls", "tokio", "tokio_util"];
    let more = ["tonic", "tower", "want", "warp", "log", "rpprof"].map(|name| format!(",{name}=trace"));
    let level = "trace".to_owned() + &others.map(|name| format!(",{name}=trace")).concat() + &more.concat();
    let key = Signer::eddsa("1");
    let keys = KeyFile::new(&[&key]);
    let open =
        ["create_feed", "get_feeds", "put_profile", "get_profile", "put_topic", "get_topic", "list_topics"];
    let policy = open.map(|operation| format!("{operation}=public")).join(",") + ",delete_feed=token";
    let env = [
        ("MSA__HTTP__AUTH__JWKS_FILE", keys.path.to_str().unwrap()),
        ("MSA__HTTP__AUTH__ISSUER", ISSUER),
        ("MSA__HTTP__AUTH__AUDIENCE", AUDIENCE),
        ("MSA__HTTP__AUTH__POLICY", &policy),
        ("CREDENTIALS_DIRECTORY", dir.path().to_str().unwrap()),
        ("MSA__REGISTRY__CA_FILE", "ca.pem"),
        ("MSA__REGISTRY__CERT_FILE", "client.pem"),
        ("MSA__REGISTRY__KEY_FILE", "client.key"),
        ("MSA__REGISTRY__USER", "root"),
        ("MSA__REGISTRY__PASSWORD_FILE", "password"),
        ("MSA__LOG__LEVEL", &level),
        ("MSA__LOG__SLOW_MS", "0"),
    ];
    let start = |role| Role::start(&format!("https://{https}"), role, "127.0.0.1:0", &env);
    let roles = ["feed", "profile", "topic", "apigateway"].map(start);
    for role in ["feed", "profile", "topic"] {
        roles[3].wait_for_certain(role, 1).await;
    }
    wait_for("profile knows feed", || async {
        metric_above(roles[1].admin, "client_endpoints{service=\"feed\",state=\"up\"}", 0.0)
            .await
            .then_some(())
    })
    .await;

    send_everywhere(roles[3].addr).await;
    ask_with_tokens(roles[3].addr, &key).await;
    call_everywhere(roles[2].addr).await;
    // a wrong password, and another file in its place
    fs::write(dir.path().join("password"), format!("{MARKER}-wrong")).unwrap();
    traced(roles[3].addr, "00000000000000ff").await;

    for mut role in roles {
        role.process.stop(SOON);
        let log: Vec<_> = role.process.seen.iter().map(ToString::to_string).collect();
        let debug = role.process.seen.iter().filter(|line| line["level"] == "DEBUG");
        let (ours, theirs): (Vec<_>, Vec<_>) = debug
            .partition(|line| line["target"].as_str().is_some_and(|t| t.starts_with("microservice_app")));
        assert!(!ours.is_empty() && !theirs.is_empty(), "both must have had something to say");
        for line in &log {
            assert!(!line.contains(MARKER), "{line}");
            let leaked = secrets.iter().find(|secret| line.contains(**secret));
            assert!(leaked.is_none(), "{line}");
        }
        assert_eq!(role.process.count_logs(Value::is_string), 0, "every line is JSON");
    }
}
