//! Connections to instances: how many, how old, and that one caller does not break them for others.

use std::process::Command;
use std::time::Duration;

use microservice_app::config::Balancer;
use rustix::process::Signal;
use serde_json::Value;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::{LIST, app_with, calls, failed, topic, topics};
use crate::kit::app::App;
use crate::kit::etcd::Etcd;
use crate::kit::fake::{Behaviour, Fake};
use crate::kit::http::{Answer, Connection, get, put, request, send};
use crate::kit::load::Load;
use crate::kit::process::{PROGRAM, Process};
use crate::kit::relay::{Direction, Faults, Relay};
use crate::kit::{measured, member, peer, wait_for};

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
        let good = |answer: &&Answer| answer.status == 200 && answer.degraded().is_empty();
        let failed = answers.len() - answers.iter().filter(good).count();
        assert_eq!(failed, 0, "round {round}: {failed} of 20 innocent calls failed: {:?}", answers[0]);
    }
}

/// Late answers to calls that the gateway has given up count against the connection as well: h2 forgets
/// such calls after 50 of them and ends the connection after 1024 answers that it cannot place.
#[tokio::test]
async fn late_answers_to_callers_that_hung_up_break_nobody_else() {
    // fewer than one connection carries at a time: none waits for an answer of another
    const RUDE: usize = 190;
    let fake = Fake::start().await;
    let relay = Relay::start(fake.addr, 1).await;
    let app = App::launch(|settings| {
        settings.up.topic_replicas = 0;
        settings.client.connections = 1;
        // a slow machine must not turn the delay into a deadline
        settings.client.deadline = Duration::from_secs(30);
    });
    let _registered = app.register("topic", relay.addr);
    wait_for("it is up", || async { (topic(&app, relay.addr).await["state"] == "up").then_some(()) }).await;
    // answers are on their way while those who asked hang up
    let delay = Duration::from_secs(1);
    relay.set(Faults { down: Direction { delay, ..Direction::default() }, ..Faults::default() });
    let mut innocent = Connection::open(app.gateway()).await.unwrap();
    for round in 0..10 {
        let answered = fake.calls() + RUDE;
        let mut rude = Vec::new();
        for _ in 0..RUDE {
            let mut stream = TcpStream::connect(app.gateway()).await.unwrap();
            stream.write_all(format!("GET {LIST} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).await.unwrap();
            rude.push(stream);
        }
        wait_for("all of them are answered", || async { (fake.calls() >= answered).then_some(()) }).await;
        drop(rude);
        let answer = innocent.get(LIST).await.unwrap();
        assert_eq!((answer.status.as_u16(), answer.degraded()), (200, ""), "round {round}: {answer:?}");
    }
    let lost = app.metric("client_connections_total{event=\"lost\",service=\"topic\"}").await;
    assert!(lost < 1.0, "{lost} connections were lost");
    assert_eq!(member(&topic(&app, relay.addr).await, "last_error"), &Value::Null);
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

/// A second connection is opened when the first one is crowded, and no third.
#[tokio::test]
async fn a_crowded_instance_gets_one_more_connection() {
    let fake = Fake::start().await;
    let app = App::launch(|settings| settings.up.topic_replicas = 0);
    let _registered = app.register("topic", fake.addr);
    wait_for("it is up", || async { (topic(&app, fake.addr).await["state"] == "up").then_some(()) }).await;
    for _ in 0..20 {
        assert_eq!(get(app.gateway(), LIST).await.status, 200);
    }
    assert_eq!(topic(&app, fake.addr).await["connections"], 1, "one call at a time needs no more");
    fake.behave(Behaviour { delay: Duration::from_millis(100), ..Behaviour::default() });
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..40 {
        let gateway = app.gateway();
        tasks.spawn(async move {
            for _ in 0..5 {
                assert_eq!(get(gateway, LIST).await.status, 200);
            }
        });
    }
    wait_for("there are two", || async { (topic(&app, fake.addr).await["connections"] == 2).then_some(()) })
        .await;
    tasks.join_all().await;
    assert_eq!(topic(&app, fake.addr).await["connections"], 2);
}

/// An old connection is replaced before it goes; no call notices.
#[tokio::test]
async fn connections_are_replaced_in_time() {
    let app = App::start_with(|settings| {
        settings.client.connection_age = Duration::from_millis(100);
    })
    .await;
    let replaced = "client_connections_total{event=\"replaced\",service=\"topic\"}";
    wait_for("ten were replaced", || async {
        assert_eq!(failed(&calls(&app, LIST, 20).await), 0);
        app.metric_above(replaced, 9.0).await.then_some(())
    })
    .await;
    let lost = app.metric("client_connections_total{event=\"lost\",service=\"topic\"}").await;
    assert!(lost < 1.0, "{lost} were lost");
    assert_eq!(topics(&app).await[0]["connections"], 1);
}

/// F24: a connection on which a ping stays unanswered is replaced.
#[tokio::test]
async fn a_half_open_connection_is_given_up() {
    let frozen = peer::breaking(peer::Break::Freeze).await;
    let app = app_with(&[&frozen], |settings| {
        settings.client.keepalive = Duration::from_millis(100);
        settings.client.keepalive_timeout = Duration::from_millis(100);
    })
    .await;
    let begun = Instant::now();
    let answer = get(app.gateway(), LIST).await;
    assert_eq!(answer.status, 503, "the connection fails before the call's 2 s are over: {answer:?}");
    assert!(begun.elapsed() < Duration::from_millis(1500), "{:?}", begun.elapsed());
    wait_for("there is a new one", || async {
        let opened = "client_connections_total{event=\"opened\",service=\"topic\"}";
        (app.metric_above(opened, 1.0).await && topic(&app, frozen.addr).await["state"] == "up").then_some(())
    })
    .await;
}

/// A frozen instance keeps its connection, but does not answer a health check on it. No header of a caller and no
/// breaker has a say in that.
#[tokio::test]
async fn an_instance_that_answers_no_health_check_gets_calls_only_if_there_is_no_other() {
    let (frozen, fine) = (Fake::start().await, Fake::start().await);
    let relay = Relay::start(frozen.addr, 1).await;
    let app = App::launch(|settings| {
        settings.up.topic_replicas = 0;
        settings.client.balancer = Balancer::RoundRobin;
        settings.client.hedge_after_percent = 0;
    });
    let registered = [app.register("topic", relay.addr), app.register("topic", fine.addr)];
    wait_for("both are up", || async {
        let topics = topics(&app).await;
        (topics.iter().filter(|topic| topic["state"] == "up").count() == 2).then_some(())
    })
    .await;
    relay.set(Faults::cut());
    wait_for("it is found out", || async {
        for _ in 0..2 {
            let mut asked = request("GET", LIST, "");
            asked.headers_mut().insert("x-request-timeout-ms", "150".parse().unwrap());
            send(app.gateway(), asked).await.unwrap();
        }
        (topic(&app, relay.addr).await["state"] == "unresponsive").then_some(())
    })
    .await;
    let state = topic(&app, relay.addr).await;
    assert_eq!(state["why"], "it does not answer a health check");
    assert_eq!(failed(&calls(&app, LIST, 50).await), 0);
    // it is called if there is no other one, and again as soon as it answers
    let [_frozen, fine] = registered;
    fine.revoke().await;
    wait_for("it is alone", || async { (topics(&app).await.len() == 1).then_some(()) }).await;
    relay.heal();
    wait_for("it answers", || async {
        let answer = get(app.gateway(), LIST).await;
        (answer.status == 200 && answer.degraded().is_empty()).then_some(())
    })
    .await;
    wait_for("it is up", || async { (topic(&app, relay.addr).await["state"] == "up").then_some(()) }).await;
}

/// A profile does not wait for feeds that are likely not to come.
#[tokio::test]
async fn best_effort_calls_do_not_wait_for_an_instance_that_answers_no_health_check() {
    let feed = Fake::start().await;
    let relay = Relay::start(feed.addr, 1).await;
    let app = App::launch(|settings| settings.up.feed_replicas = 0);
    let _registered = app.register("feed", relay.addr);
    let profile = r#"{"user_id":7,"name":"n","company":"c","title":"t"}"#;
    wait_for("profile answers and feed is up", || async {
        let status = get(app.addresses.admin, "/status").await.json();
        let clients = status["clients"].as_array()?.clone();
        let up = clients.iter().filter(|client| client["feed"][0]["state"] == "up").count();
        let answer = put(app.gateway(), "/api/profile/put_profile", profile).await;
        (answer.status == 200 && up == 2).then_some(())
    })
    .await;
    relay.set(Faults::cut());
    wait_for("profiles come at once again", || async {
        let (begun, mut asked) = (Instant::now(), request("GET", "/api/profile/get_profile?user_id=7", ""));
        // a fifth of it is for the feeds
        asked.headers_mut().insert("x-request-timeout-ms", "1000".parse().unwrap());
        let answer = send(app.gateway(), asked).await.unwrap();
        assert_eq!((answer.status.as_u16(), answer.degraded()), (200, "feeds_unavailable"));
        (begun.elapsed() < Duration::from_millis(150)).then_some(())
    })
    .await;
    let suspended = get(app.addresses.admin, "/status").await.json();
    assert_eq!(suspended["best_effort"].as_object().map_or(0, serde_json::Map::len), 0, "{suspended:#}");
}

/// A lost connection is no outage: it is opened again at once, and calls wait for it.
#[tokio::test]
async fn a_lost_connection_to_the_only_instance_fails_no_read() {
    let fake = Fake::start().await;
    let relay = Relay::start(fake.addr, 1).await;
    let app = App::launch(|settings| settings.up.topic_replicas = 0);
    let _registered = app.register("topic", relay.addr);
    let lost = "client_connections_total{event=\"lost\",service=\"topic\"}";
    let load = Load::get(app.gateway(), 400.0, LIST);
    for round in 0..4_u8 {
        wait_for("it is up", || async { (topic(&app, relay.addr).await["state"] == "up").then_some(()) })
            .await;
        // the second loss within a second meets a wait before the next attempt
        tokio::time::sleep(Duration::from_millis(1100)).await;
        let running = load.clone().start();
        running.more(50).await;
        relay.close();
        running.more(100).await;
        let record = running.finish().await;
        assert_eq!(record.failed().len(), 0, "round {round}: {}", record.failures());
        assert!(app.metric_above(lost, f64::from(round) + 0.5).await, "no connection was lost");
    }
}

/// A server that limits the age of its connections says GOAWAY without an error: the next calls go to a new one.
#[tokio::test]
async fn a_server_that_ends_its_connections_in_an_orderly_way_fails_no_call() {
    let peer = peer::leaving(20).await;
    let app = app_with(&[&peer], |_| {}).await;
    assert_eq!(failed(&calls(&app, LIST, 300).await), 0);
    let opened = app.metric("client_connections_total{event=\"opened\",service=\"topic\"}").await;
    assert!(opened >= 15.0, "{opened} connections were opened");
    let record = Load::get(app.gateway(), 300.0, LIST).run(Duration::from_secs(2)).await;
    assert_eq!(record.failed().len(), 0, "{}", record.failures());
}

/// A peer that freezes when its connection is due to be replaced: there is no successor, and the old one is still doubted.
#[tokio::test]
async fn a_connection_that_cannot_be_replaced_is_still_checked() {
    let fake = Fake::start().await;
    let relay = Relay::start(fake.addr, 1).await;
    let app = App::launch(|settings| {
        settings.up.topic_replicas = 0;
        settings.client.connection_age = Duration::from_secs(1);
        // pings would find it as well, much later
        settings.client.keepalive = Duration::from_mins(10);
    });
    let _registered = app.register("topic", relay.addr);
    wait_for("it is up", || async { (topic(&app, relay.addr).await["state"] == "up").then_some(()) }).await;
    relay.set(Faults::cut());
    tokio::time::sleep(Duration::from_millis(1300)).await;
    let mut asked = request("GET", LIST, "");
    asked.headers_mut().insert("x-request-timeout-ms", "300".parse().unwrap());
    assert_eq!(send(app.gateway(), asked).await.unwrap().status, 504);
    wait_for("it is unresponsive", || async {
        (topic(&app, relay.addr).await["state"] == "unresponsive").then_some(())
    })
    .await;
}

/// Few streams and slow handlers: a health check waits for a stream as long as a call does. That says nothing of the peer.
#[tokio::test]
async fn a_busy_peer_that_takes_few_streams_is_not_unresponsive() {
    let mut settings = h2::server::Builder::new();
    settings.max_concurrent_streams(3);
    let slow = peer::healthy_with(settings, |_, mut respond| async move {
        tokio::time::sleep(Duration::from_millis(1500)).await;
        peer::fine(&mut respond);
    });
    let slow = slow.await;
    let app = app_with(&[&slow], |settings| settings.client.connections = 1).await;
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..6 {
        callers.spawn(get(app.gateway(), LIST));
    }
    // two streams are left beside the health watch; a caller that gives up makes the connection suspect
    tokio::time::sleep(Duration::from_millis(100)).await;
    let mut asked = request("GET", LIST, "");
    asked.headers_mut().insert("x-request-timeout-ms", "150".parse().unwrap());
    assert_eq!(send(app.gateway(), asked).await.unwrap().status, 504);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(1200) {
        assert_eq!(topic(&app, slow.addr).await["state"], "up", "after {:?}", begun.elapsed());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // calls to come are not behind those that wait
    let replaced = "client_connections_total{event=\"replaced\",service=\"topic\"}";
    assert!(app.metric_above(replaced, 0.5).await, "the connection is replaced");
}
