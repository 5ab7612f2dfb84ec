//! Answers as a client receives them: the messages of [`super::proto`], but texts stay where they came in, and so do
//! messages that are only passed on.

#![allow(missing_docs, reason = "the fields are those of the .proto files")]

use bytes::{Buf as _, Bytes};
use prost::encoding::{DecodeContext, decode_key, skip_field};
use prost::{DecodeError, Message};

use super::proto::{feed, profile, topic};

/// Most fields of an answer: the items of a page ([`super::validate::MAX_SIZE`]), and a few of its own. An item may be two bytes on the wire, and takes a
/// hundred in memory.
const MAX_FIELDS: usize = 1024;

/// What an answer can be received as.
pub trait Received: Message + Default {
    /// Returns true if also that is right which decoding does not check: that texts are UTF-8, and that messages that
    /// are passed on can be decoded.
    fn is_sound(&self) -> bool {
        true
    }
}

/// Decodes an answer.
///
/// # Errors
/// What is wrong with it, for logs: it cannot be decoded, is not sound, or has more fields than a whole page.
pub fn receive<A: Received>(message: &Bytes) -> Result<A, String> {
    // shorter ones cannot have so many
    if message.len() > 2 * MAX_FIELDS && fields(message.clone()).map_err(|e| e.to_string())? > MAX_FIELDS {
        return Err(format!("it has more than {MAX_FIELDS} fields"));
    }
    let answer = A::decode(message.clone()).map_err(|e| e.to_string())?;
    if !answer.is_sound() {
        return Err("a text is not UTF-8, or a message in it is malformed".to_owned());
    }
    Ok(answer)
}

/// Returns how many fields a message has, repeated ones as often as they occur.
fn fields(mut message: Bytes) -> Result<usize, DecodeError> {
    let mut count = 0;
    while message.has_remaining() {
        let (tag, wire_type) = decode_key(&mut message)?;
        skip_field(wire_type, tag, &mut message, DecodeContext::default())?;
        count += 1;
    }
    Ok(count)
}

impl Received for feed::OkResponse {}
impl Received for feed::DeleteFeedResponse {}
impl Received for profile::OkResponse {}
impl Received for topic::OkResponse {}
impl Received for topic::ListTopicsResponse {}

/// `feed.FeedRecord`.
#[derive(Clone, PartialEq, Message)]
pub struct Feed {
    #[prost(int64, tag = "1")]
    pub id: i64,
    #[prost(int64, tag = "2")]
    pub user_id: i64,
    #[prost(bytes = "bytes", tag = "3")]
    pub content: Bytes,
}

/// `feed.GetFeedsResponse`.
#[derive(Clone, PartialEq, Message)]
pub struct Feeds {
    #[prost(message, repeated, tag = "1")]
    pub feeds: Vec<Feed>,
    #[prost(bool, tag = "2")]
    pub shortened: bool,
}

/// `profile.GetProfileResponse`.
#[derive(Clone, PartialEq, Message)]
pub struct Profile {
    #[prost(int64, tag = "1")]
    pub user_id: i64,
    #[prost(bytes = "bytes", tag = "2")]
    pub name: Bytes,
    #[prost(bytes = "bytes", tag = "3")]
    pub company: Bytes,
    #[prost(bytes = "bytes", tag = "4")]
    pub title: Bytes,
    /// Each of them a [`Feed`], encoded.
    #[prost(bytes = "bytes", repeated, tag = "5")]
    pub feeds: Vec<Bytes>,
}

/// `topic.GetTopicResponse`.
#[derive(Clone, PartialEq, Message)]
pub struct Topic {
    #[prost(int64, tag = "1")]
    pub topic_id: i64,
    #[prost(bytes = "bytes", tag = "2")]
    pub subject: Bytes,
    #[prost(bytes = "bytes", tag = "3")]
    pub content: Bytes,
}

/// `topic.ListTopicsResponse`.
#[derive(Clone, PartialEq, Message)]
pub struct Topics {
    #[prost(message, repeated, tag = "1")]
    pub topics: Vec<Summary>,
    #[prost(int64, tag = "2")]
    pub next: i64,
}

