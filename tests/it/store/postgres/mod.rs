//! The store in PostgreSQL, against a real server.

mod access;
mod bad_records;
mod order;
mod outages;
mod plans;
mod process;
mod rights;
mod schema;
mod unbegun;
mod upgrades;
mod writes;

use std::sync::Arc;
use std::time::Duration;

use microservice_app::config::Store;
use microservice_app::store::{self, FeedStore, StoreError};

use super::contract::{at, ids, metrics, record, soon};
use crate::kit::postgres::Postgres;
use crate::kit::wait_for;

const MS: Duration = Duration::from_millis(1);

async fn open(settings: &Store) -> Result<Arc<dyn FeedStore>, StoreError> {
    store::feed(settings, &metrics()).await
}

/// Opens the store of feeds at a URL.
async fn feed(url: &str) -> Arc<dyn FeedStore> {
    open(&at(url)).await.unwrap()
}

/// Returns the ids of a user's feeds.
async fn found(store: &dyn FeedStore, user_id: i64) -> Vec<i64> {
    store.newest(user_id, 1000, 0).await.unwrap().map_or_else(Vec::new, |page| ids(&page))
}

/// Waits until a store has nothing to warn of.
async fn wait_until_well(store: &dyn FeedStore) {
    wait_for("the store is well", || async { store.warnings().is_empty().then_some(()) }).await;
}

/// Waits until a session of the server is in this state, a condition on `pg_stat_activity`.
async fn wait_for_session(admin: &tokio_postgres::Client, condition: &str) {
    let question = format!("SELECT 1 FROM pg_stat_activity WHERE usename = 'app' AND {condition}");
    wait_for(condition, || async { (!admin.query(&question, &[]).await.unwrap().is_empty()).then_some(()) })
        .await;
}

/// Returns the process ids of the store's sessions.
async fn sessions(admin: &tokio_postgres::Client) -> Vec<i32> {
    let question = "SELECT pid FROM pg_stat_activity WHERE usename = 'app' ORDER BY pid";
    admin.query(question, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

#[tokio::test]
async fn two_instances_agree() {
    let server = Postgres::start().await;
    let (one, two) = (feed(&server.url()).await, feed(&server.url()).await);
    one.create(record(7, 1, "a"), soon()).await.unwrap();
    two.create(record(7, 2, "b"), soon()).await.unwrap();
    for store in [&one, &two] {
        assert_eq!(found(store.as_ref(), 7).await, [1, 2]);
        assert_eq!(store.warnings(), [""; 0]);
        store.usable().await.unwrap();
    }
    assert!(two.delete(7, 1, soon()).await.unwrap());
    assert!(!one.delete(7, 1, soon()).await.unwrap());
}
