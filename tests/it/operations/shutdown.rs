//! How a process stops: signals, what is in flight, what callers of its neighbours see of it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use microservice_app::api::proto::topic::ListTopicsRequest;
use microservice_app::config::Role;
use rustix::process::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};

use crate::kit::app::App;
use crate::kit::etcd::Etcd;
use crate::kit::frames::Bare;
use crate::kit::grpc::channel;
use crate::kit::http::{Answer, Connection, get, request, send};
use crate::kit::process::{PROGRAM, Process};
use crate::kit::{SOON, peer, wait_for};

fn role(role: &'static str, etcd: &Etcd) -> (Process, SocketAddr, SocketAddr) {
    let listen = if role == "apigateway" { "--http-addr" } else { "--addr" };
    let addr = etcd.addr.to_string();
    let args = [role, listen, "127.0.0.1:0", "--debug-addr", "127.0.0.1:0", "--etcd-addr", &addr];
    let mut process = Process::start(&args);
    let (addr, admin) = process.wait_for_role(role);
    (process, addr, admin)
}

/// A gateway with a call in flight that ends only at its deadline.
async fn gateway_with_a_slow_call(
    deadline_ms: u32,
) -> (Etcd, peer::Peer, Process, tokio::task::JoinHandle<std::io::Result<Answer>>) {
    let etcd = Etcd::start().await;
    let silent = peer::stalling().await;
    let mut client = etcd.client().await;
    let bare = silent.addr.to_string();
    client.put(format!("/services/topic/{bare}"), bare, None).await.unwrap();
    let (gateway, addr, admin) = role("apigateway", &etcd);
    wait_for("the silent topic is connected", || async {
        let status = get(admin, "/status").await.json();
        (status["clients"][0]["topic"][0]["state"] == "up").then_some(())
    })
    .await;
    let mut asked = request("GET", "/api/topic/list", "");
    let limit = deadline_ms.to_string().parse().unwrap();
    asked.headers_mut().insert("x-request-timeout-ms", limit);
    let call = tokio::spawn(send(addr, asked));
    wait_for("the call is in flight", || async {
        let status = get(admin, "/status").await.json();
        (status["clients"][0]["topic"][0]["in_flight"] == 1).then_some(())
    })
    .await;
    (etcd, silent, gateway, call)
}

#[tokio::test]
async fn sigterm_lets_calls_in_flight_finish_and_exits_0() {
    let (_etcd, _silent, gateway, call) = gateway_with_a_slow_call(800).await;
    gateway.signal(Signal::TERM);
    let answer = call.await.unwrap().expect("an answer, not a reset");
    assert_eq!(answer.status, 504);
    assert_eq!(answer.header("connection"), "close");
    let mut gateway = gateway;
    let status = gateway.wait(Duration::from_secs(2));
    assert_eq!(status.code(), Some(0));
}

#[tokio::test]
async fn a_second_signal_ends_at_once() {
    let (_etcd, _silent, mut gateway, _call) = gateway_with_a_slow_call(2000).await;
    gateway.signal(Signal::TERM);
    gateway.wait_for_log("it drains", |line| line["message"] == "draining");
    let begun = Instant::now();
    gateway.signal(Signal::INT);
    let status = gateway.wait(SOON);
    assert_eq!(status.code(), Some(130));
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_closed_terminal_drains_and_may_hang_up_twice() {
    let (_etcd, _silent, mut gateway, call) = gateway_with_a_slow_call(1500).await;
    gateway.signal(Signal::HUP);
    gateway.wait_for_log("it drains", |line| line["message"] == "draining" && line["signal"] == "SIGHUP");
    // the shell's, after the terminal's; and systemd's SIGTERM beside it
    gateway.signal(Signal::HUP);
    gateway.signal(Signal::TERM);
    let answer = call.await.unwrap().expect("an answer, not a reset");
    assert_eq!(answer.status, 504);
    assert_eq!(gateway.wait(Duration::from_secs(2)).code(), Some(0));
    assert_eq!(gateway.count_logs(|line| line["message"] == "draining"), 1);
}

#[tokio::test]
async fn nohup_outlives_the_terminal() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().display().to_string();
    let mut command = std::process::Command::new("nohup");
    command.args([PROGRAM, "up", "--free-ports", "--data-dir", &data]);
    let mut up = Process::spawn(command);
    let gateway = up.wait_for_roles()["apigateway"];
    up.signal(Signal::HUP);
    // two turns of its runtime later it has not begun to drain
    for _ in 0..2 {
        assert_eq!(get(gateway, "/api/topic/list").await.status, 200);
    }
    assert_eq!(up.count_logs(|line| line["message"] == "draining"), 0);
    up.stop(SOON);
}