/// `topic.TopicSummary`.
#[derive(Clone, PartialEq, Message)]
pub struct Summary {
    #[prost(int64, tag = "1")]
    pub topic_id: i64,
    #[prost(bytes = "bytes", tag = "2")]
    pub subject: Bytes,
}

/// `feed.GetFeedsResponse` for one that passes the feeds on: on the wire a message is the bytes of its encoding.
#[derive(Clone, PartialEq, Message)]
pub struct EncodedFeeds {
    /// Each of them a [`Feed`], encoded.
    #[prost(bytes = "bytes", repeated, tag = "1")]
    pub feeds: Vec<Bytes>,
}

impl Received for Feeds {
    fn is_sound(&self) -> bool {
        self.feeds.iter().all(|feed| is_text(&feed.content))
    }
}

impl Received for EncodedFeeds {
    fn is_sound(&self) -> bool {
        self.feeds.iter().all(is_feed)
    }
}

impl Received for Profile {
    fn is_sound(&self) -> bool {
        [&self.name, &self.company, &self.title].into_iter().all(is_text) && self.feeds.iter().all(is_feed)
    }
}

impl Received for Topic {
    fn is_sound(&self) -> bool {
        is_text(&self.subject) && is_text(&self.content)
    }
}

impl Received for Topics {
    fn is_sound(&self) -> bool {
        self.topics.iter().all(|topic| is_text(&topic.subject))
    }
}

fn is_text(bytes: &Bytes) -> bool {
    std::str::from_utf8(bytes).is_ok()
}

fn is_feed(encoded: &Bytes) -> bool {
    Feed::decode(encoded.clone()).is_ok_and(|feed| is_text(&feed.content))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::validate::{MAX_ANSWER, MAX_SIZE};

    #[test]
    fn what_is_not_utf8_or_no_feed_is_not_sound() {
        let (text, broken) = (Bytes::from_static("é".as_bytes()), Bytes::from_static(b"\xff"));
        for (content, sound) in [(text.clone(), true), (broken.clone(), false)] {
            let feed = Feed { id: 1, user_id: 1, content: content.clone() };
            let encoded = vec![Bytes::from(feed.encode_to_vec())];
            assert_eq!(Feeds { feeds: vec![feed], shortened: false }.is_sound(), sound);
            assert_eq!(EncodedFeeds { feeds: encoded.clone() }.is_sound(), sound);
            assert_eq!(Profile { feeds: encoded, ..Profile::default() }.is_sound(), sound);
            assert_eq!(Profile { title: content.clone(), ..Profile::default() }.is_sound(), sound);
            assert_eq!(Topic { subject: content.clone(), ..Topic::default() }.is_sound(), sound);
            assert_eq!(Topic { content: content.clone(), ..Topic::default() }.is_sound(), sound);
            let topics = vec![Summary { topic_id: 1, subject: content }];
            assert_eq!(Topics { topics, next: 0 }.is_sound(), sound);
        }
        // the end of a varint is missing
        let cut = vec![Bytes::from_static(&[8, 0x80])];
        assert!(!EncodedFeeds { feeds: cut.clone() }.is_sound());
        assert!(!Profile { feeds: cut, ..Profile::default() }.is_sound());
    }

    #[test]
    fn an_answer_has_no_more_items_than_a_page() {
        let items = |count| Bytes::from([10, 0].repeat(count));
        let page = usize::try_from(MAX_SIZE).unwrap();
        assert_eq!(receive::<EncodedFeeds>(&items(page)).unwrap().feeds.len(), page);
        assert_eq!(receive::<Feeds>(&items(page)).unwrap().feeds.len(), page);
        assert_eq!(receive::<Feeds>(&items(MAX_FIELDS)).unwrap().feeds.len(), MAX_FIELDS);
        for count in [MAX_FIELDS + 1, MAX_ANSWER] {
            for error in [
                receive::<Feeds>(&items(count)).map(drop),
                receive::<EncodedFeeds>(&items(count)).map(drop),
                receive::<Topics>(&items(count)).map(drop),
            ] {
                assert_eq!(error.unwrap_err(), "it has more than 1024 fields", "{count}");
            }
        }
        assert!(receive::<Feeds>(&Bytes::from([10, 0x80].repeat(page))).is_err(), "it is cut off");
    }
}
