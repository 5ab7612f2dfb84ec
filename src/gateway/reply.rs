//! The only place that builds bodies and statuses.

use std::borrow::Cow;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use serde::Serialize;
use warp::reply::Response;

use super::admit::retry_after;
use crate::api::error::{Code, Error};
use crate::api::headers::{DEGRADED, INSTANCE, REQUEST_ID, TRACE_ID};
use crate::context::Context;

/// Seconds after which a refused caller may try again.
const RETRY_AFTER: u32 = 1;
/// The kind of a refusal for overload.
const OVERLOADED: &str = "overloaded";
const JSON: HeaderValue = HeaderValue::from_static("application/json");
const PROBLEM: HeaderValue = HeaderValue::from_static("application/problem+json");

/// Returns 200 with a body indented by four spaces, as the original's: scripts depend on the bytes.
pub fn json<T: Serialize>(body: &T) -> Response {
    let mut response = Response::new(indented(body).into());
    response.headers_mut().insert(header::CONTENT_TYPE, JSON);
    response
}

/// Returns 200 with `{}`.
pub fn empty() -> Response {
    let mut response = Response::new("{}".into());
    response.headers_mut().insert(header::CONTENT_TYPE, JSON);
    response
}

/// Copies what a service says of its answer: which instance gave it, and what it lacks.
pub fn mark(mut response: Response, metadata: &HeaderMap) -> Response {
    for name in [INSTANCE, DEGRADED, header::AGE] {
        if let Some(value) = metadata.get(&name) {
            response.headers_mut().insert(name, value.clone());
        }
    }
    response
}

fn indented<T: Serialize>(body: &T) -> Vec<u8> {
    let mut out = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    // plain structs of strings and numbers always serialize
    let _ = body.serialize(&mut serde_json::Serializer::with_formatter(&mut out, formatter));
    out
}

/// A failure as RFC 9457 writes it: `{"type","title","status","detail","trace_id"}` and, for input
/// errors, `"field"`.
#[derive(Clone, Debug)]
pub struct Problem {
    status: StatusCode,
    /// The last part of `type`, `urn:microservice-app:problem:<kind>`.
    kind: &'static str,
    detail: Cow<'static, str>,
    field: Option<Cow<'static, str>>,
    allow: Option<HeaderValue>,
    /// Seconds, for 429 and 503.
    retry_after: u32,
}

#[derive(Serialize)]
struct Body<'a> {
    r#type: String,
    title: &'a str,
    status: u16,
    detail: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<&'a str>,
    trace_id: String,
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        Self {
            status: error.code.http(),
            kind: error.code.name(),
            detail: error.message,
            field: error.field,
            allow: None,
            retry_after: RETRY_AFTER,
        }
    }
}

impl Problem {
    fn new(status: StatusCode, kind: &'static str, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { status, kind, detail: detail.into(), field: None, allow: None, retry_after: RETRY_AFTER }
    }

    /// 404 for a path that no route has.
    pub fn unknown_route() -> Self {
        Self::new(StatusCode::NOT_FOUND, "unknown_route", "there is no such route")
    }

    /// 405 with `Allow`.
    pub fn method_not_allowed(allowed: &Method) -> Self {
        let allow = if allowed == Method::GET { "GET, HEAD" } else { allowed.as_str() };
        let mut problem = Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "method_not_allowed",
            format!("this route takes {allow}"),
        );
        problem.allow = HeaderValue::from_str(allow).ok();
        problem
    }

    /// 429 for a client that sends too many requests; it may send the next one after `wait`.
    pub fn too_many_requests(wait: Duration) -> Self {
        let detail = "this client sends too many requests";
        let mut problem = Self::new(StatusCode::TOO_MANY_REQUESTS, "too_many_requests", detail);
        problem.retry_after = retry_after(wait);
        problem
    }

    /// 503 for a request that was not begun because too many are in progress.
    pub fn overloaded() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, OVERLOADED, "too many requests are in progress")
    }

    /// 408 for a body that did not arrive in time.
    pub fn slow_body() -> Self {
        let detail = "the request body did not arrive in time";
        Self::new(StatusCode::REQUEST_TIMEOUT, "slow_request", detail)
    }

    /// 413 for a body over `limit` bytes.
    pub fn body_too_large(limit: usize) -> Self {
        let detail = format!("the request body is over {limit} bytes");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", detail)
    }

    /// 414 for a path and query over `limit` bytes.
    pub fn uri_too_long(limit: usize) -> Self {
        let detail = format!("the path and query are over {limit} bytes");
        Self::new(StatusCode::URI_TOO_LONG, "uri_too_long", detail)
    }

    /// Returns true if the request was not begun for want of a place.
    pub fn is_overload(&self) -> bool {
        self.kind == OVERLOADED
    }

    /// Returns the response; [`complete`] writes its body, which names the trace.
    pub fn into_response(self) -> Response {
        let mut response = Response::default();
        *response.status_mut() = self.status;
        response.extensions_mut().insert(self);
        response
    }

    fn write(self, response: &mut Response, context: &Context) {
        let body = Body {
            r#type: format!("urn:microservice-app:problem:{}", self.kind),
            title: self.status.canonical_reason().unwrap_or("Error"),
            status: self.status.as_u16(),
            detail: &self.detail,
            field: self.field.as_deref(),
            trace_id: context.trace.id().to_string(),
        };
        *response.body_mut() = indented(&body).into();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, PROBLEM);
        if let Some(allow) = self.allow {
            headers.insert(header::ALLOW, allow);
        }
        match self.status {
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => {
                headers.insert(header::RETRY_AFTER, self.retry_after.into());
            }
            // the rest of the body is still on its way: nothing after it can be understood
            StatusCode::REQUEST_TIMEOUT | StatusCode::PAYLOAD_TOO_LARGE => {
                headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            _ => {}
        }
    }
}

/// Writes what every answer carries, and the body of a problem.
pub fn complete(response: &mut Response, context: &Context) {
    if let Some(problem) = response.extensions_mut().remove::<Problem>() {
        problem.write(response, context);
    }
    let headers = response.headers_mut();
    headers.insert(REQUEST_ID, context.request_id.clone());
    headers.insert(TRACE_ID, context.trace.id().into());
}

/// Returns the error for an answer of a service that cannot be understood.
pub fn garbled(service: &str) -> Problem {
    Error::new(Code::Unavailable, format!("{service} gave a garbled answer")).into()
}
