//! The original README's walkthrough, with the real curl, byte for byte.

use std::net::SocketAddr;

use crate::kit::etcd::Etcd;
use crate::kit::process::{Process, curl};
use crate::kit::{http, wait_for};

const EXPECTED: &str = r#"{
    "feeds": [
        {
            "id": 100,
            "user_id": 123,
            "content": "hello world"
        },
        {
            "id": 101,
            "user_id": 123,
            "content": "goodbye!"
        }
    ]
}"#;

/// The three commands; what they print is pinned because users' scripts depend on it.
pub fn walk(gateway: SocketAddr) {
    let create = format!("http://{gateway}/api/feed/create_feed");
    let put = |body: &str| curl(&["-XPUT", &create, "-d", body]);
    assert_eq!(put(r#"{"id":100,"user_id":123,"content":"hello world"}"#), "{}");
    assert_eq!(put(r#"{"id":101,"user_id":123,"content":"goodbye!"}"#), "{}");
    read(gateway);
}

/// The last of them alone: what [`walk`] has written is there.
pub fn read(gateway: SocketAddr) {
    let feeds = curl(&["-XGET", &format!("http://{gateway}/api/feed/get_feeds?user_id=123&&size=2")]);
    assert_eq!(feeds, EXPECTED);
}

#[test]
fn the_original_curls_work_against_up() {
    let data = tempfile::tempdir().unwrap();
    let dir = data.path().display().to_string();
    let mut up = Process::start(&["up", "--free-ports", "--data-dir", &dir]);
    let gateway = up.wait_for_roles()["apigateway"];
    walk(gateway);
    // what was written is there after a restart
    up.stop(crate::kit::SOON);
    let mut up = Process::start(&["up", "--free-ports", "--data-dir", &dir]);
    let gateway = up.wait_for_roles()["apigateway"];
    let feeds = curl(&[&format!("http://{gateway}/api/feed/get_feeds?user_id=123")]);
    assert_eq!(feeds, EXPECTED);
}

#[tokio::test]
async fn the_original_curls_work_against_separate_processes_over_etcd() {
    let etcd = Etcd::start().await;
    let addr = etcd.addr.to_string();
    let common = ["--debug-addr", "127.0.0.1:0", "--etcd-addr", &addr];
    let start = |role, listen| {
        let args = [&[role, listen, "127.0.0.1:0"], &common[..]].concat();
        Process::start(&args)
    };
    let mut gateway = start("apigateway", "--http-addr");
    let (gateway_addr, admin) = gateway.wait_for_role("apigateway");
    let _services = ["feed", "profile", "topic"].map(|role| start(role, "--addr"));
    wait_for("every service is found", || async {
        (http::get(admin, "/readyz").await.body == "ready\n").then_some(())
    })
    .await;
    walk(gateway_addr);
    let keys = etcd.list("/services/").await;
    let services: Vec<_> = keys.iter().filter_map(|(key, _)| key.split('/').nth(2)).collect();
    assert_eq!(services, ["apigateway", "feed", "profile", "topic"]);
}

#[tokio::test]
async fn up_over_a_real_etcd_serves_the_same() {
    let etcd = Etcd::start().await;
    let data = tempfile::tempdir().unwrap();
    let (dir, addr) = (data.path().display().to_string(), etcd.addr.to_string());
    let mut up = Process::start(&["up", "--free-ports", "--data-dir", &dir, "--etcd-addr", &addr]);
    let gateway = up.wait_for_roles()["apigateway"];
    wait_for("feed is found", || async {
        let answer = http::get(gateway, "/api/feed/get_feeds?user_id=1").await;
        (answer.status == 404).then_some(())
    })
    .await;
    walk(gateway);
}
