//! What a service answers: a message that may hold anything, frames that may be any, and bytes that may not be HTTP/2 at all.

use std::io;
use std::time::Duration;

use microservice_app::api::proto::{feed, profile, topic};
use microservice_app::api::received::{Feeds, Profile, Topic, Topics};
use microservice_app::api::rpc::Rpc;
use microservice_app::client::metrics::Metrics;
use microservice_app::client::{Client, Connect, Connector, Reply, Target};
use microservice_app::config;
use microservice_app::context::Context;
use microservice_app::gateway::{Problem, answers};
use microservice_app::registry::{Instance, Local, Registry as _};
use microservice_app::tls::Validity;
use prost::Message;
use prost::encoding::{DecodeContext, decode_key, decode_varint, encode_key, encode_varint, skip_field};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::runtime::Builder;
use tokio::time::Instant;

use super::app::{answer_of, watch_panics};
use super::server::{PREFACE, SETTINGS, frame, frames};

/// How long a call may take.
const DEADLINE: Duration = Duration::from_secs(2);
/// A message below this length has fewer fields than any answer may have.
const SHORT: usize = 2048;
const ADDR: &str = "nowhere:1";

/// What is asked.
#[derive(Clone, Copy)]
enum Question {
    Feeds,
    Profile,
    Topic,
    Topics,
    Delete,
}

const QUESTIONS: [Question; 5] =
    [Question::Feeds, Question::Profile, Question::Topic, Question::Topics, Question::Delete];

/// What the input is.
#[derive(Clone)]
enum Script {
    /// The message of an answer that is right otherwise.
    Message(Vec<u8>),
    /// The bytes that follow the question, then the end.
    Answer(Vec<u8>),
    /// The bytes that follow the opening of the connection, then the end.
    Everything(Vec<u8>),
}

/// A first byte for what is asked and what the rest is; frames are given as in `http2_service`. The call has stream 3, and the
/// health watch stream 1. Time is virtual.
pub fn service_answer(data: &[u8]) {
    let Some((kind, data)) = data.split_first() else { return };
    let question = QUESTIONS[usize::from(*kind) % QUESTIONS.len()];
    let script = match kind >> 5 {
        0..=3 => Script::Message(data.to_vec()),
        4 => Script::Answer(frames(data)),
        5 => Script::Answer(data.to_vec()),
        6 => Script::Everything(frames(data)),
        _ => Script::Everything(data.to_vec()),
    };
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build();
    let (answer, took) = watch_panics(|| {
        runtime.expect("a runtime").block_on(async {
            let begun = Instant::now();
            (ask(question, script.clone()).await, begun.elapsed())
        })
    });
    assert!(took <= DEADLINE + Duration::from_millis(10), "{took:?}");
    let expected = match &script {
        Script::Message(message) => Some(expected(question, message)),
        Script::Answer(_) | Script::Everything(_) => None,
    };
    match answer {
        Ok(text) => {
            let shown: Value = serde_json::from_slice(&text).expect("an answer is JSON");
            match expected {
                // the generated types also look at a text that a later one overwrites
                Some(None) => {
                    let last = last_values(data, lists(question));
                    assert_eq!(Some(shown), last.and_then(|last| self::expected(question, &last)));
                }
                Some(expected) => assert_eq!(Some(shown), expected),
                None => {}
            }
        }
        Err(problem) => {
            let refused = matches!(expected, Some(None)) || data.len() >= SHORT || expected.is_none();
            assert!(refused, "{problem:?} for a message that can be decoded");
            check_problem(problem, expected.is_some());
        }
    }
}

