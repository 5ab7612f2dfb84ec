//! What a service asks of its store. Every method fails with a [`StoreError`] when the store cannot answer.
//!
//! A write has a deadline: it begins before that or not at all. One that has begun is finished.
//!
//! *Cancellation*: a write whose future is dropped before it has begun is not made.

use std::time::Instant;

use serde_json::Value;
use tonic::async_trait;

use super::error::StoreError;
use super::records::{FeedPage, Profile, Topic, TopicPage};
use crate::api::proto::feed::FeedRecord;

/// The state of a store, for `/readyz` and health checks.
#[async_trait]
pub trait Health: Send + Sync {
    /// Checks that the store can be read, and that what is written to it is kept.
    ///
    /// # Errors
    /// When it is not so.
    async fn usable(&self) -> Result<(), StoreError>;
    /// Returns what an operator should know although the store is usable: records in memory only, writes that fail.
    fn warnings(&self) -> Vec<String>;
    /// Returns the state of the shared database, for `/status`; null for a store that has none.
    fn database(&self) -> Value {
        Value::Null
    }
}

/// Feeds by (`user_id`, `id`).
#[async_trait]
pub trait FeedStore: Health {
    /// Writes a feed, replacing one with the same key.
    async fn create(&self, feed: FeedRecord, deadline: Instant) -> Result<(), StoreError>;
    /// Returns the `size` highest ids below `before` (0: no bound), or `None` for a user without feeds.
    async fn newest(&self, user_id: i64, size: u32, before: i64) -> Result<Option<FeedPage>, StoreError>;
    /// Deletes a feed; returns whether it was there.
    async fn delete(&self, user_id: i64, id: i64, deadline: Instant) -> Result<bool, StoreError>;
}

/// Profiles by `user_id`.
#[async_trait]
pub trait ProfileStore: Health {
    /// Writes a profile, replacing one with the same key.
    async fn put(&self, profile: Profile, deadline: Instant) -> Result<(), StoreError>;
    /// Returns a profile, if it is there.
    async fn get(&self, user_id: i64) -> Result<Option<Profile>, StoreError>;
}

/// Topics by `topic_id`.
#[async_trait]
pub trait TopicStore: Health {
    /// Writes a topic, replacing one with the same key.
    async fn put(&self, topic: Topic, deadline: Instant) -> Result<(), StoreError>;
    /// Returns a topic, if it is there.
    async fn get(&self, topic_id: i64) -> Result<Option<Topic>, StoreError>;
    /// Returns the `size` lowest ids above `after`.
    async fn list(&self, after: i64, size: u32) -> Result<TopicPage, StoreError>;
}