#[tokio::test]
async fn stopping_one_of_two_instances_fails_no_call() {
    let etcd = Etcd::start().await;
    let (_gateway, addr, admin) = role("apigateway", &etcd);
    let (_stays, _, _) = role("topic", &etcd);
    for round in 0..3 {
        let (mut leaves, leaving, _) = role("topic", &etcd);
        wait_for("both are up", || async {
            let status = get(admin, "/status").await.json();
            let topics = status["clients"][0]["topic"].as_array()?.clone();
            (topics.iter().filter(|t| t["state"] == "up").count() == 2).then_some(())
        })
        .await;
        let (stop, calls) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let callers: Vec<_> = (0..8)
            .map(|_| {
                let (stop, calls) = (stop.clone(), calls.clone());
                tokio::spawn(async move {
                    let mut connection = Connection::open(addr).await.unwrap();
                    while !stop.load(Relaxed) {
                        let answer = connection.get("/api/topic/list").await.unwrap();
                        assert_eq!(answer.status, 200, "{answer:?}");
                        assert_eq!(answer.degraded(), "", "{answer:?}");
                        calls.fetch_add(1, Relaxed);
                    }
                })
            })
            .collect();
        let at_least = |n: usize| {
            let calls = calls.clone();
            move || {
                let enough = calls.load(Relaxed) >= n;
                async move { enough.then_some(()) }
            }
        };
        wait_for("load", at_least(100)).await;
        tokio::task::spawn_blocking(move || leaves.stop(SOON)).await.unwrap();
        let so_far = calls.load(Relaxed);
        wait_for("more load", at_least(so_far + 100)).await;
        stop.store(true, Relaxed);
        for caller in callers {
            caller.await.unwrap_or_else(|e| panic!("round {round}, {leaving} left: {e}"));
        }
    }
}

#[tokio::test]
async fn up_answers_a_request_that_was_on_its_way_when_it_was_told_to_stop() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().display().to_string();
    let mut up = Process::start(&["up", "--free-ports", "--data-dir", &data]);
    let gateway = up.wait_for_roles()["apigateway"];
    let body = r#"{"id":1,"user_id":7,"content":"x"}"#;
    wait_for("feed is called", || async {
        (get(gateway, "/api/feed/get_feeds?user_id=7").await.status == 404).then_some(())
    })
    .await;
    let mut stream = tokio::net::TcpStream::connect(gateway).await.unwrap();
    let head =
        format!("PUT /api/feed/create_feed HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&body.as_bytes()[..10]).await.unwrap();
    // the head has arrived when a later request on another connection is answered
    get(gateway, "/api/topic/list").await;
    up.signal(Signal::TERM);
    up.wait_for_log("it drains", |line| line["message"] == "draining");
    // longer than an idle connection lingers and a service announces its end
    tokio::time::sleep(Duration::from_millis(300)).await;
    stream.write_all(&body.as_bytes()[10..]).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    assert!(answer.contains("connection: close"), "{answer}");
    assert!(up.wait(SOON).success());
}

#[tokio::test]
async fn a_drain_goes_on_when_etcd_is_away() {
    let mut etcd = Etcd::start().await;
    let (mut topic, _, _) = role("topic", &etcd);
    wait_for("it is registered", || async { etcd.list("/services/topic/").await.pop() }).await;
    etcd.kill();
    let begun = Instant::now();
    topic.stop(SOON);
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_health_watcher_sees_the_drain() {
    let app = App::start_with(|settings| settings.shutdown.announce = Duration::from_millis(300)).await;
    let mut client = HealthClient::new(channel(app.addresses.of(Role::Feed).unwrap()).await);
    let asked = HealthCheckRequest { service: "feed.Feed".to_owned() };
    let mut stream = client.watch(asked).await.unwrap().into_inner();
    assert_eq!(stream.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    app.stop.cancel();
    assert_eq!(stream.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
}

/// Stops a process that has no call in flight.
async fn stop_soon(mut process: Process) {
    let begun = Instant::now();
    tokio::task::spawn_blocking(move || process.stop(SOON)).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_drain_does_not_wait_for_a_peer_that_does_not_answer_the_goaway() {
    let etcd = Etcd::start().await;
    let (topic, addr, admin) = role("topic", &etcd);
    let mut frozen = Bare::open(addr, 65_535).await;
    let list = prost::Message::encode_to_vec(&ListTopicsRequest { after: 0, size: 1 });
    frozen.call("/topic.Topic/ListTopics", &list).await;
    let counted = "grpc_server_handling_seconds_count{code=\"OK\",method=\"ListTopics\"";
    wait_for("it is answered", || async {
        crate::kit::metrics::metric_above(admin, counted, 0.0).await.then_some(())
    })
    .await;
    stop_soon(topic).await;
    assert!(frozen.goaway().await, "it is told");
}

#[tokio::test]
async fn a_drain_does_not_wait_for_a_stream_that_its_caller_keeps_open() {
    use tonic_reflection::pb::v1::ServerReflectionRequest;
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    let etcd = Etcd::start().await;
    let (topic, addr, _) = role("topic", &etcd);
    let mut reflection = ServerReflectionClient::new(channel(addr).await);
    let asked = futures_util::stream::pending::<ServerReflectionRequest>();
    let _stream = reflection.server_reflection_info(asked).await.unwrap();
    stop_soon(topic).await;
}

#[tokio::test]
async fn a_drain_does_not_wait_for_half_a_head() {
    let etcd = Etcd::start().await;
    let (gateway, addr, _) = role("apigateway", &etcd);
    let mut half = tokio::net::TcpStream::connect(addr).await.unwrap();
    half.write_all(b"GET /api/topic/list HTTP/1.1\r\nhost:").await.unwrap();
    get(addr, "/api/topic/list").await;
    stop_soon(gateway).await;
}