/// Asks a service that answers so.
async fn ask(question: Question, script: Script) -> Result<Vec<u8>, Problem> {
    let rpc = rpc(question);
    let name = rpc.service();
    let registry = Local::default();
    let _registered = registry.register(Instance::bare(name, ADDR));
    let metrics = Metrics::register(&prometheus::Registry::new()).expect("metrics");
    let settings = config::Client { deadline: DEADLINE, ..config::Client::default() };
    let connector = Connector::new(Scripted(script));
    let client = Client::new(&[name], &settings, "/services/", &registry.view(), &metrics, &connector);
    let context = Context::new(Instant::now() + DEADLINE);
    Ok(match question {
        Question::Feeds => {
            let asked = feed::GetFeedsRequest { user_id: 1, size: 20, before: 0 };
            let reply: Reply<Feeds> = client.call(rpc, &asked, &context).await?;
            answers::feeds(&reply.message)
        }
        Question::Profile => {
            let asked = profile::GetProfileRequest { user_id: 1 };
            let reply: Reply<Profile> = client.call(rpc, &asked, &context).await?;
            answers::profile(&reply.message)?
        }
        Question::Topic => {
            let asked = topic::GetTopicRequest { topic_id: 1 };
            let reply: Reply<Topic> = client.call(rpc, &asked, &context).await?;
            answers::topic(&reply.message)
        }
        Question::Topics => {
            let asked = topic::ListTopicsRequest { after: 0, size: 20 };
            let reply: Reply<Topics> = client.call(rpc, &asked, &context).await?;
            answers::topics(&reply.message)
        }
        Question::Delete => {
            let asked = feed::DeleteFeedRequest { user_id: 1, id: 1 };
            let reply: Reply<feed::DeleteFeedResponse> = client.call(rpc, &asked, &context).await?;
            json!({"deleted": reply.message.deleted}).to_string().into_bytes()
        }
    })
}

const fn rpc(question: Question) -> Rpc {
    match question {
        Question::Feeds => Rpc::GetFeeds,
        Question::Profile => Rpc::GetProfile,
        Question::Topic => Rpc::GetTopic,
        Question::Topics => Rpc::ListTopics,
        Question::Delete => Rpc::DeleteFeed,
    }
}

/// Returns what the generated types see in a message; `None` if they see none.
fn expected(question: Question, message: &[u8]) -> Option<Value> {
    let record =
        |feed: feed::FeedRecord| json!({"id": feed.id, "user_id": feed.user_id, "content": feed.content});
    Some(match question {
        Question::Feeds => {
            let page = decoded::<feed::GetFeedsResponse>(message)?;
            json!({"feeds": page.feeds.into_iter().map(record).collect::<Vec<_>>()})
        }
        Question::Profile => {
            let found = decoded::<profile::GetProfileResponse>(message)?;
            let feeds = found.feeds.iter().map(|feed| decoded(feed).map(record));
            json!({
                "user_id": found.user_id, "name": found.name, "company": found.company, "title": found.title,
                "feeds": feeds.collect::<Option<Vec<_>>>()?,
            })
        }
        Question::Topic => {
            let found = decoded::<topic::GetTopicResponse>(message)?;
            json!({"topic_id": found.topic_id, "subject": found.subject, "content": found.content})
        }
        Question::Topics => {
            let page = decoded::<topic::ListTopicsResponse>(message)?;
            let topics = page.topics.iter();
            let topics = topics.map(|topic| json!({"topic_id": topic.topic_id, "subject": topic.subject}));
            json!({"topics": topics.collect::<Vec<_>>(), "next": Some(page.next).filter(|next| *next > 0)})
        }
        Question::Delete => {
            json!({"deleted": decoded::<feed::DeleteFeedResponse>(message)?.deleted})
        }
    })
}

/// Returns the number of the field whose values are messages, and make a list.
const fn lists(question: Question) -> Option<u32> {
    match question {
        Question::Feeds | Question::Topics => Some(1),
        Question::Profile => Some(5),
        Question::Topic | Question::Delete => None,
    }
}

/// Returns a message without what a later value of the same field overwrites, also in the messages of its list; `None` if it
/// cannot be read.
fn last_values(mut message: &[u8], list: Option<u32>) -> Option<Vec<u8>> {
    let mut fields = Vec::new();
    while !message.is_empty() {
        let (before, (number, kind)) = (message, decode_key(&mut message).ok()?);
        let mut item = message;
        skip_field(kind, number, &mut message, DecodeContext::default()).ok()?;
        let mut field = before[..before.len() - message.len()].to_vec();
        if Some(number) == list {
            item = &item[..item.len() - message.len()];
            decode_varint(&mut item).ok()?;
            let item = last_values(item, None)?;
            field.clear();
            encode_key(number, kind, &mut field);
            encode_varint(item.len() as u64, &mut field);
            field.extend(item);
        } else {
            fields.retain(|(known, _)| *known != number);
        }
        fields.push((number, field));
    }
    Some(fields.into_iter().flat_map(|(_, field)| field).collect())
}

