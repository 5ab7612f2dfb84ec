//! Where records are kept. One trait a service; nothing above looks behind it.
//!
//! An acknowledged write is durable as far as the store promises it: `memory:` promises nothing,
//! `sqlite:` that it survives kill -9 and power loss.
//!
//! *Cancellation*: dropping a write's future abandons the reply, not the write; whether it took effect
//! is then unknown, as with any lost answer. All writes are upserts and deletes by key, so a repeat is
//! harmless.

mod measured;
mod memory;
pub mod metrics;
mod sqlite;

use std::path::Path;
use std::sync::Arc;

use tonic::async_trait;

use crate::api::error::Error;
use crate::api::proto::feed::FeedRecord;
use crate::api::proto::profile::PutProfileRequest;
use crate::api::proto::topic::{PutTopicRequest, TopicSummary};
use crate::config::StoreUrl;
use metrics::Metrics;

/// A store could not be opened or used. The text says which and why; it is for the log.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// The file could not be opened, is another service's, or is of a newer version.
    #[error("store {path}: {reason}")]
    Open {
        /// The file.
        path: String,
        /// Why.
        reason: String,
    },
    /// An operation failed.
    #[error("store: {0}")]
    Failed(String),
    /// The disk is full.
    #[error("store: disk full")]
    Full,
    /// The store's thread has ended.
    #[error("store: closed")]
    Closed,
}

impl From<StoreError> for Error {
    /// A store that fails is a service that cannot answer now: the caller may try again.
    fn from(error: StoreError) -> Self {
        tracing::error!(%error, "store failed");
        Self::unavailable(match error {
            StoreError::Full => "the store's disk is full",
            _ => "the store cannot answer",
        })
    }
}

/// What a store tells `/readyz`.
#[async_trait]
pub trait Health: Send + Sync {
    /// Reads something.
    ///
    /// # Errors
    /// When the store cannot be read.
    async fn readable(&self) -> Result<(), StoreError>;
    /// Returns what an operator should know though reads work: `memory:`, a full disk.
    fn warnings(&self) -> Vec<String>;
}

/// A page of feeds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FeedPage {
    /// Ascending by id.
    pub feeds: Vec<FeedRecord>,
    /// True if records were left out only because of [`crate::api::validate::MAX_ANSWER`].
    pub shortened: bool,
}

/// A page of topics.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TopicPage {
    /// Ascending by id.
    pub topics: Vec<TopicSummary>,
    /// The last id of this page if there are more, else 0.
    pub next: i64,
}

/// Feeds by (`user_id`, `id`). Every method fails with a [`StoreError`] when the store cannot answer.
#[async_trait]
pub trait FeedStore: Health {
    /// Writes a feed, replacing one of the same key.
    async fn create(&self, feed: FeedRecord) -> Result<(), StoreError>;
    /// Returns the `size` highest ids below `before` (0: no bound), or `None` for a user without feeds.
    async fn newest(&self, user_id: i64, size: u32, before: i64) -> Result<Option<FeedPage>, StoreError>;
    /// Deletes a feed; returns whether it was there.
    async fn delete(&self, user_id: i64, id: i64) -> Result<bool, StoreError>;
}

/// Profiles by `user_id`.
#[async_trait]
pub trait ProfileStore: Health {
    /// Writes a profile, replacing one of the same key.
    async fn put(&self, profile: PutProfileRequest) -> Result<(), StoreError>;
    /// Returns a profile.
    async fn get(&self, user_id: i64) -> Result<Option<PutProfileRequest>, StoreError>;
}

/// Topics by `topic_id`.
#[async_trait]
pub trait TopicStore: Health {
    /// Writes a topic, replacing one of the same key.
    async fn put(&self, topic: PutTopicRequest) -> Result<(), StoreError>;
    /// Returns a topic.
    async fn get(&self, topic_id: i64) -> Result<Option<PutTopicRequest>, StoreError>;
    /// Returns the `size` lowest ids above `after`.
    async fn list(&self, after: i64, size: u32) -> Result<TopicPage, StoreError>;
}

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
