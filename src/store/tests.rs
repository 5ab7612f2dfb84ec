//! What the contract of every store, in tests/it/store, does not cover: files, and how operations are measured.

use std::time::{Duration, Instant};

use super::*;
use crate::api::proto::feed::FeedRecord;

fn at(url: &StoreUrl) -> Store {
    Store { url: url.clone(), ..Store::default() }
}

fn metrics() -> Metrics {
    Metrics::register(&prometheus::Registry::new()).unwrap()
}

fn record(user_id: i64, id: i64, content: &str) -> FeedRecord {
    FeedRecord { id, user_id, content: content.to_owned() }
}

/// A deadline that no write here misses.
fn soon() -> Instant {
    Instant::now() + Duration::from_mins(1)
}

fn ids(page: &FeedPage) -> Vec<i64> {
    page.feeds.iter().map(|feed| feed.id).collect()
}

#[tokio::test]
async fn a_file_is_found_again_and_belongs_to_one_service() {
    let dir = tempfile::tempdir().unwrap();
    let url = StoreUrl::Sqlite(dir.path().join("f.db"));
    feed(&at(&url), &metrics()).await.unwrap().create(record(7, 1, "x"), soon()).await.unwrap();
    let again = feed(&at(&url), &metrics()).await.unwrap();
    assert_eq!(ids(&again.newest(7, 20, 0).await.unwrap().unwrap()), [1]);
    let error = topic(&at(&url), &metrics()).await.err().expect("another service's file").to_string();
    assert!(error.contains("f.db") && error.contains("not this service's file"), "{error}");
    let nowhere = StoreUrl::Sqlite(dir.path().join("no/such/dir.db"));
    assert!(feed(&at(&nowhere), &metrics()).await.is_err());
    assert!(again.usable().await.is_ok());
}

#[tokio::test]
async fn two_handles_on_one_file_agree() {
    let dir = tempfile::tempdir().unwrap();
    let url = StoreUrl::Sqlite(dir.path().join("f.db"));
    let (one, two) = (feed(&at(&url), &metrics()).await.unwrap(), feed(&at(&url), &metrics()).await.unwrap());
    for id in 1..=50 {
        let (writer, other) = if id % 2 == 0 { (&one, &two) } else { (&two, &one) };
        writer.create(record(7, id, "x"), soon()).await.unwrap();
        let page = other.newest(7, 1000, 0).await.unwrap().unwrap();
        assert_eq!(page.feeds.len(), usize::try_from(id).unwrap());
    }
}

#[tokio::test]
async fn every_operation_is_measured_by_how_it_ends() {
    let registry = prometheus::Registry::new();
    let metrics = Metrics::register(&registry).unwrap();
    let store = topic(&at(&StoreUrl::Memory), &metrics).await.unwrap();
    store.get(1).await.unwrap();
    store.get(2).await.unwrap();
    let failing = metrics.operation("topic", "get");
    failing.measure(async { Err::<(), _>(StoreError::Closed) }).await.unwrap_err();
    let text = crate::telemetry::metrics::text(&registry);
    for (operation, outcome, count) in
        [("get", "ok", 2), ("get", "error", 1), ("put", "ok", 0), ("list", "error", 0)]
    {
        let line = format!(
            "store_operation_duration_seconds_count{{operation=\"{operation}\",outcome=\"{outcome}\",store=\"topic\"}} {count}"
        );
        assert!(text.contains(&line), "{line} is not in\n{text}");
    }
}
