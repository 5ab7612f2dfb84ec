//! A store whose operations are measured: how long each takes, and whether it fails. A failure of the
//! store is also logged, here and nowhere else, at most once in 10 s. An operation whose future is dropped is not counted.

use std::sync::Arc;
use std::time::Instant;

use serde_json::Value;
use tonic::async_trait;

use super::error::StoreError;
use super::metrics::{Metrics, StoreOperation};
use super::records::{FeedPage, Profile, Topic, TopicPage};
use super::traits::{FeedStore, Health, ProfileStore, TopicStore};
use crate::api::proto::feed::FeedRecord;
use crate::telemetry::log::LogThrottle;

/// Measures an operation, and logs its failure.
async fn measure<T>(
    failures: &Failures,
    operation: &StoreOperation,
    work: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    let result = operation.measure(work).await;
    result.inspect_err(|error| failures.log(error))
}

/// The failures that are logged. Those of single records have a limit of their own: a caller can cause as many as he likes.
#[derive(Default)]
struct Failures {
    store: LogThrottle,
    records: LogThrottle,
}

impl Failures {
    fn log(&self, error: &StoreError) {
        match error {
            // that a database is away is logged once, by whoever keeps the connection
            StoreError::Late | StoreError::Busy(_) | StoreError::Away(_) | StoreError::Unknown(_) => {}
            StoreError::Unacceptable(_) | StoreError::Unreadable(_) => {
                if let Some(count) = self.records.note() {
                    tracing::warn!(%error, count, "a record cannot be stored or read");
                }
            }
            _ => {
                if let Some(count) = self.store.note() {
                    tracing::error!(%error, count, "store failed");
                }
            }
        }
    }
}

/// A measured [`FeedStore`].
pub struct Feeds {
    store: Arc<dyn FeedStore>,
    failures: Failures,
    create: StoreOperation,
    newest: StoreOperation,
    delete: StoreOperation,
}

impl Feeds {
    /// Measures a store.
    pub fn new(store: Arc<dyn FeedStore>, metrics: &Metrics) -> Self {
        let operation = |name| metrics.operation("feed", name);
        Self {
            store,
            failures: Failures::default(),
            create: operation("create"),
            newest: operation("newest"),
            delete: operation("delete"),
        }
    }
}

#[async_trait]
impl FeedStore for Feeds {
    async fn create(&self, feed: FeedRecord, deadline: Instant) -> Result<(), StoreError> {
        measure(&self.failures, &self.create, self.store.create(feed, deadline)).await
    }

    async fn newest(&self, user_id: i64, size: u32, before: i64) -> Result<Option<FeedPage>, StoreError> {
        measure(&self.failures, &self.newest, self.store.newest(user_id, size, before)).await
    }

    async fn delete(&self, user_id: i64, id: i64, deadline: Instant) -> Result<bool, StoreError> {
        measure(&self.failures, &self.delete, self.store.delete(user_id, id, deadline)).await
    }
}

/// A measured [`ProfileStore`].
pub struct Profiles {
    store: Arc<dyn ProfileStore>,
    failures: Failures,
    put: StoreOperation,
    get: StoreOperation,
}

impl Profiles {
    /// Measures a store.
    pub fn new(store: Arc<dyn ProfileStore>, metrics: &Metrics) -> Self {
        Self {
            store,
            failures: Failures::default(),
            put: metrics.operation("profile", "put"),
            get: metrics.operation("profile", "get"),
        }
    }
}

#[async_trait]
impl ProfileStore for Profiles {
    async fn put(&self, profile: Profile, deadline: Instant) -> Result<(), StoreError> {
        measure(&self.failures, &self.put, self.store.put(profile, deadline)).await
    }

    async fn get(&self, user_id: i64) -> Result<Option<Profile>, StoreError> {
        measure(&self.failures, &self.get, self.store.get(user_id)).await
    }
}

/// A measured [`TopicStore`].
pub struct Topics {
    store: Arc<dyn TopicStore>,
    failures: Failures,
    put: StoreOperation,
    get: StoreOperation,
    list: StoreOperation,
}

impl Topics {
    /// Measures a store.
    pub fn new(store: Arc<dyn TopicStore>, metrics: &Metrics) -> Self {
        let operation = |name| metrics.operation("topic", name);
        Self {
            store,
            failures: Failures::default(),
            put: operation("put"),
            get: operation("get"),
            list: operation("list"),
        }
    }
}

#[async_trait]
impl TopicStore for Topics {
    async fn put(&self, topic: Topic, deadline: Instant) -> Result<(), StoreError> {
        measure(&self.failures, &self.put, self.store.put(topic, deadline)).await
    }

    async fn get(&self, topic_id: i64) -> Result<Option<Topic>, StoreError> {
        measure(&self.failures, &self.get, self.store.get(topic_id)).await
    }

    async fn list(&self, after: i64, size: u32) -> Result<TopicPage, StoreError> {
        measure(&self.failures, &self.list, self.store.list(after, size)).await
    }
}

macro_rules! health_of_the_store {
    ($($measured:ident)*) => {$(
        #[async_trait]
        impl Health for $measured {
            async fn usable(&self) -> Result<(), StoreError> {
                self.store.usable().await
            }

            fn warnings(&self) -> Vec<String> {
                self.store.warnings()
            }

            fn database(&self) -> Value {
                self.store.database()
            }
        }
    )*};
}
health_of_the_store!(Feeds Profiles Topics);
