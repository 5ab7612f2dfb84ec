//! What the services ask of a store, as statements of SQL.

use std::time::Instant;

use tokio_postgres::Row;
use tonic::async_trait;

use super::super::error::StoreError;
use super::super::records::{FeedPage, Profile, Topic, TopicPage};
use super::super::traits::{FeedStore, ProfileStore, TopicStore};
use super::batch::Write;
use super::failure::Failure;
use super::handle::Postgres;
use super::rows;
use super::service::{ANY, GET, LIST};
use crate::api::proto::feed::FeedRecord;
use crate::api::validate::MAX_ANSWER;

/// [`MAX_ANSWER`] as the server takes it.
#[expect(clippy::cast_possible_wrap, reason = "a few MiB")]
const MAX_BYTES: i64 = MAX_ANSWER as i64;

/// Returns the row of the one record that has a key, if there is one.
fn only(mut rows: Vec<Row>) -> Result<Option<Row>, Failure> {
    let row = rows.pop();
    if rows.is_empty() { Ok(row) } else { Err(Failure::Unreadable("several have one key".to_owned())) }
}

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
            let page = rows::feeds(user_id, &rows).map_err(|error| Failure::unreadable(&error))?;
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
            let row = only(ready.link.client().query(&ready.statements[GET], &[&user_id]).await?)?;
            let profile = row.map(|row| rows::profile(user_id, &row)).transpose();
            profile.map_err(|error| Failure::unreadable(&error))
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
            let row = only(ready.link.client().query(&ready.statements[GET], &[&topic_id]).await?)?;
            let topic = row.map(|row| rows::topic(topic_id, &row)).transpose();
            topic.map_err(|error| Failure::unreadable(&error))
        })
        .await
    }

    async fn list(&self, after: i64, size: u32) -> Result<TopicPage, StoreError> {
        self.read(move |ready| async move {
            let limit = i64::from(size) + 1;
            let rows = ready.link.client().query(&ready.statements[LIST], &[&after, &limit]).await?;
            rows::topics(size, &rows).map_err(|error| Failure::unreadable(&error))
        })
        .await
    }
}
