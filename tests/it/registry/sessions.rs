//! Sessions with etcd: how they end, and when the next one begins.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use etcd_client::CompactionOptions;
use microservice_app::config;
use microservice_app::registry::{
    Dial, Etcd as Registry, Instance, Probe, Registered, Registry as _, Socket, dial_tcp,
};
use rustix::process::Signal;
use tokio::time::{Instant, sleep, timeout};

use crate::kit::etcd::Etcd;
use crate::kit::relay::{Faults, Relay};
use crate::kit::system::Role;
use crate::kit::wait_for;

fn nobody() -> Probe {
    Arc::new(|_| Box::pin(std::future::pending()))
}

fn settings(etcd: &Etcd, backoff_cap: Duration) -> config::Registry {
    config::Registry { endpoints: vec![etcd.addr.to_string()], backoff_cap, ..Default::default() }
}

/// The tasks of one process wait for etcd each by itself. Once one of them has reached it, no other waits any longer.
#[tokio::test]
async fn whatever_waits_for_etcd_comes_back_together() {
    let etcd = Etcd::start().await;
    let settings = settings(&etcd, Duration::from_secs(20));
    let (open, tcp) = (Arc::new(AtomicBool::new(false)), dial_tcp(settings.timeout));
    let dial: Dial = {
        let open = open.clone();
        Arc::new(move |addr| {
            if open.load(Relaxed) {
                tcp(addr)
            } else {
                Box::pin(async { Err(io::ErrorKind::ConnectionRefused.into()) })
            }
        })
    };
    let registry = Registry::new(settings, nobody(), dial).unwrap();
    let mut view = registry.view();
    let registrations: Vec<_> =
        (1..5).map(|n| registry.register(Instance::bare("feed", &format!("10.0.0.{n}:1")))).collect();
    // by now each waits for some seconds
    sleep(Duration::from_millis(2500)).await;
    open.store(true, Relaxed);
    let mut up = Vec::new();
    for registration in &registrations {
        let mut state = registration.state();
        up.push(async move {
            state.wait_for(|state| *state == Registered::Up).await.unwrap();
            Instant::now()
        });
    }
    let known = async {
        while !view.get().is_known() {
            view.changed().await.unwrap();
        }
        Instant::now()
    };
    let (mut times, known) = tokio::join!(futures_util::future::join_all(up), known);
    times.push(known);
    let (first, last) = (times.iter().min().unwrap(), times.iter().max().unwrap());
    assert!(
        *last - *first < Duration::from_millis(300),
        "{:?} between the first and the last",
        *last - *first
    );
}

/// Opens connections that break after 150 ms: time enough to list and to register. Counts them.
fn breaking(registry: &config::Registry) -> (Dial, Arc<AtomicUsize>) {
    let (opened, tcp) = (Arc::new(AtomicUsize::new(0)), dial_tcp(registry.timeout));
    let count = opened.clone();
    let dial: Dial = Arc::new(move |addr| {
        count.fetch_add(1, Relaxed);
        let connect = tcp(addr);
        Box::pin(async move {
            let mut server = connect.await?;
            let (here, mut there) = tokio::io::duplex(64 * 1024);
            tokio::spawn(async move {
                let relayed = tokio::io::copy_bidirectional(&mut there, &mut server);
                let _ = timeout(Duration::from_millis(150), relayed).await;
            });
            Ok(Box::new(here) as Box<dyn Socket>)
        })
    });
    (dial, opened)
}

/// Something between here and etcd lets each list and each registration through and then breaks the stream.
#[tokio::test]
async fn streams_that_break_again_and_again_are_opened_ever_more_rarely() {
    let etcd = Etcd::start().await;
    let settings = settings(&etcd, Duration::from_secs(2));
    for follows in [true, false] {
        let (dial, opened) = breaking(&settings);
        let registry = Registry::new(settings.clone(), nobody(), dial).unwrap();
        let view = follows.then(|| registry.view());
        let registration = (!follows).then(|| registry.register(Instance::bare("feed", "10.0.0.1:1")));
        sleep(Duration::from_secs(6)).await;
        assert!(view.is_none_or(|view| view.get().is_known()), "it was listed");
        drop(registration);
        let opened = opened.load(Relaxed);
        assert!((3..=12).contains(&opened), "{opened} connections in 6 s, follows: {follows}");
    }
    assert_eq!(etcd.list("/services/feed/").await.len(), 1, "it was registered");
}

/// A member that is silent costs no lease, however long a request may take.
#[tokio::test]
async fn a_frozen_member_costs_no_lease_whatever_the_time_limit() {
    let etcd = Etcd::start().await;
    let ways = [Relay::start(etcd.addr, 1).await, Relay::start(etcd.addr, 2).await];
    let endpoints = format!("{},{}", ways[0].addr, ways[1].addr);
    let env = [
        ("MSA__REGISTRY__TIMEOUT_MS", "30000"),
        ("MSA__REGISTRY__TTL_S", "3"),
        ("MSA__REGISTRY__KEEPALIVE_MS", "1000"),
    ];
    let topic = Role::start(&endpoints, "topic", "127.0.0.1:0", &env);
    let created = || async {
        let found = etcd.client().await.get(format!("/services/topic/{}", topic.addr), None).await.ok()?;
        found.kvs().first().map(etcd_client::KeyValue::create_revision)
    };
    let before = wait_for("it is registered", created).await;
    let used = wait_for("it is connected", || async { ways.iter().position(|way| way.open() > 0) }).await;
    ways[used].set(Faults::cut());
    sleep(Duration::from_secs(5)).await;
    assert_eq!(created().await, Some(before), "the lease was renewed through the other member");
}

/// A gateway that was frozen has fallen so far behind that what it missed is compacted.
#[tokio::test]
async fn a_compacted_watch_is_logged_with_its_reason() {
    let etcd = Etcd::start().await;
    let mut gateway = Role::gateway(&etcd.addr.to_string());
    let [_topic] = Role::services(&etcd.addr.to_string(), "topic");
    gateway.wait_for_certain("topic", 1).await;
    let (client, value) = (etcd.client().await, "x".repeat(1024));
    let is_loss = |line: &serde_json::Value| line["message"] == "lost the registry, keeping the last view";
    // etcd may have read on for the watcher in time; then it is tried again
    for _ in 0..5 {
        gateway.process.signal(Signal::STOP);
        // more than etcd keeps for a watcher that reads nothing: 1024 answers beyond the window of the stream
        let puts = (0..3000).map(|n| {
            let (mut client, value) = (client.clone(), value.clone());
            async move { client.put(format!("/services/junk{}", n % 10), value, None).await }
        });
        let puts = futures_util::future::join_all(puts).await;
        let put = puts.into_iter().map(|put| put.expect("etcd answers").header().unwrap().revision()).max();
        let physical = CompactionOptions::new().with_physical();
        client.clone().compact(put.unwrap(), Some(physical)).await.expect("etcd compacts");
        gateway.process.signal(Signal::CONT);
        let until = Instant::now() + Duration::from_secs(2);
        while Instant::now() < until && gateway.process.count_logs(is_loss) == 0 {
            sleep(Duration::from_millis(20)).await;
        }
        if gateway.process.count_logs(is_loss) > 0 {
            break;
        }
    }
    let lost = gateway.process.wait_for_log("the loss", is_loss);
    let error = lost["error"].as_str().unwrap();
    assert!(error.contains("events up to revision") && error.contains("are compacted"), "{error}");
    gateway.wait_for_certain("topic", 1).await;
}
