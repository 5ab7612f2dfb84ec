//! A shared database that is away: what an instance says of it, that it stays where callers find it, and that all goes on
//! by itself once the database is back.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::kit::etcd::Etcd;
use crate::kit::grpc::channel;
use crate::kit::http::{get, put};
use crate::kit::postgres::Postgres;
use crate::kit::prometheus::{Prometheus, shipped_config};
use crate::kit::system::{Role, TTL};
use crate::kit::wait_for;

/// How long the database is away: several leases, and checks of health and of readiness.
const AWAY: Duration = Duration::from_secs(4);
/// How long a failing write waits for its answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Starts a feed service with its records in a database.
fn start(etcd: &Etcd, url: &str) -> Role {
    let short = [("MSA__STORE__URL", url), ("MSA__STORE__TIMEOUT_MS", "1000")];
    Role::start(&etcd.addr.to_string(), "feed", "127.0.0.1:0", &short)
}

/// Writes a feed; returns the status.
async fn write(gateway: &Role, id: i64) -> u16 {
    let body = json!({"id": id, "user_id": 7, "content": "x"}).to_string();
    put(gateway.addr, "/api/feed/create_feed", &body).await.status.as_u16()
}

/// Returns what an instance says of its database.
async fn database(feed: &Role) -> Value {
    feed.status().await["roles"][0]["database"].clone()
}

/// Returns what it says of its connection for a purpose.
async fn connection(feed: &Role, purpose: &str) -> Value {
    let database = database(feed).await;
    let all = database["connections"].as_array().expect("connections");
    all.iter().find(|connection| connection["name"] == purpose).expect(purpose).clone()
}

async fn health(feed: &Role) -> ServingStatus {
    let asked = HealthCheckRequest { service: "feed.Feed".to_owned() };
    HealthClient::new(channel(feed.addr).await).check(asked).await.expect("an answer").into_inner().status()
}

