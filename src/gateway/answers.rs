//! The answers of the services as JSON, written straight from the messages: each text is copied once.

use prost::Message as _;

use super::json::{self, Writer};
use super::problem::Problem;
use crate::api::received::{Feed, Feeds, Profile, Topic, Topics};

/// Most bytes of the JSON of an answer without its texts and lists, and of an object in a list without its texts.
const WHOLE: usize = 192;
const ITEM: usize = 128;

/// Returns `{"feeds":[{"id","user_id","content"}]}`.
pub fn feeds(answer: &Feeds) -> Vec<u8> {
    json::object(WHOLE + room(&answer.feeds), |object| write_feeds(object, &answer.feeds))
}

/// Returns `{"user_id","name","company","title","feeds":[{"id","user_id","content"}]}`.
pub fn profile(answer: &Profile) -> Result<Vec<u8>, Problem> {
    let feeds = answer.feeds.iter().map(|feed| Feed::decode(feed.clone()));
    let feeds: Vec<_> = feeds.collect::<Result<_, _>>().map_err(|_| Problem::malformed("profile"))?;
    let texts = answer.name.len() + answer.company.len() + answer.title.len();
    Ok(json::object(WHOLE + texts + room(&feeds), |object| {
        object.integer("user_id", answer.user_id);
        object.text("name", &answer.name);
        object.text("company", &answer.company);
        object.text("title", &answer.title);
        write_feeds(object, &feeds);
    }))
}

/// Returns `{"topic_id","subject","content"}`.
pub fn topic(answer: &Topic) -> Vec<u8> {
    json::object(WHOLE + answer.subject.len() + answer.content.len(), |object| {
        object.integer("topic_id", answer.topic_id);
        object.text("subject", &answer.subject);
        object.text("content", &answer.content);
    })
}

/// Returns `{"topics":[{"topic_id","subject"}],"next"}`.
pub fn topics(answer: &Topics) -> Vec<u8> {
    let room: usize = answer.topics.iter().map(|topic| ITEM + topic.subject.len()).sum();
    json::object(WHOLE + room, |object| {
        object.objects("topics", &answer.topics, |object, topic| {
            object.integer("topic_id", topic.topic_id);
            object.text("subject", &topic.subject);
        });
        object.optional_integer("next", Some(answer.next).filter(|next| *next > 0));
    })
}

fn write_feeds(object: &mut Writer, feeds: &[Feed]) {
    object.objects("feeds", feeds, |object, feed| {
        object.integer("id", feed.id);
        object.integer("user_id", feed.user_id);
        object.text("content", &feed.content);
    });
}

/// Returns the bytes of the JSON of feeds, if nothing in them has to be escaped.
fn room(feeds: &[Feed]) -> usize {
    feeds.iter().map(|feed| ITEM + feed.content.len()).sum()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use prost::Message;
    use serde_json::{Value, json};

    use super::*;
    use crate::api::proto;

    const TEXT: &str = "a \" \u{1} é";

    /// Decodes what the generated type encodes.
    fn read<T: Message + Default>(sent: &impl Message) -> T {
        T::decode(Bytes::from(sent.encode_to_vec())).unwrap()
    }

    fn parse(written: &[u8]) -> Value {
        serde_json::from_slice(written).unwrap()
    }

    fn record(id: i64, content: &str) -> proto::feed::FeedRecord {
        proto::feed::FeedRecord { id, user_id: i64::MIN, content: content.to_owned() }
    }

    #[test]
    fn what_the_services_send_is_what_callers_get() {
        let feeds: Vec<_> = (1..=3).map(|id| record(id, TEXT)).collect();
        let shown: Vec<_> =
            (1..=3).map(|id| json!({"id": id, "user_id": i64::MIN, "content": TEXT})).collect();
        let page = proto::feed::GetFeedsResponse { feeds: feeds.clone(), shortened: true };
        let answer: Feeds = read(&page);
        assert!(answer.shortened);
        assert_eq!(parse(&super::feeds(&answer)), json!({"feeds": shown}));

        let found = proto::profile::GetProfileResponse {
            user_id: 7,
            name: TEXT.to_owned(),
            company: "c".to_owned(),
            title: String::new(),
            feeds: feeds.iter().map(|feed| feed.encode_to_vec().into()).collect(),
        };
        let want = json!({"user_id": 7, "name": TEXT, "company": "c", "title": "", "feeds": shown});
        assert_eq!(parse(&profile(&read(&found)).unwrap()), want);

        let found =
            proto::topic::GetTopicResponse { topic_id: 1, subject: TEXT.to_owned(), content: "c".to_owned() };
        let want = json!({"topic_id": 1, "subject": TEXT, "content": "c"});
        assert_eq!(parse(&topic(&read(&found))), want);

        let summary = proto::topic::TopicSummary { topic_id: 2, subject: TEXT.to_owned() };
        for (next, shown) in [(0, None), (2, Some(2))] {
            let list = proto::topic::ListTopicsResponse { topics: vec![summary.clone()], next };
            let want = json!({"topics": [{"topic_id": 2, "subject": TEXT}], "next": shown});
            assert_eq!(parse(&topics(&read(&list))), want);
        }
    }

    /// A buffer that grows is copied.
    #[test]
    fn the_room_is_enough_and_not_far_too_much() {
        let content = "x".repeat(100);
        let feed = Feed { id: i64::MIN, user_id: i64::MIN, content: content.clone().into() };
        let written = super::feeds(&Feeds { feeds: vec![feed; 20], shortened: false });
        let wanted = WHOLE + 20 * (ITEM + content.len());
        assert_eq!(written.capacity(), wanted);
        assert!(written.len() > wanted * 3 / 4, "{} of {wanted}", written.len());
        let texts = [String::new(), String::new()].map(Bytes::from);
        let [name, company] = texts.clone();
        let [title, subject] = texts;
        let ends = [
            profile(&Profile { user_id: i64::MIN, name, company, title, feeds: Vec::new() }).unwrap(),
            topic(&Topic { topic_id: i64::MIN, subject: subject.clone(), content: subject }),
            topics(&Topics { topics: Vec::new(), next: i64::MAX }),
        ];
        assert!(ends.iter().all(|end| end.capacity() == WHOLE));
    }
}
