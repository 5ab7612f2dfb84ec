//! A write that was given up does not come after what its caller has written since, whatever holds it up on its way.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use microservice_app::config::Store;
use microservice_app::store::{FeedStore, StoreError};

use super::super::contract::{at, record, soon};
use super::{MS, feed, found, open, wait_for_session};
use crate::kit::postgres::{Postgres, connect};
use crate::kit::relay::{Direction, Faults, Relay};
use crate::kit::wait_for;

/// Nothing gets to the server.
const CUT: Faults = Faults { up: Direction { cut: true, ..HEALTHY }, down: HEALTHY, refuse: false };
const HEALTHY: Direction = Direction {
    delay: Duration::ZERO,
    jitter: Duration::ZERO,
    loss: 0.0,
    bandwidth: 0,
    cut: false,
    reset: 0.0,
};

/// Returns the content of the only feed of user 7.
async fn content(store: &dyn FeedStore) -> String {
    let page = store.newest(7, 20, 0).await.unwrap().unwrap();
    let [feed] = page.feeds.as_slice() else { panic!("{page:?}") };
    feed.content.clone()
}

/// Writes as a caller does who repeats what was refused.
async fn insist(store: &dyn FeedStore, id: i64, content: &str) {
    wait_for("the write is made", || async {
        store.create(record(7, id, content), Instant::now() + Duration::from_secs(2)).await.ok()
    })
    .await;
}

#[tokio::test]
async fn a_write_that_waits_for_a_record_does_not_get_it_after_its_deadline() {
    let server = Postgres::start().await;
    let (one, two) = (feed(&server.url()).await, feed(&server.url()).await);
    let other = connect(server.addr, "app", "msa").await.unwrap();
    for round in 0..4 {
        insist(one.as_ref(), 1, "first").await;
        other.batch_execute("BEGIN; UPDATE feed.feeds SET content = 'theirs'").await.unwrap();
        let begun = Instant::now();
        let deadline = begun + Duration::from_secs(1);
        let old = async {
            let written = one.create(record(7, 1, "old"), deadline).await;
            (written, begun.elapsed())
        };
        let newer = async {
            tokio::time::sleep_until((deadline + 50 * MS).into()).await;
            insist(two.as_ref(), 1, "newer").await;
        };
        let release = async {
            tokio::time::sleep_until((deadline + 250 * MS).into()).await;
            other.batch_execute("COMMIT").await.unwrap();
        };
        let ((written, took), (), ()) = futures_util::join!(old, newer, release);
        assert!(written.is_err(), "round {round}: it was made {took:?} after it was sent");
        assert_eq!(content(two.as_ref()).await, "newer", "round {round}");
    }
}

#[tokio::test]
async fn a_record_that_somebody_holds_fails_no_write_of_others() {
    let server = Postgres::start().await;
    let store = feed(&server.url()).await;
    let admin = server.admin().await;
    store.create(record(7, 100, "x"), soon()).await.unwrap();
    let other = connect(server.addr, "app", "msa").await.unwrap();
    other.batch_execute("BEGIN; UPDATE feed.feeds SET content = 'theirs'").await.unwrap();
    let begun = Instant::now();
    let limit = Duration::from_secs(10);
    let writes = (1..=200).map(|id| {
        let store = &store;
        async move {
            let written = if id % 11 == 0 {
                store.delete(7, id, begun + limit).await.map(|_| ())
            } else {
                store.create(record(7, id, "mine"), begun + limit).await
            };
            (id, written, begun.elapsed())
        }
    });
    for (id, written, took) in join_all(writes).await {
        assert!(took < limit + 200 * MS, "{id}: {took:?}");
        match written {
            Ok(()) => assert_ne!(id, 100),
            Err(StoreError::Failed(_) | StoreError::Late) => assert_eq!(id, 100),
            Err(other) => panic!("{id}: {other}"),
        }
    }
    wait_for_session(&admin, "state = 'idle'").await;
    other.batch_execute("COMMIT").await.unwrap();
    insist(store.as_ref(), 100, "mine").await;
}

#[tokio::test]
async fn a_deletion_does_not_overlook_a_record_that_is_about_to_appear() {
    let server = Postgres::start().await;
    let store = feed(&server.url()).await;
    let other = connect(server.addr, "app", "msa").await.unwrap();
    // as a create whose commit waits for a standby
    for (end, was_there) in [("COMMIT", true), ("ROLLBACK", false)] {
        other.batch_execute("BEGIN; INSERT INTO feed.feeds VALUES (7, 1, 'theirs')").await.unwrap();
        let deleted = store.delete(7, 1, soon());
        let end = async {
            tokio::time::sleep(150 * MS).await;
            other.batch_execute(end).await.unwrap();
        };
        let (deleted, ()) = futures_util::join!(deleted, end);
        assert_eq!(deleted.unwrap(), was_there);
        assert_eq!(store.newest(7, 20, 0).await.unwrap(), None);
    }
    // while it is about to appear nobody says that it is not there
    other.batch_execute("BEGIN; INSERT INTO feed.feeds VALUES (7, 1, 'theirs')").await.unwrap();
    let deleted = store.delete(7, 1, Instant::now() + 600 * MS).await;
    assert!(matches!(deleted, Err(StoreError::Late | StoreError::Failed(_))), "{deleted:?}");
    other.batch_execute("COMMIT").await.unwrap();
}

