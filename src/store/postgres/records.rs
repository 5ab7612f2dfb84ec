//! What the services ask of a store, as statements of SQL.

use std::time::Instant;

use tonic::async_trait;

use super::super::error::StoreError;
use super::super::records::{FeedPage, Profile, Topic, TopicPage};
use super::super::traits::{FeedStore, ProfileStore, TopicStore};
use super::batch::Write;
use super::handle::Postgres;
use super::service::{ANY, GET, LIST};
use crate::api::proto::feed::FeedRecord;
use crate::api::proto::topic::TopicSummary;
use crate::api::validate::MAX_ANSWER;

/// [`MAX_ANSWER`] as the server takes it.
#[expect(clippy::cast_possible_wrap, reason = "a few MiB")]
const MAX_BYTES: i64 = MAX_ANSWER as i64;

#[async_trait]
impl FeedStore for Postgres {
    async fn create(&self, feed: FeedRecord, deadline: Instant) -> Result<(), StoreError> {
        self.write(deadline, Write::PutFeed(feed)).await.map(|_| ())
    }

    async fn newest(&self, user_id: i64, size: u32, before: i64) -> Result<Option<FeedPage>, StoreError> {
        let highest = if before == 0 { i64::MAX } else { before - 1 };
        self.read(move |ready| async move {
            let (client, statements) = (ready.link.client(), &ready.statements);
            let rows =
                client.query(&statements[GET], &[&user_id, &highest, &i64::from(size), &MAX_BYTES]).await?;
            let mut page = FeedPage::default();
            for row in &rows {
                let Some(content) = row.get(1) else {
                    page.shortened = true;
                    break;
                };
                page.feeds.push(FeedRecord { id: row.get(0), user_id, content });
            }
            page.feeds.reverse();
            if page.feeds.is_empty() && client.query(&statements[ANY], &[&user_id]).await?.is_empty() {
                return Ok(None);
            }
            Ok(Some(page))
        })
        .await
    }

    async fn delete(&self, user_id: i64, id: i64, deadline: Instant) -> Result<bool, StoreError> {
        self.write(deadline, Write::DeleteFeed { user_id, id }).await
    }
}

#[async_trait]
impl ProfileStore for Postgres {
    async fn put(&self, profile: Profile, deadline: Instant) -> Result<(), StoreError> {
        self.write(deadline, Write::PutProfile(profile)).await.map(|_| ())
    }

    async fn get(&self, user_id: i64) -> Result<Option<Profile>, StoreError> {
        self.read(move |ready| async move {
            let row = ready.link.client().query_opt(&ready.statements[GET], &[&user_id]).await?;
            let profile = |row: tokio_postgres::Row| Profile {
                user_id,
                name: row.get(0),
                company: row.get(1),
                title: row.get(2),
            };
            Ok(row.map(profile))
        })
        .await
    }
}

#[async_trait]
impl TopicStore for Postgres {
    async fn put(&self, topic: Topic, deadline: Instant) -> Result<(), StoreError> {
        self.write(deadline, Write::PutTopic(topic)).await.map(|_| ())
    }

    async fn get(&self, topic_id: i64) -> Result<Option<Topic>, StoreError> {
        self.read(move |ready| async move {
            let row = ready.link.client().query_opt(&ready.statements[GET], &[&topic_id]).await?;
            let topic =
                |row: tokio_postgres::Row| Topic { topic_id, subject: row.get(0), content: row.get(1) };
            Ok(row.map(topic))
        })
        .await
    }

    async fn list(&self, after: i64, size: u32) -> Result<TopicPage, StoreError> {
        self.read(move |ready| async move {
            let limit = i64::from(size) + 1;
            let rows = ready.link.client().query(&ready.statements[LIST], &[&after, &limit]).await?;
            let summary =
                |row: &tokio_postgres::Row| TopicSummary { topic_id: row.get(0), subject: row.get(1) };
            Ok(TopicPage::of(rows.iter().map(summary).collect(), size))
        })
        .await
    }
}
