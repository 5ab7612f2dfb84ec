//! Records in memory: quick, and lost when the process ends.

use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Instant;

use tonic::async_trait;

use super::error::StoreError;
use super::records::{FeedPage, Profile, Topic, TopicPage};
use super::traits::{FeedStore, Health, ProfileStore, TopicStore};
use crate::api::proto::feed::FeedRecord;
use crate::api::proto::topic::TopicSummary;
use crate::api::validate::MAX_ANSWER;

/// Feeds by user, then id.
#[derive(Debug, Default)]
pub struct Feeds(RwLock<BTreeMap<i64, BTreeMap<i64, String>>>);

/// Profiles by user.
#[derive(Debug, Default)]
pub struct Profiles(RwLock<BTreeMap<i64, Profile>>);

/// Topics by id.
#[derive(Debug, Default)]
pub struct Topics(RwLock<BTreeMap<i64, Topic>>);

/// Locks a map for reading: the reads of several threads do not wait for each other. No code under these locks can leave
/// the map half changed, so a poisoned one is sound.
fn read<T>(map: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    map.read().unwrap_or_else(PoisonError::into_inner)
}

/// Locks a map for a change.
fn write<T>(map: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    map.write().unwrap_or_else(PoisonError::into_inner)
}

/// Checks that a write may still begin.
fn in_time(deadline: Instant) -> Result<(), StoreError> {
    if Instant::now() < deadline { Ok(()) } else { Err(StoreError::Late) }
}

macro_rules! always_healthy {
    ($($store:ty),*) => {$(
        #[async_trait]
        impl Health for $store {
            async fn usable(&self) -> Result<(), StoreError> {
                Ok(())
            }
            fn warnings(&self) -> Vec<String> {
                vec!["store memory: records are lost when this process ends".to_owned()]
            }
        }
    )*};
}
always_healthy!(Feeds, Profiles, Topics);

#[async_trait]
impl FeedStore for Feeds {
    async fn create(&self, feed: FeedRecord, deadline: Instant) -> Result<(), StoreError> {
        in_time(deadline)?;
        let mut users = write(&self.0);
        users.entry(feed.user_id).or_default().insert(feed.id, feed.content);
        Ok(())
    }

    async fn newest(&self, user_id: i64, size: u32, before: i64) -> Result<Option<FeedPage>, StoreError> {
        let users = read(&self.0);
        let Some(feeds) = users.get(&user_id) else {
            return Ok(None);
        };
        let highest = if before == 0 { i64::MAX } else { before - 1 };
        let mut page = FeedPage::default();
        let mut bytes = 0;
        for (id, content) in feeds.range(..=highest).rev().take(size as usize) {
            bytes += content.len();
            if bytes > MAX_ANSWER && !page.feeds.is_empty() {
                page.shortened = true;
                break;
            }
            page.feeds.push(FeedRecord { id: *id, user_id, content: content.clone() });
        }
        page.feeds.reverse();
        Ok(Some(page))
    }

    async fn delete(&self, user_id: i64, id: i64, deadline: Instant) -> Result<bool, StoreError> {
        in_time(deadline)?;
        let mut users = write(&self.0);
        let Some(feeds) = users.get_mut(&user_id) else {
            return Ok(false);
        };
        let deleted = feeds.remove(&id).is_some();
        if feeds.is_empty() {
            users.remove(&user_id);
        }
        Ok(deleted)
    }
}

#[async_trait]
impl ProfileStore for Profiles {
    async fn put(&self, profile: Profile, deadline: Instant) -> Result<(), StoreError> {
        in_time(deadline)?;
        write(&self.0).insert(profile.user_id, profile);
        Ok(())
    }

    async fn get(&self, user_id: i64) -> Result<Option<Profile>, StoreError> {
        Ok(read(&self.0).get(&user_id).cloned())
    }
}

#[async_trait]
impl TopicStore for Topics {
    async fn put(&self, topic: Topic, deadline: Instant) -> Result<(), StoreError> {
        in_time(deadline)?;
        write(&self.0).insert(topic.topic_id, topic);
        Ok(())
    }

    async fn get(&self, topic_id: i64) -> Result<Option<Topic>, StoreError> {
        Ok(read(&self.0).get(&topic_id).cloned())
    }

    async fn list(&self, after: i64, size: u32) -> Result<TopicPage, StoreError> {
        let topics = read(&self.0);
        let Some(first) = after.checked_add(1) else {
            return Ok(TopicPage::default());
        };
        let summaries = topics
            .range(first..)
            .map(|(id, topic)| TopicSummary { topic_id: *id, subject: topic.subject.clone() });
        Ok(TopicPage::of(summaries.take(size as usize + 1).collect(), size))
    }
}