fn decoded<T: Message + Default>(message: &[u8]) -> Option<T> {
    T::decode(message).ok()
}

/// Checks that a failure is a problem in an answer of bounded length, and that a malformed message is the service's fault.
fn check_problem(problem: Problem, malformed: bool) {
    let (_, body) = answer_of(problem);
    let status = body["status"].as_u64().expect("a status");
    assert!(matches!(status, 400 | 404 | 429 | 500 | 503 | 504) && (!malformed || status == 503), "{body}");
    // a text of the service is in a header
    assert!(body["detail"].as_str().is_some_and(|detail| detail.len() <= 64 * 1024), "{body}");
}

/// Connects to the service of a script, over memory.
struct Scripted(Script);

impl Connect for Scripted {
    type Stream = DuplexStream;

    async fn connect(&self, _: Target<'_>) -> io::Result<(DuplexStream, Option<Validity>)> {
        let (here, there) = tokio::io::duplex(64 * 1024);
        tokio::spawn(serve(there, self.0.clone()));
        Ok((here, None))
    }
}

/// Plays the service until the client has gone, or the script is at its end.
async fn serve(mut stream: DuplexStream, script: Script) -> io::Result<()> {
    stream.read_exact(&mut [0; PREFACE.len()]).await?;
    stream.write_all(SETTINGS).await?;
    if let Script::Everything(bytes) = script {
        return end(stream, &bytes).await;
    }
    let mut opened = 0;
    let mut head = [0; 9];
    loop {
        stream.read_exact(&mut head).await?;
        let [high, mid, low, kind, flags, id @ ..] = head;
        let mut body = vec![0; u32::from_be_bytes([0, high, mid, low]) as usize];
        stream.read_exact(&mut body).await?;
        match (kind, flags) {
            (4, 0) => stream.write_all(&frame(4, 1, [0; 4], &[])).await?,
            (6, 0) => stream.write_all(&frame(6, 1, [0; 4], &body)).await?,
            (1, _) => {
                opened += 1;
                match &script {
                    _ if opened == 1 => {
                        // it serves, and the stream stays open
                        let serves = frame(0, 0, id, &[0, 0, 0, 0, 2, 8, 1]);
                        stream.write_all(&[begin(id), serves].concat()).await?;
                    }
                    Script::Message(message) => {
                        let length = u32::try_from(message.len()).expect("a short message").to_be_bytes();
                        let body = [&[0], length.as_slice(), message].concat();
                        let parts = body.chunks(16 * 1024).map(|part| frame(0, 0, id, part));
                        let done = frame(1, 5, id, &field("grpc-status", "0"));
                        let parts: Vec<_> = [begin(id)].into_iter().chain(parts).chain([done]).collect();
                        stream.write_all(&parts.concat()).await?;
                    }
                    Script::Answer(bytes) | Script::Everything(bytes) => return end(stream, bytes).await,
                }
            }
            _ => {}
        }
    }
}

/// Sends the last bytes, then the end; what still comes is read.
async fn end(mut stream: DuplexStream, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes).await?;
    stream.shutdown().await?;
    while stream.read(&mut [0; 1024]).await? > 0 {}
    Ok(())
}

/// The head of an answer: `:status: 200` and its type.
fn begin(id: [u8; 4]) -> Vec<u8> {
    frame(1, 4, id, &[&[0x88], field("content-type", "application/grpc").as_slice()].concat())
}

/// A field of a head, as it is without a table.
fn field(name: &str, value: &str) -> Vec<u8> {
    let length = |text: &str| [u8::try_from(text.len()).expect("a short text")];
    [&[0], &length(name)[..], name.as_bytes(), &length(value), value.as_bytes()].concat()
}
