//! Builds the answers to requests that succeed; failures are in [`super::problem`].

use std::time::Duration;

use http::{HeaderMap, HeaderValue, header};
use serde::Serialize;
use warp::reply::Response;

use crate::api::headers::{DEGRADED, INSTANCE, REQUEST_ID, TRACE_ID};
use crate::context::Context;

const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// Returns 200 with a JSON body.
pub fn json(body: Vec<u8>) -> Response {
    let mut response = Response::new(body.into());
    response.headers_mut().insert(header::CONTENT_TYPE, JSON);
    response
}

/// Returns what browsers are told about HTTPS (RFC 6797); nothing for a time of zero.
pub fn hsts(time: Duration) -> Option<HeaderValue> {
    (!time.is_zero()).then(|| HeaderValue::try_from(format!("max-age={}", time.as_secs())).ok()).flatten()
}

/// Returns 200 with `{}`.
pub fn empty() -> Response {
    let mut response = Response::new("{}".into());
    response.headers_mut().insert(header::CONTENT_TYPE, JSON);
    response
}

/// Returns 200 without content: the answer to OPTIONS.
pub fn methods(allow: &'static str) -> Response {
    let mut response = Response::default();
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allow));
    response
}

/// Copies what a service says about its answer: which instance gave it, and how it is degraded.
pub fn mark(mut response: Response, metadata: &HeaderMap) -> Response {
    for name in [INSTANCE, DEGRADED, header::AGE] {
        if let Some(value) = metadata.get(&name) {
            response.headers_mut().insert(name, value.clone());
        }
    }
    response
}

/// Writes what every answer carries: the ids of the request and its trace, and that no cache may keep it, unless it says
/// otherwise.
pub fn identify(response: &mut Response, context: &Context) {
    let headers = response.headers_mut();
    headers.entry(header::CACHE_CONTROL).or_insert(NO_STORE);
    headers.insert(REQUEST_ID, context.request_id.clone());
    headers.insert(TRACE_ID, context.trace.id().into());
}

/// Returns JSON indented by four spaces, as the original system writes it: scripts depend on the bytes.
pub fn indented<T: Serialize>(body: &T) -> Vec<u8> {
    let mut out = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    // plain structs of strings and numbers always serialize
    let _ = body.serialize(&mut serde_json::Serializer::with_formatter(&mut out, formatter));
    out
}
