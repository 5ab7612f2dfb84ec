//! Registration and the view against a real etcd.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use etcd_client::PutOptions;
use serde_json::{Value, json};

use crate::kit::etcd::Etcd;
use crate::kit::http::{get, put};
use crate::kit::metrics::metric;
use crate::kit::process::Process;
use crate::kit::{SOON, member, wait_for};

/// A gateway over an etcd.
struct Gateway {
    _process: Process,
    addr: SocketAddr,
    admin: SocketAddr,
}

fn gateway(etcd: &Etcd) -> Gateway {
    let args = ["apigateway", "--http-addr", "127.0.0.1:0", "--debug-addr", "127.0.0.1:0"];
    let mut process = Process::start(&[&args[..], &["--etcd-addr", &etcd.addr.to_string()]].concat());
    let (addr, admin) = process.wait_for_role("apigateway");
    Gateway { _process: process, addr, admin }
}

fn service(etcd: &Etcd, role: &'static str, more: &[&str]) -> (Process, SocketAddr) {
    let args = [role, "--addr", "127.0.0.1:0", "--debug-addr", "127.0.0.1:0"];
    let mut process = Process::start(&[&args[..], &["--etcd-addr", &etcd.addr.to_string()], more].concat());
    let (addr, _) = process.wait_for_role(role);
    (process, addr)
}

