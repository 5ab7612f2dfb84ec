//! Where records are kept. There is one trait for each service, and no code above this module knows which store is
//! behind it.
//!
//! How durable an acknowledged write is depends on the store: in `memory:` it is lost with the process, in `sqlite:`
//! it survives kill -9 and power loss, in `postgres://` it is as durable as a commit of that database.
//!
//! *Cancellation*: a write whose future is dropped, or whose deadline passes, is not made unless it has begun. One that
//! has begun is finished; whether it took effect is then unknown to the caller, as with any lost answer.

pub mod bulk;
pub mod copy;
mod database;
mod error;
mod measured;
mod memory;
pub mod metrics;
mod postgres;
mod progress;
mod records;
mod sqlite;
mod traits;

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::oneshot;

use crate::config::{PostgresUrl, Store, StoreUrl};
use metrics::Metrics;

pub use error::StoreError;
#[doc(hidden)]
pub use postgres::rows as postgres_rows;
pub use records::{FeedPage, Profile, Topic, TopicPage};
pub use traits::{FeedStore, Health, ProfileStore, TopicStore};

/// Opens the store of the feed service, measured.
///
/// # Errors
/// [`StoreError::Open`].
pub async fn feed(settings: &Store, metrics: &Metrics) -> Result<Arc<dyn FeedStore>, StoreError> {
    let store: Arc<dyn FeedStore> = match &settings.url {
        StoreUrl::Memory => Arc::new(memory::Feeds::default()),
        StoreUrl::Sqlite(path) => Arc::new(sqlite(path.clone(), &sqlite::FEED).await?),
        StoreUrl::Postgres(url) => Arc::new(postgres(url, settings, &postgres::FEED, metrics).await?),
    };
    Ok(Arc::new(measured::Feeds::new(store, metrics)))
}

/// Opens the store of the profile service, measured.
///
/// # Errors
/// [`StoreError::Open`].
pub async fn profile(settings: &Store, metrics: &Metrics) -> Result<Arc<dyn ProfileStore>, StoreError> {
    let store: Arc<dyn ProfileStore> = match &settings.url {
        StoreUrl::Memory => Arc::new(memory::Profiles::default()),
        StoreUrl::Sqlite(path) => Arc::new(sqlite(path.clone(), &sqlite::PROFILE).await?),
        StoreUrl::Postgres(url) => Arc::new(postgres(url, settings, &postgres::PROFILE, metrics).await?),
    };
    Ok(Arc::new(measured::Profiles::new(store, metrics)))
}

/// Opens the store of the topic service, measured.
///
/// # Errors
/// [`StoreError::Open`].
pub async fn topic(settings: &Store, metrics: &Metrics) -> Result<Arc<dyn TopicStore>, StoreError> {
    let store: Arc<dyn TopicStore> = match &settings.url {
        StoreUrl::Memory => Arc::new(memory::Topics::default()),
        StoreUrl::Sqlite(path) => Arc::new(sqlite(path.clone(), &sqlite::TOPIC).await?),
        StoreUrl::Postgres(url) => Arc::new(postgres(url, settings, &postgres::TOPIC, metrics).await?),
    };
    Ok(Arc::new(measured::Topics::new(store, metrics)))
}

/// Opens a file, on a thread of its own: it may wait for the lock of another process.
///
/// *Cancellation*: a thread that waits is left behind, until the process ends.
async fn sqlite(path: PathBuf, schema: &'static sqlite::Schema) -> Result<sqlite::Sqlite, StoreError> {
    let refuse = |reason| StoreError::Open { path: path.display().to_string(), reason };
    let (send, opened) = oneshot::channel();
    let file = path.clone();
    // not one of the runtime's threads: the runtime would wait for it when a signal ends the start
    let run = move || drop(send.send(sqlite::Sqlite::open(&file, schema)));
    let thread = std::thread::Builder::new().name("store-open".to_owned()).spawn(run);
    thread.map_err(|error| refuse(error.to_string()))?;
    opened.await.map_err(|_| StoreError::Closed)?.map_err(refuse)
}

/// As [`feed`], in PostgreSQL and with these migrations, for tests of what a newer version may do.
///
/// # Errors
/// [`StoreError::Open`].
#[doc(hidden)]
pub async fn feed_migrated_by(
    url: &PostgresUrl,
    settings: &Store,
    migrations: &'static [(&'static str, &'static str)],
    metrics: &Metrics,
) -> Result<Arc<dyn FeedStore>, StoreError> {
    // as long-lived as those of this program
    let service = Box::leak(Box::new(postgres::FEED.migrated_by(migrations)));
    Ok(Arc::new(measured::Feeds::new(Arc::new(postgres(url, settings, service, metrics).await?), metrics)))
}

async fn postgres(
    url: &PostgresUrl,
    settings: &Store,
    service: &'static postgres::Service,
    metrics: &Metrics,
) -> Result<postgres::Postgres, StoreError> {
    let opened = postgres::Postgres::open(url, settings, service, metrics).await;
    opened.map_err(|reason| StoreError::Open { path: url.to_string(), reason })
}

#[cfg(test)]
mod tests;
