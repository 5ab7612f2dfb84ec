//! What callers do not notice: dead instances, refused calls, neighbours that hang up.

use std::process::Command;
use std::time::Duration;

use microservice_app::config::Balancer;
use rustix::process::Signal;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::kit::app::App;
use crate::kit::etcd::Etcd;
use crate::kit::http::{Answer, Connection, get, put};
use crate::kit::process::{PROGRAM, Process};
use crate::kit::{free_addr, measured, peer, wait_for};

#[tokio::test]
async fn an_instance_that_is_down_is_skipped() {
    let app = App::start().await;
    let dead = free_addr();
    let _registered = app.register("topic", dead);
    wait_for("it is known to be down", || async {
        let down = app.metric("client_endpoints{service=\"topic\",state=\"down\"}").await;
        (down > 0.0).then_some(())
    })
    .await;
    for _ in 0..50 {
        let answer = get(app.gateway(), "/api/topic/list").await;
        assert_eq!((answer.status.as_u16(), answer.header("x-degraded")), (200, ""));
    }
    let retries = app.metric("client_retry_granted_total{reason=\"not_sent\",service=\"topic\"}").await;
    assert!(retries < 1.0, "{retries} calls went to the dead instance first");
}

#[tokio::test]
async fn a_call_that_was_never_processed_is_tried_once_more_elsewhere() {
    // in turn, so that it is met again and again
    let app = App::start_with(|settings| settings.client.balancer = Balancer::RoundRobin).await;
    let refusing = peer::refusing().await;
    let _registered = app.register("topic", refusing.addr);
    wait_for("both are connected", || async {
        let up = app.metric("client_endpoints{service=\"topic\",state=\"up\"}").await;
        (up > 1.0).then_some(())
    })
    .await;
    for _ in 0..50 {
        let answer = get(app.gateway(), "/api/topic/list").await;
        assert_eq!((answer.status.as_u16(), answer.header("x-degraded")), (200, ""));
    }
    let retries = app.metric("client_retry_granted_total{reason=\"unprocessed\",service=\"topic\"}").await;
    assert!(retries >= 20.0, "only {retries} of 50 calls met the refusing instance");
}

/// Callers that hang up in a burst make the gateway reset their calls. h2 ends a connection after 20
/// resets of calls that the server has not yet begun; everyone else on it would fail.
#[tokio::test]
async fn callers_that_hang_up_in_bursts_break_nobody_else() {
    let etcd = Etcd::start().await;
    let addr = etcd.addr.to_string();
    let common = ["--debug-addr", "127.0.0.1:0", "--etcd-addr", &addr];
    // a slow machine must not turn the freeze into a deadline, or into a lease that ran out
    let mut command = Command::new(PROGRAM);
    command.args(["apigateway", "--http-addr", "127.0.0.1:0"]).args(common);
    command.env("MSA__CLIENT__DEADLINE_MS", "30000").env("MSA__CLIENT__KEEPALIVE_TIMEOUT_MS", "30000");
    let mut gateway = Process::spawn(command);
    let gateway_addrs = gateway.wait_for_role("apigateway");
    let mut command = Command::new(PROGRAM);
    command.args(["feed", "--addr", "127.0.0.1:0"]).args(common).env("MSA__REGISTRY__TTL_S", "60");
    let mut feed = Process::spawn(command);
    feed.wait_for_role("feed");
    let body = r#"{"id":1,"user_id":7,"content":"x"}"#;
    wait_for("feed is found", || async {
        (put(gateway_addrs.0, "/api/feed/create_feed", body).await.status == 200).then_some(())
    })
    .await;

    let path = "/api/feed/get_feeds?user_id=7";
    for round in 0..3 {
        // while feed is frozen calls and their resets pile up, and it reads them all at once
        feed.signal(Signal::STOP);
        let mut innocent = tokio::task::JoinSet::new();
        for _ in 0..20 {
            innocent.spawn(get(gateway_addrs.0, path));
        }
        let mut rude = Vec::new();
        for _ in 0..256 {
            let mut stream = TcpStream::connect(gateway_addrs.0).await.unwrap();
            stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).await.unwrap();
            rude.push(stream);
        }
        wait_for("every call is on its way", || async {
            let status = get(gateway_addrs.1, "/status").await.json();
            let in_flight = status["clients"][0]["feed"][0]["in_flight"].as_u64();
            (in_flight >= Some(276)).then_some(())
        })
        .await;
        drop(rude);
        wait_for("the rude ones are gone", || async {
            let status = get(gateway_addrs.1, "/status").await.json();
            let in_flight = status["clients"][0]["feed"][0]["in_flight"].as_u64();
            (in_flight <= Some(20)).then_some(())
        })
        .await;
        feed.signal(Signal::CONT);
        let answers = innocent.join_all().await;
        let good = |answer: &&Answer| answer.status == 200 && answer.header("x-degraded").is_empty();
        let failed = answers.len() - answers.iter().filter(good).count();
        assert_eq!(failed, 0, "round {round}: {failed} of 20 innocent calls failed: {:?}", answers[0]);
    }
}

/// Late answers to calls that the gateway has given up count against the connection as well: h2 forgets
/// such calls after 50 of them and ends the connection after 1024 answers that it cannot place.
#[tokio::test]
async fn late_answers_to_callers_that_hung_up_break_nobody_else() {
    let app = App::start().await;
    let body = r#"{"id":1,"user_id":7,"content":"x"}"#;
    assert_eq!(put(app.gateway(), "/api/feed/create_feed", body).await.status, 200);
    let path = "/api/feed/get_feeds?user_id=7";
    let mut innocent = Connection::open(app.gateway()).await.unwrap();
    for round in 0..16 {
        let mut rude = Vec::new();
        for _ in 0..256 {
            let mut stream = TcpStream::connect(app.gateway()).await.unwrap();
            stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).await.unwrap();
            rude.push(stream);
        }
        drop(rude);
        let answer = innocent.get(path).await.unwrap();
        assert_eq!(
            (answer.status.as_u16(), answer.header("x-degraded")),
            (200, ""),
            "round {round}: {answer:?}"
        );
    }
    let downs = get(app.addresses.admin, "/status").await.json();
    let feeds =
        downs["clients"].as_array().unwrap().iter().filter_map(|client| client["feed"][0].as_object());
    for feed in feeds {
        assert_eq!(feed["last_error"], serde_json::Value::Null, "the connection broke");
    }
}

/// Without TCP_NODELAY a small message waits for the other side's delayed ack, 40 ms.
#[tokio::test]
async fn no_hop_waits_for_a_delayed_ack() {
    let app = App::start().await;
    let gateway = app.gateway();
    measured("median of small calls below 20 ms", || async move {
        let mut connection = Connection::open(gateway).await.unwrap();
        let mut times = Vec::new();
        for _ in 0..40 {
            let begun = Instant::now();
            let answer = connection.get("/api/topic/list").await.unwrap();
            assert_eq!(answer.status, 200);
            times.push(begun.elapsed());
        }
        times.sort();
        let median = times[times.len() / 2];
        if median < Duration::from_millis(20) { Ok(()) } else { Err(median) }
    })
    .await;
}
