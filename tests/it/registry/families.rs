//! IPv4 and IPv6: who listens on which, and what is advertised.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use serde_json::Value;

use crate::kit::etcd::{Etcd, Options};
use crate::kit::http::{get, put};
use crate::kit::process::Process;
use crate::kit::{SOON, free_addr, wait_for};

/// Returns an etcd that also listens on the IPv6 loopback address, and that address.
async fn etcd() -> (Etcd, SocketAddr) {
    let v6 = SocketAddr::from((Ipv6Addr::LOCALHOST, free_addr().port()));
    (Etcd::start_with(Options { also: Some(v6), ..Options::default() }).await, v6)
}

/// Starts a role that listens on `listen`, its admin port on `admin`.
fn launch(role: &str, etcd: SocketAddr, listen: &str, admin: &str, more: &[&str]) -> Process {
    let flag = if role == "apigateway" { "--http-addr" } else { "--addr" };
    let args = [role, flag, listen, "--debug-addr", admin, "--etcd-addr", &etcd.to_string()];
    Process::start(&[&args[..], more].concat())
}

/// Returns the same ports at both loopback addresses.
fn both(addr: SocketAddr) -> [SocketAddr; 2] {
    [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()].map(|ip| SocketAddr::new(ip, addr.port()))
}

/// Returns what an instance has registered.
async fn entry(etcd: &Etcd, service: &str) -> (String, Value) {
    let prefix = format!("/services/{service}/");
    let (key, value) = wait_for("it is registered", || async { etcd.list(&prefix).await.pop() }).await;
    let value: Value = serde_json::from_str(&value).unwrap();
    (key[prefix.len()..].to_owned(), value["instance"].clone())
}

/// A host whose route to etcd is IPv6 advertises an IPv6 address: it is the one that everybody calls.
#[tokio::test]
async fn a_system_whose_routes_are_ipv6_works_by_default() {
    let (etcd, v6) = etcd().await;
    let start = |role: &str| {
        let mut process = launch(role, v6, ":0", ":0", &[]);
        let addrs = process.wait_for_role(role);
        (process, addrs)
    };
    let roles = ["feed", "profile", "topic"].map(|role| (role, start(role)));
    let (mut gateway, (addr, admin)) = start("apigateway");
    for (role, (_, (addr, admin))) in &roles {
        let (key, instance) = entry(&etcd, role).await;
        assert_eq!(key, format!("[::1]:{}", addr.port()));
        assert_eq!(instance["admin"], format!("[::1]:{}", admin.port()));
    }
    let [v4, v6] = both(addr);
    wait_for("every service is called", || async {
        let status = get(both(admin)[1], "/status").await.json();
        let up = |service| status["clients"][0][service][0]["state"] == "up";
        ["feed", "profile", "topic"].into_iter().all(up).then_some(())
    })
    .await;
    // over both families, the gateway's own and that of the services
    let profile = r#"{"user_id":1,"name":"Ada","company":"AE","title":"Countess"}"#;
    assert_eq!(put(v6, "/api/profile/put_profile", profile).await.status, 200);
    assert_eq!(put(v4, "/api/feed/create_feed", r#"{"id":2,"user_id":1,"content":"x"}"#).await.status, 200);
    for gateway in [v4, v6] {
        let answer = get(gateway, "/api/profile/get_profile?user_id=1").await;
        assert_eq!((answer.status.as_u16(), answer.degraded()), (200, ""), "{gateway}");
        assert_eq!(answer.json()["feeds"][0]["id"], 2);
    }
    for (_, (_, (addr, admin))) in &roles {
        for addr in both(*addr) {
            drop(tokio::net::TcpStream::connect(addr).await.unwrap());
        }
        for admin in both(*admin) {
            // a caller over IPv4 is one of this host there too
            assert_eq!(get(admin, "/status").await.status, 200, "{admin}");
        }
    }
    gateway.stop(SOON);
}

/// Nobody could call it: that is an error, and the message says what to set.
#[tokio::test]
async fn a_family_that_is_not_bound_is_not_advertised() {
    let (etcd, v6) = etcd().await;
    let own = ["--advertise-addr", "[::1]:0"];
    for (addr, listen, more) in
        [(v6, "0.0.0.0:0", &[][..]), (etcd.addr, "0.0.0.0:0", &own), (etcd.addr, "127.0.0.1:0", &own)]
    {
        let mut topic = launch("topic", addr, listen, "127.0.0.1:0", more);
        let status = topic.wait(SOON);
        let last = topic.seen.iter().filter_map(Value::as_str).next_back().unwrap_or_default();
        assert_eq!(status.code(), Some(1), "{listen} {addr} {more:?}: {:?}", topic.seen);
        assert!(last.contains("it listens on IPv4 only"), "{last}");
        assert!(last.contains("grpc.a"), "{last}");
    }
    // a gateway is called by people, it serves all the same
    let mut gateway = launch("apigateway", v6, "0.0.0.0:0", "127.0.0.1:0", &[]);
    let (_, admin) = gateway.wait_for_role("apigateway");
    let warnings = get(admin, "/readyz").await.body;
    assert!(
        warnings.contains("not registered") && warnings.contains("it listens on IPv4 only"),
        "{warnings}"
    );
    assert_eq!(etcd.list("/services/").await, []);
}

/// Prometheus would find a target that never answers.
#[tokio::test]
async fn an_admin_address_of_a_family_that_is_not_bound_is_not_advertised() {
    let (etcd, v6) = etcd().await;
    let mut topic = launch("topic", v6, ":0", "0.0.0.0:0", &[]);
    let (_, admin) = topic.wait_for_role("topic");
    let (_, instance) = entry(&etcd, "topic").await;
    assert!(instance["admin"].is_null(), "{instance}");
    let warnings = get(both(admin)[0], "/readyz").await.body;
    assert!(warnings.contains("admin.addr") && warnings.contains("IPv4 only"), "{warnings}");
    topic.stop(SOON);
}
