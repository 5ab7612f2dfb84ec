//! What a service asks of its store. Every method fails with a [`StoreError`] when the store cannot answer.

use tonic::async_trait;

use super::error::StoreError;
use super::records::{FeedPage, Profile, Topic, TopicPage};
use crate::api::proto::feed::FeedRecord;

/// The state of a store, for `/readyz`.
#[async_trait]
pub trait Health: Send + Sync {
    /// Reads something.
    ///
    /// # Errors
    /// When the store cannot be read.
    async fn readable(&self) -> Result<(), StoreError>;
    /// Returns what an operator should know although reads work: records in memory only, a full disk.
    fn warnings(&self) -> Vec<String>;
}

/// Feeds by (`user_id`, `id`).
#[async_trait]
pub trait FeedStore: Health {
    /// Writes a feed, replacing one with the same key.
    async fn create(&self, feed: FeedRecord) -> Result<(), StoreError>;
    /// Returns the `size` highest ids below `before` (0: no bound), or `None` for a user without feeds.
    async fn newest(&self, user_id: i64, size: u32, before: i64) -> Result<Option<FeedPage>, StoreError>;
    /// Deletes a feed; returns whether it was there.
    async fn delete(&self, user_id: i64, id: i64) -> Result<bool, StoreError>;
}

/// Profiles by `user_id`.
#[async_trait]
pub trait ProfileStore: Health {
    /// Writes a profile, replacing one with the same key.
    async fn put(&self, profile: Profile) -> Result<(), StoreError>;
    /// Returns a profile, if it is there.
    async fn get(&self, user_id: i64) -> Result<Option<Profile>, StoreError>;
}

/// Topics by `topic_id`.
#[async_trait]
pub trait TopicStore: Health {
    /// Writes a topic, replacing one with the same key.
    async fn put(&self, topic: Topic) -> Result<(), StoreError>;
    /// Returns a topic, if it is there.
    async fn get(&self, topic_id: i64) -> Result<Option<Topic>, StoreError>;
    /// Returns the `size` lowest ids above `after`.
    async fn list(&self, after: i64, size: u32) -> Result<TopicPage, StoreError>;
}
