//! One contract for every store.

use std::time::{Duration, Instant};

use microservice_app::api::proto::feed::FeedRecord;
use microservice_app::api::validate::{MAX_ANSWER, MAX_CONTENT};
use microservice_app::config::{Store, StoreUrl};
use microservice_app::store::{
    self, FeedPage, FeedStore, Profile, ProfileStore, StoreError, Topic, TopicStore, metrics::Metrics,
};

use crate::kit::postgres::Postgres;

pub fn metrics() -> Metrics {
    Metrics::register(&prometheus::Registry::new()).unwrap()
}

/// Returns the settings of a store at a URL.
pub fn at(url: &str) -> Store {
    let url: StoreUrl = url.parse().unwrap();
    Store { url, ..Store::default() }
}

pub fn record(user_id: i64, id: i64, content: &str) -> FeedRecord {
    FeedRecord { id, user_id, content: content.to_owned() }
}

/// A deadline that no write here misses.
pub fn soon() -> Instant {
    Instant::now() + Duration::from_mins(1)
}

pub fn ids(page: &FeedPage) -> Vec<i64> {
    page.feeds.iter().map(|feed| feed.id).collect()
}

#[tokio::test]
async fn memory_keeps_the_contract() {
    keeps_the_contract(|_| "memory:".to_owned()).await;
}

#[tokio::test]
async fn a_file_keeps_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    keeps_the_contract(|service| format!("sqlite:{}/{service}.db", dir.path().display())).await;
}

#[tokio::test]
async fn a_database_of_postgresql_keeps_the_contract() {
    let server = Postgres::start().await;
    keeps_the_contract(|_| server.url()).await;
}

/// Checks a kind of store; `url` says where that of a service is, which holds nothing yet.
async fn keeps_the_contract(url: impl Fn(&str) -> String) {
    let feeds = store::feed(&at(&url("feed")), &metrics()).await.unwrap();
    pages_hold_the_newest_feeds_in_ascending_order(feeds.as_ref()).await;
    a_user_without_feeds_is_not_an_empty_page(feeds.as_ref()).await;
    a_write_replaces_what_was_there(feeds.as_ref()).await;
    a_page_over_the_limit_is_shortened_to_its_newest(feeds.as_ref()).await;
    a_write_begins_before_its_deadline_or_not_at_all(feeds.as_ref()).await;
    concurrent_writes_are_all_kept(feeds.as_ref()).await;
    writes_of_one_key_are_made_in_their_order(feeds.as_ref()).await;
    profiles_are_kept(store::profile(&at(&url("profile")), &metrics()).await.unwrap().as_ref()).await;
    topics_are_kept(store::topic(&at(&url("topic")), &metrics()).await.unwrap().as_ref()).await;
}

async fn pages_hold_the_newest_feeds_in_ascending_order(store: &dyn FeedStore) {
    let user = 101;
    for id in [5, i64::MAX, 1, 9, 3] {
        store.create(record(user, id, "x"), soon()).await.unwrap();
    }
    store.create(record(user + 1, 2, "other"), soon()).await.unwrap();
    let page = async |size, before| ids(&store.newest(user, size, before).await.unwrap().unwrap());
    assert_eq!(page(20, 0).await, [1, 3, 5, 9, i64::MAX]);
    assert_eq!(page(2, 0).await, [9, i64::MAX]);
    assert_eq!(page(2, 9).await, [3, 5]);
    assert_eq!(page(2, 3).await, [1]);
    assert_eq!(page(2, 1).await, [0_i64; 0]);
    assert_eq!(page(0, 0).await, [0_i64; 0]);
    assert_eq!(page(20, i64::MAX).await, [1, 3, 5, 9]);
}

async fn a_user_without_feeds_is_not_an_empty_page(store: &dyn FeedStore) {
    let user = 201;
    assert_eq!(store.newest(user, 20, 0).await.unwrap(), None);
    store.create(record(user, 1, "x"), soon()).await.unwrap();
    assert!(store.newest(user, 0, 0).await.unwrap().is_some());
    assert!(store.delete(user, 1, soon()).await.unwrap());
    assert!(!store.delete(user, 1, soon()).await.unwrap());
    assert_eq!(store.newest(user, 0, 0).await.unwrap(), None);
}

