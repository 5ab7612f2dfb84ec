//! What the faults of the registry (`faults/registry.rs`) do not show: how callers of an instance learn
//! of its end and of its successor while etcd is away.

use rustix::process::Signal;

use crate::kit::etcd::Etcd;
use crate::kit::guarantees;
use crate::kit::http::get;
use crate::kit::load::Load;
use crate::kit::system::Role;
use crate::kit::wait_for;

const LIST: &str = "/api/topic/list";

/// An instance that stops says so on every connection, whatever the registry does.
#[tokio::test]
async fn a_drain_is_seen_while_etcd_is_away() {
    let mut etcd = Etcd::start().await;
    let endpoint = etcd.addr.to_string();
    let gateway = Role::gateway(&endpoint);
    let [_stays] = Role::services(&endpoint, "topic");
    // time to look while it drains
    let env = [("MSA__SHUTDOWN__ANNOUNCE_MS", "10000")];
    let leaves = Role::start(&endpoint, "topic", "127.0.0.1:0", &env);
    gateway.wait_for_certain("topic", 2).await;
    etcd.kill();
    let load = Load::get(gateway.addr, 200.0, LIST).start();
    leaves.process.signal(Signal::TERM);
    wait_for("its health is known", || async {
        let endpoint = gateway.endpoint("topic", leaves.addr).await?;
        (endpoint["state"] == "not_serving").then_some(())
    })
    .await;
    load.more(50).await;
    guarantees::no_stop_loss(&load.finish().await).unwrap();
    assert!(gateway.metric("client_retry_granted_total{").await < 1.0, "calls still went there");
}

/// A restart at the same address while etcd is away: the same service, so it is called.
#[tokio::test]
async fn a_restarted_instance_is_called_at_its_old_address_and_its_id_adopted() {
    let mut etcd = Etcd::start().await;
    let endpoint = etcd.addr.to_string();
    let gateway = Role::gateway(&endpoint);
    let [mut topic] = Role::services(&endpoint, "topic");
    gateway.wait_for_certain("topic", 1).await;
    etcd.kill();
    topic.process.kill();
    let again = Role::start(&endpoint, "topic", &topic.addr.to_string(), &[]);
    wait_for("it is called again", || async { (get(gateway.addr, LIST).await.status == 200).then_some(()) })
        .await;
    let registered = gateway.id_of("topic", again.addr).await;
    let endpoint = gateway.endpoint("topic", again.addr).await.expect("it is called");
    assert!(endpoint["adopted_id"].is_string() && endpoint["adopted_id"] != registered, "{endpoint}");
}
