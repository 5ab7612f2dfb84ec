//! What callers of the gateway write: JSON bodies and queries.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use microservice_app::api::proto::feed::{FeedRecord, GetFeedsRequest};
use microservice_app::api::validate::{DEFAULT_SIZE, MAX_CONTENT, MAX_SIZE, Validate as _};
use microservice_app::config::{Role, Settings};
use microservice_app::context::Context;
use microservice_app::gateway::Problem;
use microservice_app::gateway::request::{self, Accepted, Fields};
use microservice_app::server::UnsentLimit;
use microservice_app::server::admission::Admission;
use microservice_app::server::metrics::Metrics;
use microservice_app::server::pause::Pauses;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::app::{answer_of, block_on};

/// A body of `PUT /api/feed/create_feed`.
pub fn json_body(data: &[u8]) {
    let Some(feed) = feed_of(data) else { return };
    assert!(feed.content.len() <= MAX_CONTENT && feed.id > 0 && feed.user_id > 0, "{feed:?}");
    // what another reader of JSON sees in it
    let seen: Value = serde_json::from_slice(data).expect("what is accepted is JSON");
    let id = |name: &str| seen[name].as_i64().map_or_else(|| seen[name].as_f64(), |whole| Some(whole as f64));
    assert_eq!(seen.as_object().map(serde_json::Map::len), Some(3), "{seen}");
    assert_eq!(seen["content"], feed.content.as_str());
    assert_eq!((id("id"), id("user_id")), (Some(feed.id as f64), Some(feed.user_id as f64)), "{seen}");
    let again = json!({"id": feed.id, "user_id": feed.user_id, "content": feed.content}).to_string();
    assert_eq!(feed_of(again.as_bytes()), Some(feed));
}

/// Reads a feed as its route does. `None` if it is refused.
fn feed_of(data: &[u8]) -> Option<FeedRecord> {
    let read = block_on(async {
        let mut accepted = accepted();
        // in two parts, as a socket may bring it
        let (one, two) = data.split_at(data.len() / 2);
        let parts = [one, two].map(|part| Ok::<_, warp::Error>(Bytes::copy_from_slice(part)));
        let parts = futures_util::stream::iter(parts);
        request::body(parts, Duration::from_secs(1), &mut accepted).await.map(|(fields, _)| fields)
    });
    let feed = read.and_then(|mut fields: Fields| {
        let feed = FeedRecord {
            id: fields.integer("id")?,
            user_id: fields.integer("user_id")?,
            content: fields.text("content")?,
        };
        fields.finish()?;
        feed.validate().map_err(Problem::from)?;
        Ok(feed)
    });
    feed.map_err(check_refusal).ok()
}

/// A query of `GET /api/feed/get_feeds`.
pub fn query(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Some(page) = page_of(text) else { return };
    assert!(page.user_id > 0 && page.before >= 0 && (0..=MAX_SIZE).contains(&page.size), "{page:?}");
    let again = format!("user_id={}&size={}&before={}", page.user_id, page.size, page.before);
    assert_eq!(page_of(&again), Some(page), "{text:?}");
}

fn page_of(text: &str) -> Option<GetFeedsRequest> {
    let page = request::query(text).and_then(|mut fields| {
        let page = GetFeedsRequest {
            user_id: fields.integer("user_id")?,
            size: fields.optional_integer("size")?.unwrap_or(DEFAULT_SIZE),
            before: fields.optional_integer("before")?.unwrap_or(0),
        };
        fields.finish()?;
        page.validate().map_err(Problem::from)?;
        Ok(page)
    });
    page.map_err(check_refusal).ok()
}

/// Checks that a refusal is a problem whose caller learns which field is wrong, in an answer of bounded length.
fn check_refusal(problem: Problem) {
    let (_, body) = answer_of(problem);
    let status = body["status"].as_u64().expect("a status");
    assert!(matches!(status, 400 | 408 | 413), "{body}");
    let (field, detail) = (body["field"].as_str(), body["detail"].as_str().expect("a detail"));
    assert!(!detail.is_empty() && detail.len() < 1024, "{body}");
    // a name that the caller made up may be empty
    assert!(status != 400 || field.is_some_and(|field| field.len() <= 4 * 64), "{body}");
}

fn accepted() -> Accepted {
    static ADMISSION: OnceLock<Arc<Admission>> = OnceLock::new();
    static PAUSES: OnceLock<Arc<Pauses>> = OnceLock::new();
    let admission = ADMISSION.get_or_init(|| {
        let metrics = Metrics::register(&prometheus::Registry::new()).expect("metrics");
        let settings = Settings::for_role(Role::Apigateway);
        Admission::http("apigateway", &settings.http, UnsentLimit::new(1 << 20), &metrics)
    });
    Accepted {
        context: Context::new(Instant::now()),
        time_limit: Duration::from_secs(1),
        length: None,
        expects: false,
        head: 0,
        peer: None,
        admission: admission.clone(),
        pauses: PAUSES.get_or_init(Pauses::watch).clone(),
        caller: Arc::default(),
        owner: None,
        needs_permit: true,
    }
}
