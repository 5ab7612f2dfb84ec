//! Where records are kept. There is one trait for each service, and no code above this module knows which store is
//! behind it.
//!
//! How durable an acknowledged write is depends on the store: in `memory:` it is lost with the process, in `sqlite:`
//! it survives kill -9 and power loss.
//!
//! *Cancellation*: a write whose future is dropped, or whose deadline passes, is not made unless it has begun. One that
//! has begun is finished; whether it took effect is then unknown to the caller, as with any lost answer.

mod database;
mod error;
mod measured;
mod memory;
pub mod metrics;
mod records;
mod sqlite;
mod traits;

use std::path::Path;
use std::sync::Arc;

use crate::config::StoreUrl;
use metrics::Metrics;

pub use error::StoreError;
pub use records::{FeedPage, Profile, Topic, TopicPage};
pub use traits::{FeedStore, Health, ProfileStore, TopicStore};

/// Opens the store of the feed service, measured.
///
/// # Errors
/// [`StoreError::Open`].
pub fn feed(url: &StoreUrl, metrics: &Metrics) -> Result<Arc<dyn FeedStore>, StoreError> {
    let store: Arc<dyn FeedStore> = match url {
        StoreUrl::Memory => Arc::new(memory::Feeds::default()),
        StoreUrl::Sqlite(path) => Arc::new(open(path, &sqlite::FEED)?),
    };
    Ok(Arc::new(measured::Feeds::new(store, metrics)))
}

/// Opens the store of the profile service, measured.
///
/// # Errors
/// [`StoreError::Open`].
pub fn profile(url: &StoreUrl, metrics: &Metrics) -> Result<Arc<dyn ProfileStore>, StoreError> {
    let store: Arc<dyn ProfileStore> = match url {
        StoreUrl::Memory => Arc::new(memory::Profiles::default()),
        StoreUrl::Sqlite(path) => Arc::new(open(path, &sqlite::PROFILE)?),
    };
    Ok(Arc::new(measured::Profiles::new(store, metrics)))
}

/// Opens the store of the topic service, measured.
///
/// # Errors
/// [`StoreError::Open`].
pub fn topic(url: &StoreUrl, metrics: &Metrics) -> Result<Arc<dyn TopicStore>, StoreError> {
    let store: Arc<dyn TopicStore> = match url {
        StoreUrl::Memory => Arc::new(memory::Topics::default()),
        StoreUrl::Sqlite(path) => Arc::new(open(path, &sqlite::TOPIC)?),
    };
    Ok(Arc::new(measured::Topics::new(store, metrics)))
}

fn open(path: &Path, schema: &'static sqlite::Schema) -> Result<sqlite::Sqlite, StoreError> {
    sqlite::Sqlite::open(path, schema)
        .map_err(|reason| StoreError::Open { path: path.display().to_string(), reason })
}

#[cfg(test)]
mod tests;
