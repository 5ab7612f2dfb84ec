//! What a request is about: which earlier answers a write makes out of date.

use crate::api::proto::{feed, profile, topic};

/// Records that are read or written together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Subject {
    /// The profile of a user and the lists of their feeds.
    User(i64),
    /// A topic.
    Topic(i64),
    /// The list of all topics.
    Topics,
}

/// What one request is about, at most two subjects.
pub type Subjects = [Option<Subject>; 2];

/// A request message that says what it is about.
pub trait About {
    /// Returns what the request reads or writes. A read is out of date once a write of one of its subjects has been
    /// acknowledged.
    fn about(&self) -> Subjects;
}

macro_rules! about {
    ($($message:ty, $request:ident => $first:expr, $second:expr;)*) => {
        $(impl About for $message {
            fn about(&self) -> Subjects {
                let $request = self;
                [$first, $second]
            }
        })*
    };
}

about! {
    feed::GetFeedsRequest, request => Some(Subject::User(request.user_id)), None;
    feed::FeedRecord, request => Some(Subject::User(request.user_id)), None;
    feed::DeleteFeedRequest, request => Some(Subject::User(request.user_id)), None;
    profile::GetProfileRequest, request => Some(Subject::User(request.user_id)), None;
    profile::PutProfileRequest, request => Some(Subject::User(request.user_id)), None;
    topic::GetTopicRequest, request => Some(Subject::Topic(request.topic_id)), None;
    topic::PutTopicRequest, request => Some(Subject::Topic(request.topic_id)), Some(Subject::Topics);
    topic::ListTopicsRequest, _request => Some(Subject::Topics), None;
}
