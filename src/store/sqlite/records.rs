//! What the services ask of a store, as statements of SQL.

use std::time::Instant;

use rusqlite::{OptionalExtension, params};
use tonic::async_trait;

use super::super::error::StoreError;
use super::super::records::{FeedPage, Profile, Topic, TopicPage};
use super::super::traits::{FeedStore, ProfileStore, TopicStore};
use super::handle::Sqlite;
use crate::api::proto::feed::FeedRecord;
use crate::api::proto::topic::TopicSummary;
use crate::api::validate::MAX_ANSWER;

/// The newest feeds of a user, from an id downwards.
pub const NEWEST: &str =
    "SELECT id, content FROM feeds WHERE user_id = ?1 AND id <= ?2 ORDER BY id DESC LIMIT ?3";
/// Whether a user has feeds.
pub const ANY: &str = "SELECT 1 FROM feeds WHERE user_id = ?1 LIMIT 1";
/// A profile.
pub const PROFILE: &str = "SELECT name, company, title FROM profiles WHERE user_id = ?1";
/// A topic.
pub const TOPIC: &str = "SELECT subject, content FROM topics WHERE topic_id = ?1";
/// The topics after an id.
pub const TOPICS: &str =
    "SELECT topic_id, subject FROM topics WHERE topic_id > ?1 ORDER BY topic_id LIMIT ?2";

#[async_trait]
impl FeedStore for Sqlite {
    async fn create(&self, feed: FeedRecord, deadline: Instant) -> Result<(), StoreError> {
        self.write(deadline, move |db| {
            db.prepare_cached(
                "INSERT INTO feeds (user_id, id, content) VALUES (?1, ?2, ?3)
                 ON CONFLICT (user_id, id) DO UPDATE SET content = excluded.content",
            )?
            .execute(params![feed.user_id, feed.id, feed.content])
            .map(|_| ())
        })
        .await
    }

    async fn newest(&self, user_id: i64, size: u32, before: i64) -> Result<Option<FeedPage>, StoreError> {
        let highest = if before == 0 { i64::MAX } else { before - 1 };
        self.read(move |db| {
            let mut page = FeedPage::default();
            let mut bytes = 0;
            let mut query = db.prepare_cached(NEWEST)?;
            let mut rows = query.query(params![user_id, highest, size])?;
            while let Some(row) = rows.next()? {
                let content: String = row.get(1)?;
                bytes += content.len();
                if bytes > MAX_ANSWER && !page.feeds.is_empty() {
                    page.shortened = true;
                    break;
                }
                page.feeds.push(FeedRecord { id: row.get(0)?, user_id, content });
            }
            page.feeds.reverse();
            if page.feeds.is_empty() {
                let mut any = db.prepare_cached(ANY)?;
                if !any.exists(params![user_id])? {
                    return Ok(None);
                }
            }
            Ok(Some(page))
        })
        .await
    }

    async fn delete(&self, user_id: i64, id: i64, deadline: Instant) -> Result<bool, StoreError> {
        self.write(deadline, move |db| {
            db.prepare_cached("DELETE FROM feeds WHERE user_id = ?1 AND id = ?2")?
                .execute(params![user_id, id])
                .map(|rows| rows > 0)
        })
        .await
    }
}

#[async_trait]
impl ProfileStore for Sqlite {
    async fn put(&self, profile: Profile, deadline: Instant) -> Result<(), StoreError> {
        self.write(deadline, move |db| {
            db.prepare_cached(
                "INSERT INTO profiles (user_id, name, company, title) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (user_id) DO UPDATE
                 SET name = excluded.name, company = excluded.company, title = excluded.title",
            )?
            .execute(params![profile.user_id, profile.name, profile.company, profile.title])
            .map(|_| ())
        })
        .await
    }

    async fn get(&self, user_id: i64) -> Result<Option<Profile>, StoreError> {
        self.read(move |db| {
            db.prepare_cached(PROFILE)?
                .query_row(params![user_id], |row| {
                    Ok(Profile { user_id, name: row.get(0)?, company: row.get(1)?, title: row.get(2)? })
                })
                .optional()
        })
        .await
    }
}

#[async_trait]
impl TopicStore for Sqlite {
    async fn put(&self, topic: Topic, deadline: Instant) -> Result<(), StoreError> {
        self.write(deadline, move |db| {
            db.prepare_cached(
                "INSERT INTO topics (topic_id, subject, content) VALUES (?1, ?2, ?3)
                 ON CONFLICT (topic_id) DO UPDATE SET subject = excluded.subject, content = excluded.content",
            )?
            .execute(params![topic.topic_id, topic.subject, topic.content])
            .map(|_| ())
        })
        .await
    }

    async fn get(&self, topic_id: i64) -> Result<Option<Topic>, StoreError> {
        self.read(move |db| {
            db.prepare_cached(TOPIC)?
                .query_row(params![topic_id], |row| {
                    Ok(Topic { topic_id, subject: row.get(0)?, content: row.get(1)? })
                })
                .optional()
        })
        .await
    }

    async fn list(&self, after: i64, size: u32) -> Result<TopicPage, StoreError> {
        self.read(move |db| {
            let mut query = db.prepare_cached(TOPICS)?;
            let rows = query.query_map(params![after, size.saturating_add(1)], |row| {
                Ok(TopicSummary { topic_id: row.get(0)?, subject: row.get(1)? })
            })?;
            Ok(TopicPage::of(rows.collect::<Result<_, _>>()?, size))
        })
        .await
    }
}
