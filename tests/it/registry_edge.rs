//! Trouble in the registry is not trouble for callers.

use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use crate::kit::etcd::Etcd;
use crate::kit::http::{Connection, get};
use crate::kit::process::{PROGRAM, Process};
use crate::kit::wait_for;

/// Lease of every instance here: the shortest, so that a test takes seconds.
const TTL: Duration = Duration::from_secs(1);

fn role(
    etcd: &Etcd,
    role: &'static str,
    listen: &str,
    env: &[(&str, &str)],
) -> (Process, SocketAddr, SocketAddr) {
    let flag = if role == "apigateway" { "--http-addr" } else { "--addr" };
    let mut command = Command::new(PROGRAM);
    command.args([role, flag, listen, "--debug-addr", "127.0.0.1:0", "--etcd-addr", &etcd.addr.to_string()]);
    let env = [&[("MSA__REGISTRY__TTL_S", "1"), ("MSA__REGISTRY__KEEPALIVE_MS", "300")], env].concat();
    let mut process = Process::spawn_with(command, &env);
    let (addr, admin) = process.wait_for_role(role);
    (process, addr, admin)
}

async fn status(admin: SocketAddr) -> Value {
    get(admin, "/status").await.json()
}

/// Waits until the gateway's own list of topic instances satisfies a condition.
async fn wait_for_topics(admin: SocketAddr, what: &str, fits: impl Fn(&[Value]) -> bool) {
    wait_for(what, || async {
        let status = status(admin).await;
        let topics = status["registry"]["services"]["topic"].as_array().cloned().unwrap_or_default();
        let up = status["clients"][0]["topic"].as_array().cloned().unwrap_or_default();
        let connected = up.iter().all(|endpoint| endpoint["state"] == "up") && up.len() == topics.len();
        (fits(&topics) && connected).then_some(())
    })
    .await;
}

/// Returns the revisions at which the topic keys were created, ascending.
async fn created(etcd: &Etcd) -> Vec<i64> {
    let options = etcd_client::GetOptions::new().with_prefix();
    let list = etcd.client().await.get("/services/topic/", Some(options)).await;
    let kvs = list.map(|list| list.kvs().to_vec()).unwrap_or_default();
    let mut revisions: Vec<_> = kvs.iter().map(etcd_client::KeyValue::create_revision).collect();
    revisions.sort_unstable();
    revisions
}

async fn wait_until_both_are_certain(admin: SocketAddr) {
    wait_for_topics(admin, "both are certain again", |topics| {
        topics.len() == 2 && topics.iter().all(|topic| topic["limbo"] == false)
    })
    .await;
}

/// Calls without a pause until it is told to stop; returns the calls made and the failures.
fn load(gateway: SocketAddr) -> (Arc<AtomicBool>, JoinHandle<(usize, Vec<String>)>) {
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let task = tokio::spawn(async move {
        let (mut calls, mut failures) = (0, Vec::new());
        let mut connection = Connection::open(gateway).await.expect("the gateway listens");
        while !stopped.load(Relaxed) || calls <= 50 {
            match connection.get("/api/topic/list").await {
                // an earlier answer would hide the trouble
                Ok(answer) if answer.status == 200 && answer.header("x-degraded").is_empty() => {}
                other => failures.push(format!("{other:?}")),
            }
            calls += 1;
            sleep(Duration::from_millis(5)).await;
        }
        (calls, failures)
    });
    (stop, task)
}

async fn no_failures((stop, task): (Arc<AtomicBool>, JoinHandle<(usize, Vec<String>)>)) {
    stop.store(true, Relaxed);
    let (calls, failures) = task.await.expect("the load ends");
    assert!(calls > 50, "only {calls} calls");
    assert!(failures.is_empty(), "{} of {calls} calls failed: {}", failures.len(), failures[0]);
}

/// F18: a frozen etcd deletes every expired key in the instant it wakes up, with nothing else changed.
#[tokio::test]
async fn an_etcd_frozen_for_longer_than_the_leases_fails_no_call() {
    let etcd = Etcd::start().await;
    let (_gateway, addr, admin) = role(&etcd, "apigateway", "127.0.0.1:0", &[]);
    let _topics = [(); 2].map(|()| role(&etcd, "topic", "127.0.0.1:0", &[]));
    wait_for_topics(admin, "both are called", |topics| topics.len() == 2).await;
    let load = load(addr);
    let before = created(&etcd).await;
    etcd.signal(Signal::STOP);
    sleep(3 * TTL).await;
    etcd.signal(Signal::CONT);
    wait_for("both keys went and were put again", || async {
        let now = created(&etcd).await;
        (now.len() == 2 && now.iter().all(|revision| *revision > before[1])).then_some(())
    })
    .await;
    wait_until_both_are_certain(admin).await;
    no_failures(load).await;
}