/// Waits until the gateway is connected to exactly these instances of a service.
async fn wait_for_instances(gateway: &Gateway, service: &str, wanted: &[SocketAddr]) {
    let mut wanted: Vec<_> = wanted.iter().map(ToString::to_string).collect();
    wanted.sort();
    wait_for("the gateway knows the instances", || async {
        let status = get(gateway.admin, "/status").await.json();
        let known = status["clients"][0][service].as_array()?.clone();
        let up = known.iter().filter(|i| i["state"] == "up");
        let mut up: Vec<_> = up.filter_map(|i| i["addr"].as_str().map(str::to_owned)).collect();
        up.sort();
        (up == wanted && known.len() == wanted.len()).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_service_started_later_than_the_gateway_is_found_and_leaves_when_it_stops() {
    let etcd = Etcd::start().await;
    let gateway = gateway(&etcd);
    assert_eq!(get(gateway.addr, "/api/topic/list").await.status, 503);
    let (mut topic, addr) = service(&etcd, "topic", &[]);
    wait_for_instances(&gateway, "topic", &[addr]).await;
    assert_eq!(get(gateway.addr, "/api/topic/list").await.status, 200);
    topic.stop(SOON);
    assert_eq!(etcd.list("/services/topic/").await, []);
    wait_for_instances(&gateway, "topic", &[]).await;
    let stale = get(gateway.addr, "/api/topic/list").await;
    assert_eq!((stale.status.as_u16(), stale.degraded()), (200, "stale"));
    assert_eq!(get(gateway.addr, "/api/topic/list?size=7").await.status, 503);
}

#[tokio::test]
async fn the_entry_is_naming_json_under_a_lease() {
    let etcd = Etcd::start().await;
    let (_feed, addr) = service(&etcd, "feed", &[]);
    let (key, value) = wait_for("the key", || async { etcd.list("/services/feed/").await.pop() }).await;
    assert_eq!(key, format!("/services/feed/{addr}"));
    let value: Value = serde_json::from_str(&value).unwrap();
    assert_eq!(
        (&value["Op"], &value["Addr"], member(&value, "Metadata")),
        (&json!(0), &json!(addr.to_string()), &Value::Null)
    );
    let instance = value["instance"].as_object().unwrap();
    let fields: Vec<_> = instance.keys().map(String::as_str).collect();
    let mut expected = ["id", "version", "zone", "weight", "state", "admin", "started_at"];
    expected.sort_unstable();
    assert_eq!(fields, expected);
    assert_eq!(instance["state"], "up");
    let found = etcd.client().await.get(key, None).await.unwrap();
    assert_ne!(found.kvs()[0].lease(), 0);
}

#[tokio::test]
async fn two_feed_instances_on_one_store_agree() {
    let etcd = Etcd::start().await;
    let gateway = gateway(&etcd);
    let dir = tempfile::tempdir().unwrap();
    let store = format!("sqlite:{}/feed.db", dir.path().display());
    let (one, first) = service(&etcd, "feed", &["--store", &store]);
    let (two, second) = service(&etcd, "feed", &["--store", &store]);
    wait_for_instances(&gateway, "feed", &[first, second]).await;
    for id in 1..=20 {
        let body = json!({"id": id, "user_id": 7, "content": "x"}).to_string();
        assert_eq!(put(gateway.addr, "/api/feed/create_feed", &body).await.status, 200);
        let page = get(gateway.addr, "/api/feed/get_feeds?user_id=7&size=1000").await.json();
        assert_eq!(page["feeds"].as_array().unwrap().len(), id);
    }
    // both took part
    let mut counts = BTreeMap::new();
    for mut process in [one, two] {
        let (addr, admin) = process.wait_for_role("feed");
        let series =
            "grpc_server_handling_seconds_count{code=\"OK\",method=\"CreateFeed\",service=\"feed.Feed\"}";
        counts.insert(addr, metric(admin, series).await as u32);
    }
    assert_eq!(counts.values().sum::<u32>(), 20);
    assert!(counts.values().all(|count| *count > 0), "{counts:?}");
}

#[tokio::test]
async fn a_lost_entry_comes_back() {
    let etcd = Etcd::start().await;
    let (_feed, _) = service(&etcd, "feed", &[]);
    let registered = || async { etcd.list("/services/feed/").await.pop() };
    let (key, value) = wait_for("the key", registered).await;
    let mut client = etcd.client().await;

    client.delete(key.as_str(), None).await.unwrap();
    assert_eq!(wait_for("it is back after a delete", registered).await, (key.clone(), value.clone()));

    client.put(key.as_str(), "10.9.9.9:1", None).await.unwrap();
    wait_for("it is right again after an overwrite", || async {
        (registered().await? == (key.clone(), value.clone())).then_some(())
    })
    .await;

    let lease = client.get(key.as_str(), None).await.unwrap().kvs()[0].lease();
    client.lease_revoke(lease).await.unwrap();
    assert_eq!(wait_for("it is back after a revoke", registered).await, (key, value));
}

#[tokio::test]
async fn an_instance_that_crashed_leaves_with_its_lease() {
    let etcd = Etcd::start().await;
    let gateway = gateway(&etcd);
    let (mut crashed, first) = service(&etcd, "topic", &[]);
    let (_other, second) = service(&etcd, "topic", &[]);
    wait_for_instances(&gateway, "topic", &[first, second]).await;
    crashed.kill();
    wait_for("the dead one is not called", || async {
        let status = get(gateway.admin, "/status").await.json();
        let known = status["clients"][0]["topic"].as_array()?.clone();
        let dead = known.iter().find(|i| i["addr"] == first.to_string());
        dead.is_none_or(|i| i["state"] == "down").then_some(())
    })
    .await;
    for _ in 0..20 {
        let answer = get(gateway.addr, "/api/topic/list").await;
        assert_eq!((answer.status.as_u16(), answer.degraded()), (200, ""));
    }
    wait_for_instances(&gateway, "topic", &[second]).await;
}

#[tokio::test]
async fn calls_go_on_and_services_return_through_a_restart_of_etcd() {
    let mut etcd = Etcd::start().await;
    let gateway = gateway(&etcd);
    let (_topic, first) = service(&etcd, "topic", &[]);
    wait_for_instances(&gateway, "topic", &[first]).await;
    etcd.kill();
    // longer than the lease
    let until = tokio::time::Instant::now() + Duration::from_secs(4);
    while tokio::time::Instant::now() < until {
        assert_eq!(get(gateway.addr, "/api/topic/list").await.status, 200);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    etcd.restart().await;
    wait_for("topic is registered again", || async { etcd.list("/services/topic/").await.pop() }).await;
    let (_second, second) = service(&etcd, "topic", &[]);
    wait_for_instances(&gateway, "topic", &[first, second]).await;
    assert_eq!(get(gateway.addr, "/api/topic/list").await.status, 200);
}

#[tokio::test]
async fn foreign_keys_are_ignored_and_a_bare_address_is_read() {
    let etcd = Etcd::start().await;
    let gateway = gateway(&etcd);
    let (topic, addr) = service(&etcd, "topic", &["--advertise-addr", "127.0.0.1:0"]);
    let mut client = etcd.client().await;
    for (key, value) in [
        ("/services/topic/10.0.0.1:1", "junk"),
        ("/services/topic/nonsense", "10.0.0.1:1"),
        ("/services/odd", "1"),
        ("/services/topic/10.0.0.2:1", "{\"Addr\":\"10.0.0.3:1\"}"),
    ] {
        client.put(key, value, None).await.unwrap();
    }
    wait_for_instances(&gateway, "topic", &[addr]).await;
    wait_for("four keys are ignored", || async {
        let status = get(gateway.admin, "/status").await.json();
        (status["registry"]["ignored_keys"] == 4).then_some(())
    })
    .await;
    // as the original registered: its address only
    let lease = client.lease_grant(60, None).await.unwrap().id();
    let bare = addr.to_string();
    let options = PutOptions::new().with_lease(lease);
    client.put(format!("/services/profile/{bare}"), bare.clone(), Some(options)).await.unwrap();
    wait_for("the bare address is read", || async {
        let status = get(gateway.admin, "/status").await.json();
        (status["registry"]["services"]["profile"][0]["addr"] == bare).then_some(())
    })
    .await;
    drop(topic);
}

/// etcd lets everybody who may write write 1.5 MiB a key, and clients of gRPC read 4 MiB by default: three such keys would
/// blind every reader of the registry.
#[tokio::test]
async fn a_registry_full_of_large_values_is_still_read() {
    let etcd = Etcd::start().await;
    let mut client = etcd.client().await;
    let large = vec![b'x'; 1_400_000];
    for number in 0..4 {
        client.put(format!("/services/feed/large-{number}"), large.clone(), None).await.unwrap();
    }
    let gateway = gateway(&etcd);
    let (_topic, addr) = service(&etcd, "topic", &[]);
    wait_for_instances(&gateway, "topic", &[addr]).await;
    // and they may be written while somebody watches
    for number in 4..8 {
        client.put(format!("/services/feed/large-{number}"), large.clone(), None).await.unwrap();
    }
    let (_second, other) = service(&etcd, "topic", &[]);
    wait_for_instances(&gateway, "topic", &[addr, other]).await;
    let status = get(gateway.admin, "/status").await.json();
    assert_eq!(status["registry"]["ignored_keys"], 8, "{status:#}");
}
