//! What the rows of an answer say. The statements are prepared with the types of their columns, see
//! `Schema::prepare`, but a column may still hold no value, or text that is not UTF-8: then
//! the answer is an error, and no task of the store ends by it.

use tokio_postgres::{Error, Row};

use super::super::records::{FeedPage, Profile, Topic, TopicPage};
use super::batch::Key;
use crate::api::proto::feed::FeedRecord;
use crate::api::proto::topic::TopicSummary;

/// Returns a page of a user's feeds from rows `id, content, is_rest`, newest first. A row that is the rest says that it and
/// what follows are left out.
pub fn feeds(user_id: i64, rows: &[Row]) -> Result<FeedPage, Error> {
    let mut page = FeedPage::default();
    for row in rows {
        if row.try_get(2)? {
            page.shortened = true;
            break;
        }
        page.feeds.push(FeedRecord { id: row.try_get(0)?, user_id, content: row.try_get(1)? });
    }
    page.feeds.reverse();
    Ok(page)
}

/// Returns a profile from a row `name, company, title`.
pub fn profile(user_id: i64, row: &Row) -> Result<Profile, Error> {
    Ok(Profile { user_id, name: row.try_get(0)?, company: row.try_get(1)?, title: row.try_get(2)? })
}

/// Returns a topic from a row `subject, content`.
pub fn topic(topic_id: i64, row: &Row) -> Result<Topic, Error> {
    Ok(Topic { topic_id, subject: row.try_get(0)?, content: row.try_get(1)? })
}

/// Returns a page of `size` topics from rows `topic_id, subject`.
pub fn topics(size: u32, rows: &[Row]) -> Result<TopicPage, Error> {
    let summary = |row: &Row| Ok(TopicSummary { topic_id: row.try_get(0)?, subject: row.try_get(1)? });
    let topics = rows.iter().map(summary).collect::<Result<_, Error>>()?;
    Ok(TopicPage::of(topics, size))
}

/// Returns the keys of written or deleted records from rows of two numbers, sorted.
pub fn keys(rows: &[Row]) -> Result<Vec<Key>, Error> {
    let key = |row: &Row| Ok((row.try_get(0)?, row.try_get(1)?));
    let mut keys = rows.iter().map(key).collect::<Result<Vec<Key>, Error>>()?;
    keys.sort_unstable();
    Ok(keys)
}
