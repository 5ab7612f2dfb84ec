//! A service as a process, over a database that is away or that it cannot work with.

use std::net::SocketAddr;
use std::time::Duration;

use microservice_app::api::proto::feed::{FeedRecord, GetFeedsRequest, GetFeedsResponse, OkResponse};
use rustix::process::Signal;
use tonic::{Code, Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::feed;
use super::schema::{LOCK, UNLOCK};
use crate::kit::grpc::{call, channel};
use crate::kit::http::get;
use crate::kit::postgres::{Postgres, connect};
use crate::kit::process::Process;
use crate::kit::{SOON, wait_for};

fn launch(url: &str) -> Process {
    Process::start(&["feed", "--addr", "127.0.0.1:0", "--debug-addr", "127.0.0.1:0", "--store", url])
}

async fn write(addr: SocketAddr, id: i64) -> Result<OkResponse, Status> {
    let record = FeedRecord { id, user_id: 7, content: "x".to_owned() };
    call(addr, "/feed.Feed/CreateFeed", Request::new(record)).await
}

async fn read(addr: SocketAddr) -> Result<GetFeedsResponse, Status> {
    let asked = GetFeedsRequest { user_id: 7, size: 100, before: 0 };
    call(addr, "/feed.Feed/GetFeeds", Request::new(asked)).await
}

#[tokio::test]
async fn a_database_that_is_away_is_a_warning_and_calls_are_refused() {
    let mut server = Postgres::start().await;
    server.stop(Signal::INT);
    let mut process = launch(&server.url());
    let (addr, admin) = process.wait_for_role("feed");
    let told = process.wait_for_log("the reason", |line| {
        line["message"].as_str().is_some_and(|m| m.starts_with("cannot use PostgreSQL"))
    });
    assert!(told["reason"].as_str().unwrap().contains("Connection refused"), "{told}");
    for answer in [write(addr, 1).await.map(|_| ()), read(addr).await.map(|_| ())] {
        assert_eq!(answer.unwrap_err().code(), Code::Unavailable);
    }
    let ready = get(admin, "/readyz").await;
    assert_eq!(ready.status, 200, "{}", ready.body);
    assert!(ready.body.contains("warn: feed: store postgres: no connection for writes"), "{}", ready.body);
    // a call costs no line of the log
    process.poll_logs();
    let lines = process.count_logs(|line| line["level"] == "ERROR");
    assert_eq!(lines, 0, "{:#?}", process.seen);

    server.launch();
    wait_for("the database is found", || async { write(addr, 1).await.ok() }).await;
    // reads have a connection of their own
    let found = wait_for("reads find it, too", || async { read(addr).await.ok() }).await;
    assert_eq!(found.feeds.len(), 1);
    wait_for("nothing is left to warn of", || async {
        (!get(admin, "/readyz").await.body.contains("store")).then_some(())
    })
    .await;
    // it goes away in use: reads and writes are refused, quickly
    server.stop(Signal::INT);
    for answer in [write(addr, 2).await.map(|_| ()), read(addr).await.map(|_| ())] {
        assert_eq!(answer.unwrap_err().code(), Code::Unavailable);
    }
    process.stop(Duration::from_secs(10));
}

async fn health(addr: SocketAddr) -> ServingStatus {
    let asked = HealthCheckRequest { service: "feed.Feed".to_owned() };
    HealthClient::new(channel(addr).await).check(asked).await.unwrap().into_inner().status()
}

#[tokio::test]
async fn an_instance_whose_schema_is_not_migrated_is_not_serving_from_its_first_answer_on() {
    let server = Postgres::start().await;
    let other = connect(server.addr, "app", "msa").await.unwrap();
    other.batch_execute(LOCK).await.unwrap();
    let mut process = launch(&server.url());
    let (addr, admin) = process.wait_for_role("feed");
    assert_eq!(health(addr).await, ServingStatus::NotServing);
    wait_for("it is not ready either", || async {
        (get(admin, "/readyz").await.status == 503).then_some(())
    })
    .await;
    other.batch_execute(UNLOCK).await.unwrap();
    wait_for("it serves", || async { (health(addr).await == ServingStatus::Serving).then_some(()) }).await;
    process.stop(Duration::from_secs(10));
}

#[tokio::test]
async fn a_schema_that_needs_a_newer_program_ends_the_start() {
    let server = Postgres::start().await;
    drop(feed(&server.url()).await);
    let admin = server.admin().await;
    let newer = "INSERT INTO feed.migrations VALUES (9, 'later', '2030-01-01T00:00:00Z', '1')";
    admin.batch_execute(newer).await.unwrap();
    let mut process = launch(&server.url());
    let status = process.wait(SOON);
    assert_eq!(status.code(), Some(1), "{:#?}", process.seen);
    let last = format!("{:?}", process.seen);
    assert!(last.contains("schema feed is of version 9, this program knows versions up to 1"), "{last}");
}