/// F14: nothing of the old registry is left; what it knew is still called until it is back.
#[tokio::test]
async fn a_wiped_etcd_empties_no_view() {
    let mut etcd = Etcd::start().await;
    let (_gateway, addr, admin) = role(&etcd, "apigateway", "127.0.0.1:0", &[]);
    let _topics = [(); 2].map(|()| role(&etcd, "topic", "127.0.0.1:0", &[]));
    wait_for_topics(admin, "both are called", |topics| topics.len() == 2).await;
    let load = load(addr);
    // a wiped etcd keeps its cluster id: only its revisions tell
    let mut client = etcd.client().await;
    for round in 0..50 {
        client.put("/elsewhere", round.to_string(), None).await.unwrap();
    }
    client.put("/services/topic/counted", "up to here", None).await.unwrap();
    wait_for("the view has come that far", || async {
        (status(admin).await["registry"]["revision"].as_i64() > Some(50)).then_some(())
    })
    .await;
    etcd.wipe().await;
    wait_for("the reset is announced", || async {
        (status(admin).await["registry"]["epoch"].as_u64() >= Some(1)).then_some(())
    })
    .await;
    wait_until_both_are_certain(admin).await;
    no_failures(load).await;
}

/// F20 and G1: what the registry lost is believed in as long as it answers, and no longer.
#[tokio::test]
async fn a_lost_instance_stays_while_it_answers_and_leaves_when_it_does_not() {
    let etcd = Etcd::start().await;
    // its own registry is another one, so nobody puts the key again that this test deletes
    let elsewhere = Etcd::start().await;
    let (mut topic, listen, _) = role(&elsewhere, "topic", "127.0.0.1:0", &[]);
    let (_gateway, addr, admin) = role(&etcd, "apigateway", "127.0.0.1:0", &[]);
    let mut client = etcd.client().await;
    let key = format!("/services/topic/{listen}");
    client.put(key.as_str(), listen.to_string(), None).await.unwrap();
    wait_for_topics(admin, "it is called", |topics| topics.len() == 1).await;
    client.delete(key.as_str(), None).await.unwrap();
    wait_for_topics(admin, "it is in doubt", |topics| topics.len() == 1 && topics[0]["limbo"] == true).await;
    // four probes
    let until = Instant::now() + Duration::from_secs(2);
    while Instant::now() < until {
        assert_eq!(get(addr, "/api/topic/list").await.status, 200);
        sleep(Duration::from_millis(50)).await;
    }
    topic.kill();
    wait_for("it is gone", || async {
        status(admin).await["registry"]["services"]["topic"].is_null().then_some(())
    })
    .await;
    // a list that nobody has asked for before: the other has a last good answer
    assert_eq!(get(addr, "/api/topic/list?size=7").await.status, 503);
}

/// F13: the last good view is on disk.
#[tokio::test]
async fn a_gateway_that_restarts_while_etcd_is_away_serves_from_disk() {
    let mut etcd = Etcd::start().await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("view").display().to_string();
    let env = [("MSA__REGISTRY__SNAPSHOT_FILE", file.as_str())];
    let (mut gateway, _, admin) = role(&etcd, "apigateway", "127.0.0.1:0", &env);
    let (_topic, topic_addr, _) = role(&etcd, "topic", "127.0.0.1:0", &[]);
    wait_for_topics(admin, "topic is called", |topics| topics.len() == 1).await;
    wait_for("the view is on disk", || async {
        std::fs::read_to_string(&file).ok().filter(|text| text.contains(&topic_addr.to_string()))
    })
    .await;
    gateway.kill();
    etcd.kill();
    let (_gateway, addr, admin) = role(&etcd, "apigateway", "127.0.0.1:0", &env);
    wait_for("it serves", || async { (get(addr, "/api/topic/list").await.status == 200).then_some(()) })
        .await;
    let ready = get(admin, "/readyz").await;
    assert_eq!(ready.status, 200, "{}", ready.body);
    assert!(ready.body.contains("warn: registry: never heard from yet\n"), "{}", ready.body);
    etcd.restart().await;
    wait_for("no warning is left but for what is not there", || async {
        (!get(admin, "/readyz").await.body.contains("registry:")).then_some(())
    })
    .await;
}

