//! What stores keep and return. Feeds and the summaries of topics are the messages of the API; a profile and a
//! topic are records of their own, since no message of the API is exactly what is stored.

use crate::api::proto::feed::FeedRecord;
use crate::api::proto::profile::PutProfileRequest;
use crate::api::proto::topic::{PutTopicRequest, TopicSummary};

/// A user's profile, without feeds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    /// The key.
    pub user_id: i64,
    /// The user's name.
    pub name: String,
    /// Where the user works.
    pub company: String,
    /// What the user does there.
    pub title: String,
}

impl From<PutProfileRequest> for Profile {
    fn from(request: PutProfileRequest) -> Self {
        let PutProfileRequest { user_id, name, company, title } = request;
        Self { user_id, name, company, title }
    }
}

/// A topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topic {
    /// The key.
    pub topic_id: i64,
    /// One line, for lists.
    pub subject: String,
    /// The text.
    pub content: String,
}

impl From<PutTopicRequest> for Topic {
    fn from(request: PutTopicRequest) -> Self {
        let PutTopicRequest { topic_id, subject, content } = request;
        Self { topic_id, subject, content }
    }
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

impl TopicPage {
    /// Returns the page of `size` from a list that holds one more if there is more.
    pub(super) fn of(mut topics: Vec<TopicSummary>, size: u32) -> Self {
        let more = topics.len() > size as usize;
        topics.truncate(size as usize);
        let last = topics.last().map_or(0, |topic| topic.topic_id);
        Self { topics, next: if more { last } else { 0 } }
    }
}
