//! `/sd/targets`, and what a real Prometheus makes of it with the shipped configuration.

use serde_json::Value;

use crate::kit::app::App;
use crate::kit::etcd::Etcd;
use crate::kit::http::get;
use crate::kit::process::Process;
use crate::kit::prometheus::{Prometheus, shipped_config};
use crate::kit::{SOON, free_addr, wait_for, wait_long_for};

/// Starts a role with its admin listener at an address; returns it with that address.
fn role(role: &str, registry: &str, admin: &str) -> (Process, String) {
    let listen = if role == "apigateway" { "--http-addr" } else { "--addr" };
    let args = [role, listen, "127.0.0.1:0", "--debug-addr", admin, "--etcd-addr", registry];
    let mut process = Process::start(&args);
    let (_, admin) = process.wait_for_role(role);
    (process, admin.to_string())
}

/// Returns `service state` of a target, empty if it is not there.
fn told(groups: &Value, admin: &str) -> String {
    let group = groups.as_array().unwrap().iter().find(|group| group["targets"][0] == admin);
    let label = |name: &str| group?["labels"][format!("__meta_msa_{name}")].as_str();
    format!("{} {}", label("service").unwrap_or_default(), label("state").unwrap_or_default())
}

#[tokio::test]
async fn up_tells_one_target_for_all_of_its_roles() {
    let app = App::start().await;
    let admin = app.addresses.admin;
    let answer = get(admin, "/sd/targets").await;
    assert_eq!((answer.status.as_u16(), answer.header("content-type")), (200, "application/json"));
    let groups = answer.json();
    assert_eq!(groups.as_array().unwrap().len(), 1, "{groups}");
    assert_eq!(told(&groups, &admin.to_string()), "up up");
}

#[tokio::test]
async fn who_cannot_know_the_targets_says_so_instead_of_none() {
    let nobody = free_addr().to_string();
    let (_topic, topic) = role("topic", &nobody, "127.0.0.1:0");
    let answer = get(topic.parse().unwrap(), "/sd/targets").await;
    assert_eq!(answer.status, 404);
    assert_eq!(answer.body, "this process does not follow the registry: ask a gateway\n");
    // an empty list would take every target from Prometheus
    let (_gateway, gateway) = role("apigateway", &nobody, "127.0.0.1:0");
    assert_eq!(get(gateway.parse().unwrap(), "/sd/targets").await.status, 503);
}

#[tokio::test]
async fn prometheus_follows_the_registry() {
    let etcd = Etcd::start().await;
    let registry = etcd.addr.to_string();
    let (mut gateway, gateway_admin) = role("apigateway", &registry, "127.0.0.1:0");
    let admin = gateway_admin.parse().unwrap();
    let (mut killed, killed_admin) = role("topic", &registry, "127.0.0.1:0");
    let (mut stopped, stopped_admin) = role("topic", &registry, "127.0.0.1:0");
    let told_is = async |instance: &str, wanted: &str| {
        wait_for(&format!("{instance} is told as {wanted:?}"), || async {
            (told(&get(admin, "/sd/targets").await.json(), instance) == wanted).then_some(())
        })
        .await;
    };
    told_is(&killed_admin, "topic up").await;
    told_is(&stopped_admin, "topic up").await;
    let prometheus = Prometheus::start(&shipped_config(&[admin], &[]), &[]).await;
    let up = |instance: &str, value: u8| format!("up{{instance=\"{instance}\"}} == {value}");
    let found = prometheus.wait_for(&up(&gateway_admin, 1)).await;
    assert_eq!(found[0].0["job"], "apigateway");
    prometheus.wait_for(&up(&killed_admin, 1)).await;
    prometheus.wait_for(&up(&stopped_admin, 1)).await;

    // one comes, one goes, one is lost: no file was edited
    let (_feed, feed_admin) = role("feed", &registry, "127.0.0.1:0");
    stopped.stop(SOON);
    killed.kill();
    told_is(&stopped_admin, " ").await;
    told_is(&killed_admin, "topic gone").await;
    let found = prometheus.wait_for(&up(&feed_admin, 1)).await;
    assert_eq!(found[0].0["job"], "feed");
    let targets = prometheus.targets().await;
    let feed = targets.iter().find(|target| target.labels["instance"] == feed_admin).unwrap();
    assert_eq!((feed.health.as_str(), feed.error.as_str()), ("up", ""));
    assert_eq!(feed.labels.keys().collect::<Vec<_>>(), ["instance", "job"]);
    wait_long_for("the stopped instance is no target any more", || async {
        let targets = prometheus.targets().await;
        targets.iter().all(|target| target.labels["instance"] != stopped_admin).then_some(())
    })
    .await;
    prometheus.wait_for(&up(&killed_admin, 0)).await;

    // another process at its admin address replaces it
    let (_back, _) = role("profile", &registry, &killed_admin);
    told_is(&killed_admin, "profile up").await;
    prometheus.wait_for(&format!("{} and on (job) up{{job=\"profile\"}}", up(&killed_admin, 1))).await;

    // a planned stop of a gateway is none of a vanished one
    let (second, second_admin) = role("apigateway", &registry, "127.0.0.1:0");
    let second_sees = second_admin.parse().unwrap();
    wait_for("the second gateway knows the first", || async {
        let answer = get(second_sees, "/sd/targets").await;
        (answer.status == 200 && told(&answer.json(), &gateway_admin) == "apigateway up").then_some(())
    })
    .await;
    gateway.stop(SOON);
    wait_for("the first gateway has left", || async {
        let told = told(&get(second_sees, "/sd/targets").await.json(), &gateway_admin);
        assert_ne!(told, "apigateway gone");
        (told == " ").then_some(())
    })
    .await;
    drop(second);
}