/// F17 and F18: a silent etcd is noticed within the setting, by silence and not only by a broken pipe.
#[tokio::test]
async fn a_silent_etcd_is_noticed() {
    let etcd = Etcd::start().await;
    let env = [("MSA__REGISTRY__WATCH_SILENCE_MS", "1500")];
    let (mut gateway, _, admin) = role(&etcd, "apigateway", "127.0.0.1:0", &env);
    let age = || async { status(admin).await["registry"]["age_seconds"].as_f64() };
    let mut last = 0.0;
    while age().await.is_none_or(|age| age >= last) {
        last = age().await.unwrap_or(0.0);
        assert!(last < 20.0, "the watch confirms nothing");
        sleep(Duration::from_millis(20)).await;
    }
    etcd.signal(Signal::STOP);
    let begun = Instant::now();
    let line = gateway
        .wait_for_log("the silence", |line| line["message"] == "lost the registry, keeping the last view");
    let took = begun.elapsed();
    etcd.signal(Signal::CONT);
    assert_eq!(line["error"], json!("etcd said nothing for 1.5s"));
    assert!(took < Duration::from_secs(4), "{took:?}");
}

/// F22: an address that another service has taken is not called as this one.
#[tokio::test]
async fn a_recycled_address_is_refused_by_identity() {
    let etcd = Etcd::start().await;
    let (_gateway, addr, admin) = role(&etcd, "apigateway", "127.0.0.1:0", &[]);
    let (_feed, feed_addr, _) = role(&etcd, "feed", "127.0.0.1:0", &[]);
    let (_topic, _, _) = role(&etcd, "topic", "127.0.0.1:0", &[]);
    wait_for_topics(admin, "the right one is called", |topics| topics.len() == 1).await;
    let mut client = etcd.client().await;
    client.put(format!("/services/topic/{feed_addr}"), feed_addr.to_string(), None).await.unwrap();
    wait_for("the wrong one is known as such", || async {
        let status = status(admin).await;
        let topics = status["clients"][0]["topic"].as_array()?.clone();
        let wrong = topics.iter().find(|topic| topic["addr"] == feed_addr.to_string())?;
        (wrong["state"] == "wrong_service").then_some(())
    })
    .await;
    for _ in 0..20 {
        assert_eq!(get(addr, "/api/topic/list").await.status, 200);
    }
}

/// An instance that stops says so on every connection, whatever the registry does.
#[tokio::test]
async fn a_drain_is_seen_while_etcd_is_away() {
    let mut etcd = Etcd::start().await;
    let (_gateway, addr, admin) = role(&etcd, "apigateway", "127.0.0.1:0", &[]);
    let (_stays, _, _) = role(&etcd, "topic", "127.0.0.1:0", &[]);
    // time to look while it drains
    let env = [("MSA__SHUTDOWN__ANNOUNCE_MS", "10000")];
    let (leaves, leaving, _) = role(&etcd, "topic", "127.0.0.1:0", &env);
    wait_for_topics(admin, "both are called", |topics| topics.len() == 2).await;
    etcd.kill();
    let load = load(addr);
    leaves.signal(Signal::TERM);
    wait_for("its health is known", || async {
        let status = status(admin).await;
        let topics = status["clients"][0]["topic"].as_array()?.clone();
        let state = topics.iter().find(|topic| topic["addr"] == leaving.to_string())?["state"].clone();
        (state == "not_serving").then_some(())
    })
    .await;
    no_failures(load).await;
    let metrics = get(admin, "/metrics").await.body;
    let retries = metrics.lines().filter(|line| line.starts_with("client_retry_granted_total{"));
    assert!(
        retries.clone().count() > 0 && retries.clone().all(|line| line.ends_with(" 0")),
        "calls still went there"
    );
}

/// A restart at the same address while etcd is away: the same service, so it is called.
#[tokio::test]
async fn a_restarted_instance_is_called_at_its_old_address_and_its_id_adopted() {
    let mut etcd = Etcd::start().await;
    let (_gateway, addr, admin) = role(&etcd, "apigateway", "127.0.0.1:0", &[]);
    let (mut topic, listen, _) = role(&etcd, "topic", "127.0.0.1:0", &[]);
    wait_for_topics(admin, "it is called", |topics| topics.len() == 1).await;
    etcd.kill();
    topic.kill();
    let (_again, _, _) = role(&etcd, "topic", &listen.to_string(), &[]);
    wait_for("it is called again", || async {
        (get(addr, "/api/topic/list").await.status == 200).then_some(())
    })
    .await;
    let status = status(admin).await;
    let endpoint = &status["clients"][0]["topic"][0];
    let registered = &status["registry"]["services"]["topic"][0]["id"];
    assert!(endpoint["adopted_id"].is_string() && endpoint["adopted_id"] != *registered, "{endpoint}");
}