/// Returns the state of an alert: `inactive`, `pending` or `firing`.
async fn alert(prometheus: &Prometheus, name: &str) -> String {
    let rules = prometheus.rules().await;
    let rule = rules.iter().find(|rule| rule["name"] == name).expect(name);
    rule["state"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn a_database_that_is_away_is_a_warning_and_takes_no_instance_out_of_service() {
    let (etcd, mut postgres) = (Etcd::start().await, Postgres::start().await);
    let feed = start(&etcd, &postgres.url());
    let gateway = Role::gateway(&etcd.addr.to_string());
    gateway.wait_for_certain("feed", 1).await;
    assert_eq!(write(&gateway, 1).await, 200);
    assert_eq!(get(feed.admin, "/readyz").await.body, "ready\n");
    let host = json!(postgres.addr.to_string());
    for purpose in ["reads", "writes"] {
        let connection = connection(&feed, purpose).await;
        assert_eq!((&connection["host"], &connection["connects"]), (&host, &json!(1)), "{connection}");
        assert!(connection["since"].as_u64() > Some(1_700_000_000), "{connection}");
    }
    let version = database(&feed).await["schema_version"].as_i64();
    assert!(version >= Some(1), "{version:?}");
    assert_eq!(feed.metric("store_batch_writes_count{store=\"feed\"}").await as i64, 1);
    assert_eq!(feed.metric("store_commit_duration_seconds_count{outcome=\"ok\"").await as i64, 1);
    let prometheus = Prometheus::start(&shipped_config(&[gateway.admin], &[]), &[]).await;
    prometheus.wait_for("sum(store_database_connections) == 2").await;
    assert_eq!(alert(&prometheus, "DatabaseAway").await, "inactive");

    postgres.kill();
    wait_for("it says so", || async {
        (feed.metric("store_database_connections").await == 0.0).then_some(())
    })
    .await;
    let until = Instant::now() + AWAY;
    while Instant::now() < until {
        let asked = Instant::now();
        assert_eq!(write(&gateway, 2).await, 503);
        assert!(asked.elapsed() < PATIENCE, "{:?}", asked.elapsed());
        let unread = get(gateway.addr, "/api/feed/get_feeds?user_id=8").await;
        assert_eq!(unread.status, 503, "{unread:?}");
        let ready = get(feed.admin, "/readyz").await;
        let warning = "warn: feed: store postgres: no connection for writes";
        assert!(ready.status == 200 && ready.body.contains(warning), "{ready:?}");
        assert_eq!(health(&feed).await, ServingStatus::Serving);
        let status = gateway.status().await;
        let listed = status["registry"]["services"]["feed"].as_array().expect("instances");
        assert!(
            listed.len() == 1 && listed[0]["limbo"] == false && listed[0]["draining"] == false,
            "{listed:?}"
        );
        assert_eq!(feed.status().await["roles"][0]["registration"], "up");
    }
    assert!(AWAY > 3 * TTL, "its lease was renewed meanwhile");
    wait_for("the alert sees it", || async {
        (alert(&prometheus, "DatabaseAway").await == "pending").then_some(())
    })
    .await;
    let gone = connection(&feed, "writes").await;
    assert!(gone["host"].is_null() && gone["failed_connects"].as_i64() > Some(0), "{gone}");
    assert!(gone["last_error"].as_str().is_some_and(|error| !error.is_empty()), "{gone}");

    postgres.restart().await;
    wait_for("writes are made", || async { (write(&gateway, 3).await == 200).then_some(()) }).await;
    wait_for("nothing is left to warn of", || async {
        (get(feed.admin, "/readyz").await.body == "ready\n").then_some(())
    })
    .await;
    let back = connection(&feed, "writes").await;
    assert_eq!((&back["host"], &back["connects"]), (&host, &json!(2)), "{back}");
    let told = database(&feed).await;
    assert_eq!(told["failovers"], 0, "the same server");
    let transactions = &told["transactions"];
    assert!(transactions["count"].as_u64() >= Some(2), "{transactions}");
    for of in ["mean", "last"] {
        assert!(transactions[of]["writes"].as_f64() >= Some(1.0), "{transactions}");
        assert!(transactions[of]["seconds"].as_f64() > Some(0.0), "{transactions}");
    }
    // the breaker of its reads may be open for a moment longer
    let read = wait_for("reads are answered", || async {
        let read = get(gateway.addr, "/api/feed/get_feeds?user_id=7").await;
        (read.status == 200).then(|| read.json())
    })
    .await;
    let ids: Vec<_> =
        read["feeds"].as_array().expect("feeds").iter().map(|feed| feed["id"].clone()).collect();
    assert!(ids.contains(&json!(1)) && ids.contains(&json!(3)), "{read}");
    wait_for("the alert is over", || async {
        (alert(&prometheus, "DatabaseAway").await == "inactive").then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_instance_that_starts_without_its_database_serves_once_it_is_there() {
    let (etcd, mut postgres) = (Etcd::start().await, Postgres::start().await);
    postgres.kill();
    let feed = start(&etcd, &postgres.url());
    let gateway = Role::gateway(&etcd.addr.to_string());
    gateway.wait_for_certain("feed", 1).await;
    assert_eq!(write(&gateway, 1).await, 503);
    let away = database(&feed).await;
    assert_eq!(
        (&away["schema_version"], &away["connections"][1]["since"]),
        (&json!(0), &Value::Null),
        "{away}"
    );
    postgres.restart().await;
    wait_for("writes are made", || async { (write(&gateway, 2).await == 200).then_some(()) }).await;
}

/// Two servers that know nothing of each other: what counts is where the writes go.
#[tokio::test]
async fn a_failover_is_seen() {
    let (etcd, mut first, second) = (Etcd::start().await, Postgres::start().await, Postgres::start().await);
    let feed = start(&etcd, &Postgres::url_at(&[first.addr, second.addr]));
    let gateway = Role::gateway(&etcd.addr.to_string());
    gateway.wait_for_certain("feed", 1).await;
    assert_eq!(write(&gateway, 1).await, 200);
    let connected = |purpose: &str, postgres: &Postgres| {
        format!(
            "store_database_connections{{connection=\"{purpose}\",host=\"{}\",store=\"feed\"}}",
            postgres.addr
        )
    };
    for purpose in ["reads", "writes"] {
        assert_eq!(feed.metric(&connected(purpose, &first)).await as i64, 1);
        assert_eq!(feed.metric(&connected(purpose, &second)).await as i64, 0);
    }
    first.kill();
    wait_for("writes are made", || async { (write(&gateway, 2).await == 200).then_some(()) }).await;
    assert_eq!(feed.metric("store_database_failovers_total{store=\"feed\"}").await as i64, 1);
    wait_for("reads have moved, too", || async {
        (feed.metric(&connected("reads", &second)).await as i64 == 1).then_some(())
    })
    .await;
    assert_eq!(feed.metric(&connected("writes", &second)).await as i64, 1);
    assert_eq!(feed.metric(&connected("writes", &first)).await as i64, 0);
    assert_eq!(connection(&feed, "writes").await["host"], second.addr.to_string());
}

/// As behind a name or an address that moves: the primary at one address is another than before.
#[tokio::test]
async fn a_failover_behind_one_address_is_seen() {
    let (etcd, mut postgres) = (Etcd::start().await, Postgres::start().await);
    let feed = start(&etcd, &postgres.url());
    let gateway = Role::gateway(&etcd.addr.to_string());
    gateway.wait_for_certain("feed", 1).await;
    assert_eq!(write(&gateway, 1).await, 200);
    // it starts as a standby of nobody, and is promoted
    postgres.kill();
    postgres.write("standby.signal", "");
    postgres.launch();
    postgres.admin().await.execute("SELECT pg_promote()", &[]).await.expect("it is promoted");
    wait_for("writes are made", || async { (write(&gateway, 2).await == 200).then_some(()) }).await;
    assert_eq!(database(&feed).await["failovers"], 1);
    assert_eq!(feed.metric("store_database_failovers_total{store=\"feed\"}").await as i64, 1);
}
