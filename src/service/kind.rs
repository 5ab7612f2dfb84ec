//! Which service an instance is, and its store.

use std::sync::Arc;

use crate::api::proto;
use crate::client::Client;
use crate::config::Store;
use crate::store::{self, StoreError};

/// One of the three services, over its store.
#[derive(Clone)]
pub enum Service {
    /// feed.Feed.
    Feed(Arc<dyn store::FeedStore>),
    /// profile.Profile, which calls feed.
    Profile(Arc<dyn store::ProfileStore>, Client),
    /// topic.Topic.
    Topic(Arc<dyn store::TopicStore>),
}

impl Service {
    /// Opens the feed service's store.
    ///
    /// # Errors
    /// [`StoreError::Open`].
    pub async fn feed(settings: &Store, metrics: &store::metrics::Metrics) -> Result<Self, StoreError> {
        Ok(Self::Feed(store::feed(settings, metrics).await?))
    }

    /// Opens the profile service's store. `client` must follow `feed`.
    ///
    /// # Errors
    /// [`StoreError::Open`].
    pub async fn profile(
        settings: &Store,
        metrics: &store::metrics::Metrics,
        client: Client,
    ) -> Result<Self, StoreError> {
        Ok(Self::Profile(store::profile(settings, metrics).await?, client))
    }

    /// Opens the topic service's store.
    ///
    /// # Errors
    /// [`StoreError::Open`].
    pub async fn topic(settings: &Store, metrics: &store::metrics::Metrics) -> Result<Self, StoreError> {
        Ok(Self::Topic(store::topic(settings, metrics).await?))
    }

    /// Returns the same with another client, that of another thread, if it calls services.
    #[must_use]
    pub fn with_client(&self, client: &Client) -> Self {
        match self {
            Self::Profile(store, _) => Self::Profile(store.clone(), client.clone()),
            Self::Feed(_) | Self::Topic(_) => self.clone(),
        }
    }

    /// Returns the name of the service in the registry.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Feed(_) => "feed",
            Self::Profile(..) => "profile",
            Self::Topic(_) => "topic",
        }
    }

    /// Returns the name of the service in gRPC and in health checks.
    #[must_use]
    pub const fn grpc_name(&self) -> &'static str {
        match self {
            Self::Feed(_) => "feed.Feed",
            Self::Profile(..) => "profile.Profile",
            Self::Topic(_) => "topic.Topic",
        }
    }

    /// Returns the encoded descriptors of its rpcs and messages.
    #[must_use]
    pub const fn descriptors(&self) -> &'static [u8] {
        match self {
            Self::Feed(_) => proto::feed::DESCRIPTORS,
            Self::Profile(..) => proto::profile::DESCRIPTORS,
            Self::Topic(_) => proto::topic::DESCRIPTORS,
        }
    }

    /// Returns the health of the store.
    #[must_use]
    pub fn store(&self) -> &dyn store::Health {
        match self {
            Self::Feed(store) => store.as_ref(),
            Self::Profile(store, _) => store.as_ref(),
            Self::Topic(store) => store.as_ref(),
        }
    }
}