async fn a_write_replaces_what_was_there(store: &dyn FeedStore) {
    let user = 301;
    store.create(record(user, 1, "old"), soon()).await.unwrap();
    store.create(record(user, 1, "new é \u{1F600}"), soon()).await.unwrap();
    let page = store.newest(user, 20, 0).await.unwrap().unwrap();
    assert_eq!(page.feeds, [record(user, 1, "new é \u{1F600}")]);
}

async fn a_page_over_the_limit_is_shortened_to_its_newest(store: &dyn FeedStore) {
    let user = 401;
    let fits = i64::try_from(MAX_ANSWER / MAX_CONTENT).unwrap();
    for id in 1..=fits + 2 {
        store.create(record(user, id, &"x".repeat(MAX_CONTENT)), soon()).await.unwrap();
    }
    let page = store.newest(user, 1000, 0).await.unwrap().unwrap();
    assert!(page.shortened);
    assert_eq!(ids(&page), (3..=fits + 2).collect::<Vec<_>>());
    let exact = store.newest(user, u32::try_from(fits).unwrap(), 0).await.unwrap().unwrap();
    assert!(!exact.shortened);
    let rest = store.newest(user, 1000, 3).await.unwrap().unwrap();
    assert_eq!((ids(&rest), rest.shortened), (vec![1, 2], false));
}

async fn a_write_begins_before_its_deadline_or_not_at_all(store: &dyn FeedStore) {
    let user = 501;
    store.create(record(user, 1, "kept"), soon()).await.unwrap();
    let late = Instant::now();
    assert!(matches!(store.create(record(user, 1, "late"), late).await, Err(StoreError::Late)));
    assert!(matches!(store.delete(user, 1, late).await, Err(StoreError::Late)));
    let page = store.newest(user, 20, 0).await.unwrap().unwrap();
    assert_eq!(page.feeds, [record(user, 1, "kept")]);
}

async fn concurrent_writes_are_all_kept(store: &dyn FeedStore) {
    let user = 601;
    let writes = (1..=500).map(|id| store.create(record(user, id, "x"), soon()));
    for result in futures_util::future::join_all(writes).await {
        result.unwrap();
    }
    assert_eq!(store.newest(user, 1000, 0).await.unwrap().unwrap().feeds.len(), 500);
}

async fn writes_of_one_key_are_made_in_their_order(store: &dyn FeedStore) {
    let user = 701;
    // they are queued in this order while the first is being made
    let create = async |id: i64, round: i64| {
        store.create(record(user, id, &round.to_string()), soon()).await.unwrap();
        true
    };
    let delete = async |id: i64| store.delete(user, id, soon()).await.unwrap();
    for round in 0..20 {
        let (one, two) = (round, round + 1000);
        let found = futures_util::join!(
            create(one, 1),
            create(two, 1),
            delete(one),
            delete(one),
            create(two, 2),
            create(one, 3),
            delete(two),
            create(two, 3),
            delete(one)
        );
        assert_eq!(found, (true, true, true, false, true, true, true, true, true), "round {round}");
    }
    let page = store.newest(user, 1000, 0).await.unwrap().unwrap();
    assert_eq!(ids(&page), (1000..1020).collect::<Vec<_>>());
    assert!(page.feeds.iter().all(|feed| feed.content == "3"));
    // more would exceed what tokio lets a task do at once, and begin in another order
    futures_util::future::join_all((1..=100).map(|round| create(1, round))).await;
    assert_eq!(store.newest(user, 1, 2).await.unwrap().unwrap().feeds, [record(user, 1, "100")]);
}

async fn profiles_are_kept(store: &dyn ProfileStore) {
    assert_eq!(store.get(1).await.unwrap(), None);
    let mut ada =
        Profile { user_id: 1, name: "Ada".to_owned(), company: String::new(), title: "t".to_owned() };
    store.put(ada.clone(), soon()).await.unwrap();
    assert_eq!(store.get(1).await.unwrap(), Some(ada.clone()));
    "new".clone_into(&mut ada.company);
    store.put(ada.clone(), soon()).await.unwrap();
    assert_eq!(store.get(1).await.unwrap(), Some(ada));
}

async fn topics_are_kept(store: &dyn TopicStore) {
    assert_eq!(store.get(2).await.unwrap(), None);
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
