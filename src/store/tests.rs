//! One contract for every store: each test runs over `memory:` and `sqlite:`.

use std::time::{Duration, Instant};

use super::*;
use crate::api::proto::feed::FeedRecord;
use crate::api::validate::{MAX_ANSWER, MAX_CONTENT};

/// Every kind of store; the directory keeps the SQLite file until the test ends.
fn urls() -> (tempfile::TempDir, [StoreUrl; 2]) {
    let dir = tempfile::tempdir().unwrap();
    let file = StoreUrl::Sqlite(dir.path().join("test.db"));
    (dir, [StoreUrl::Memory, file])
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
async fn pages_hold_the_newest_feeds_in_ascending_order() {
    let (_dir, urls) = urls();
    for url in urls {
        let store = feed(&url, &metrics()).unwrap();
        for id in [5, i64::MAX, 1, 9, 3] {
            store.create(record(7, id, "x"), soon()).await.unwrap();
        }
        store.create(record(8, 2, "other"), soon()).await.unwrap();
        let page = async |size, before| ids(&store.newest(7, size, before).await.unwrap().unwrap());
        assert_eq!(page(20, 0).await, [1, 3, 5, 9, i64::MAX]);
        assert_eq!(page(2, 0).await, [9, i64::MAX]);
        assert_eq!(page(2, 9).await, [3, 5]);
        assert_eq!(page(2, 3).await, [1]);
        assert_eq!(page(2, 1).await, [0_i64; 0]);
        assert_eq!(page(0, 0).await, [0_i64; 0]);
        assert_eq!(page(20, i64::MAX).await, [1, 3, 5, 9]);
    }
}

#[tokio::test]
async fn a_user_without_feeds_is_not_an_empty_page() {
    let (_dir, urls) = urls();
    for url in urls {
        let store = feed(&url, &metrics()).unwrap();
        assert_eq!(store.newest(7, 20, 0).await.unwrap(), None);
        store.create(record(7, 1, "x"), soon()).await.unwrap();
        assert!(store.newest(7, 0, 0).await.unwrap().is_some());
        assert!(store.delete(7, 1, soon()).await.unwrap());
        assert!(!store.delete(7, 1, soon()).await.unwrap());
        assert_eq!(store.newest(7, 0, 0).await.unwrap(), None);
    }
}

#[tokio::test]
async fn a_write_replaces_what_was_there() {
    let (_dir, urls) = urls();
    for url in urls {
        let store = feed(&url, &metrics()).unwrap();
        store.create(record(7, 1, "old"), soon()).await.unwrap();
        store.create(record(7, 1, "new é \u{1F600}"), soon()).await.unwrap();
        let page = store.newest(7, 20, 0).await.unwrap().unwrap();
        assert_eq!(page.feeds, [record(7, 1, "new é \u{1F600}")]);
    }
}

#[tokio::test]
async fn a_page_over_the_limit_is_shortened_to_its_newest() {
    let (_dir, urls) = urls();
    let fits = i64::try_from(MAX_ANSWER / MAX_CONTENT).unwrap();
    for url in urls {
        let store = feed(&url, &metrics()).unwrap();
        for id in 1..=fits + 2 {
            store.create(record(7, id, &"x".repeat(MAX_CONTENT)), soon()).await.unwrap();
        }
        let page = store.newest(7, 1000, 0).await.unwrap().unwrap();
        assert!(page.shortened);
        assert_eq!(ids(&page), (3..=fits + 2).collect::<Vec<_>>());
        let exact = store.newest(7, u32::try_from(fits).unwrap(), 0).await.unwrap().unwrap();
        assert!(!exact.shortened);
    }
}

#[tokio::test]
async fn profiles_and_topics_are_kept() {
    let (dir, _) = urls();
    let profiles = [StoreUrl::Memory, StoreUrl::Sqlite(dir.path().join("p.db"))];
    for url in profiles {
        let store = profile(&url, &metrics()).unwrap();
        assert_eq!(store.get(1).await.unwrap(), None);
        let ada =
            Profile { user_id: 1, name: "Ada".to_owned(), company: String::new(), title: "t".to_owned() };
        store.put(ada.clone(), soon()).await.unwrap();
        assert_eq!(store.get(1).await.unwrap(), Some(ada));
    }
    let topics = [StoreUrl::Memory, StoreUrl::Sqlite(dir.path().join("t.db"))];
    for url in topics {
        let store = topic(&url, &metrics()).unwrap();
        for id in [3, 1, 2, i64::MAX] {
            let (subject, content) = (format!("s{id}"), "c".to_owned());
            store.put(Topic { topic_id: id, subject, content }, soon()).await.unwrap();
        }
        assert_eq!(store.get(2).await.unwrap().unwrap().subject, "s2");
        let page = async |after, size| {
            let page = store.list(after, size).await.unwrap();
            (page.topics.iter().map(|t| t.topic_id).collect::<Vec<_>>(), page.next)
        };
        assert_eq!(page(0, 2).await, (vec![1, 2], 2));
        assert_eq!(page(2, 2).await, (vec![3, i64::MAX], 0));
        assert_eq!(page(i64::MAX, 2).await, (vec![], 0));
        assert_eq!(page(0, 0).await, (vec![], 0));
    }
}

#[tokio::test]
async fn a_file_is_found_again_and_belongs_to_one_service() {
    let dir = tempfile::tempdir().unwrap();
    let url = StoreUrl::Sqlite(dir.path().join("f.db"));
    feed(&url, &metrics()).unwrap().create(record(7, 1, "x"), soon()).await.unwrap();
    let again = feed(&url, &metrics()).unwrap();
    assert_eq!(ids(&again.newest(7, 20, 0).await.unwrap().unwrap()), [1]);
    let error = topic(&url, &metrics()).err().expect("another service's file").to_string();
    assert!(error.contains("f.db") && error.contains("not this service's file"), "{error}");
    let nowhere = StoreUrl::Sqlite(dir.path().join("no/such/dir.db"));
    assert!(feed(&nowhere, &metrics()).is_err());
    assert!(again.usable().await.is_ok());
}

#[tokio::test]
async fn two_handles_on_one_file_agree() {
    let dir = tempfile::tempdir().unwrap();
    let url = StoreUrl::Sqlite(dir.path().join("f.db"));
    let (one, two) = (feed(&url, &metrics()).unwrap(), feed(&url, &metrics()).unwrap());
    for id in 1..=50 {
        let (writer, other) = if id % 2 == 0 { (&one, &two) } else { (&two, &one) };
        writer.create(record(7, id, "x"), soon()).await.unwrap();
        let page = other.newest(7, 1000, 0).await.unwrap().unwrap();
        assert_eq!(page.feeds.len(), usize::try_from(id).unwrap());
    }
}

#[tokio::test]
async fn concurrent_writes_are_all_kept() {
    let dir = tempfile::tempdir().unwrap();
    let store = feed(&StoreUrl::Sqlite(dir.path().join("f.db")), &metrics()).unwrap();
    let writes = (1..=500).map(|id| store.create(record(7, id, "x"), soon()));
    for result in futures_util::future::join_all(writes).await {
        result.unwrap();
    }
    assert_eq!(store.newest(7, 1000, 0).await.unwrap().unwrap().feeds.len(), 500);
}

#[tokio::test]
async fn a_write_begins_before_its_deadline_or_not_at_all() {
    let (_dir, urls) = urls();
    for url in urls {
        let store = feed(&url, &metrics()).unwrap();
        store.create(record(7, 1, "kept"), soon()).await.unwrap();
        let late = Instant::now();
        assert!(matches!(store.create(record(7, 1, "late"), late).await, Err(StoreError::Late)));
        assert!(matches!(store.delete(7, 1, late).await, Err(StoreError::Late)));
        let page = store.newest(7, 20, 0).await.unwrap().unwrap();
        assert_eq!(page.feeds, [record(7, 1, "kept")]);
    }
}

#[tokio::test]
async fn every_operation_is_measured_by_how_it_ends() {
    let registry = prometheus::Registry::new();
    let metrics = Metrics::register(&registry).unwrap();
    let store = topic(&StoreUrl::Memory, &metrics).unwrap();
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