#[tokio::test]
async fn a_write_that_its_caller_has_left_does_not_come_long_after_it_was_sent() {
    let server = Postgres::start().await;
    let relay = Relay::start(server.addr, 7).await;
    let (store, other) = (feed(&Postgres::url_at(&[relay.addr])).await, feed(&server.url()).await);
    insist(store.as_ref(), 1, "first").await;
    relay.set(CUT);
    // its deadline is far away
    assert!(tokio::time::timeout(900 * MS, store.create(record(7, 1, "old"), soon())).await.is_err());
    insist(other.as_ref(), 1, "newer").await;
    relay.heal();
    // this goes behind it
    insist(store.as_ref(), 2, "next").await;
    assert!(other.delete(7, 2, soon()).await.unwrap());
    assert_eq!(content(other.as_ref()).await, "newer");
}

#[tokio::test]
async fn a_write_that_the_network_holds_back_is_made_if_there_is_time() {
    let server = Postgres::start().await;
    let relay = Relay::start(server.addr, 7).await;
    let store = feed(&Postgres::url_at(&[relay.addr])).await;
    relay.set(CUT);
    let written = store.create(record(7, 1, "x"), Instant::now() + Duration::from_secs(2));
    let heal = async {
        tokio::time::sleep(900 * MS).await;
        relay.heal();
    };
    let (written, ()) = futures_util::join!(written, heal);
    written.unwrap();
    assert_eq!(content(store.as_ref()).await, "x");
}

#[tokio::test]
async fn nobody_is_told_of_an_unknown_outcome_while_the_write_can_begin() {
    let server = Postgres::start().await;
    let relay = Relay::start(server.addr, 7).await;
    let store: Arc<dyn FeedStore> =
        open(&Store { timeout: 500 * MS, ..at(&Postgres::url_at(&[relay.addr])) }).await.unwrap();
    let other = feed(&server.url()).await;
    insist(store.as_ref(), 1, "first").await;
    relay.set(CUT);
    let begun = Instant::now();
    let old = store.create(record(7, 1, "old"), soon());
    let strike = async {
        tokio::time::sleep(20 * MS).await;
        // it is not the server that ends the connection: what is on the way may still arrive
        relay.close();
    };
    let (old, ()) = futures_util::join!(old, strike);
    assert!(matches!(old, Err(StoreError::Unknown(_))), "{old:?}");
    let took = begun.elapsed();
    assert!((300 * MS..1500 * MS).contains(&took), "{took:?}");
    relay.heal();

    // the connection is given up by its check, with a write on it that was sent just before
    for round in 0..3 {
        insist(store.as_ref(), 1, "first").await;
        relay.set(CUT);
        tokio::time::sleep(1700 * MS).await;
        let old = store.create(record(7, 1, "old"), soon()).await;
        if round == 0 {
            assert!(matches!(old, Err(StoreError::Unknown(_) | StoreError::Away(_))), "{old:?}");
        }
        insist(other.as_ref(), 1, "newer").await;
        relay.heal();
        insist(store.as_ref(), 2, "next").await;
        assert!(other.delete(7, 2, soon()).await.unwrap());
        assert_eq!(content(other.as_ref()).await, "newer");
    }
}

#[tokio::test]
async fn writes_that_come_too_late_again_and_again_are_counted() {
    let server = Postgres::start().await;
    let relay = Relay::start(server.addr, 7).await;
    let store = feed(&Postgres::url_at(&[relay.addr])).await;
    store.create(record(7, 1, "x"), soon()).await.unwrap();
    let late = || store.database()["late_writes"].as_u64().unwrap();
    assert_eq!(late(), 0);
    // a write has to begin within 300 ms
    let far = Direction { delay: 400 * MS, ..Direction::default() };
    relay.set(Faults { up: far, ..Faults::default() });
    let written = store.create(record(7, 2, "x"), soon()).await;
    assert!(matches!(written, Err(StoreError::Late)), "{written:?}");
    // the first try and five more
    assert_eq!(late(), 6);
    relay.heal();
    wait_for("a write is made", || async { store.create(record(7, 2, "x"), soon()).await.ok() }).await;
    assert_eq!(found(store.as_ref(), 7).await, [1, 2]);
}
