//! Failures as HTTP answers, in the form of RFC 9457.

use std::borrow::Cow;
use std::time::Duration;

use http::{HeaderValue, Method, StatusCode, header};
use serde::Serialize;
use warp::reply::Response;

use super::auth::refusal::Refusal as NoAccess;
use super::kind::{self, Kind};
use super::reply::indented;
use crate::api::error::{Code, Error};
use crate::context::Context;
use crate::server::admission::Refusal;
use crate::server::strict::Malformed;

/// `Retry-After` where nothing else is known, seconds.
const RETRY_AFTER: u32 = 1;
const PROBLEM: HeaderValue = HeaderValue::from_static("application/problem+json");

/// A failure with a body `{"type","title","status","detail","trace_id"}` and, for input errors, `"field"`.
#[derive(Clone, Debug)]
pub struct Problem {
    kind: &'static Kind,
    detail: Cow<'static, str>,
    field: Option<Cow<'static, str>>,
    allow: Option<HeaderValue>,
    /// What a token must be, for 401 and 403.
    challenge: Option<Box<HeaderValue>>,
    /// Seconds, for 429 and 503.
    retry_after: u32,
    overload: bool,
    /// True if the connection has to be closed: what follows might be read as the next request.
    close: bool,
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
        let problem = Self::new(error.code.into(), error.message);
        Self { field: error.field, ..problem }
    }
}

impl From<Malformed> for Problem {
    fn from(malformed: Malformed) -> Self {
        let kind = match malformed.status {
            StatusCode::MISDIRECTED_REQUEST => &kind::MISDIRECTED_REQUEST,
            _ => &kind::BAD_REQUEST,
        };
        let problem = Self::new(kind, malformed.detail);
        Self { field: Some(Cow::Borrowed(malformed.field)), close: true, ..problem }
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Overloaded(_) => {
                let detail = "too many requests are in progress";
                let problem = Self::new(&kind::OVERLOADED, detail);
                Self { overload: true, ..problem }
            }
            Refusal::RateLimited { retry_after } => {
                let detail = "this client sends too many requests";
                let problem = Self::new(&kind::TOO_MANY_REQUESTS, detail);
                Self { retry_after: whole_seconds(retry_after), ..problem }
            }
            Refusal::DeadlinePassed => Error::new(Code::Timeout, "the deadline has passed").into(),
        }
    }
}

impl Problem {
    fn new(kind: &'static Kind, detail: impl Into<Cow<'static, str>>) -> Self {
        let detail = detail.into();
        let (field, allow, challenge, retry_after) = (None, None, None, RETRY_AFTER);
        Self { kind, detail, field, allow, challenge, retry_after, overload: false, close: false }
    }

    /// 404 for a path that is in no route.
    pub fn unknown_route() -> Self {
        Self::new(&kind::UNKNOWN_ROUTE, "there is no such route")
    }

    /// 405 with `Allow`.
    pub fn method_not_allowed(allow: &'static str) -> Self {
        let detail = format!("this route takes {allow}");
        let problem = Self::new(&kind::METHOD_NOT_ALLOWED, detail);
        Self { allow: Some(HeaderValue::from_static(allow)), ..problem }
    }

    /// 401 or 403 with a challenge, which names `scope` if that is needed; 400 for two tokens.
    pub fn no_access(refusal: NoAccess, scope: Option<&str>) -> Self {
        let kind = match refusal {
            NoAccess::Repeated => &kind::BAD_REQUEST,
            NoAccess::Scope | NoAccess::Owner => &kind::FORBIDDEN,
            _ => &kind::UNAUTHORIZED,
        };
        let field = (refusal == NoAccess::Repeated).then_some(Cow::Borrowed(header::AUTHORIZATION.as_str()));
        Self {
            challenge: Some(Box::new(refusal.challenge(scope))),
            field,
            ..Self::new(kind, refusal.detail())
        }
    }

    /// 408 for a body that did not arrive in time.
    pub fn slow_body() -> Self {
        let detail = "the request body did not arrive in time";
        Self { close: true, ..Self::new(&kind::SLOW_REQUEST, detail) }
    }

    /// 400 for a body where there must be none. The connection is closed: something on the way may take the body for
    /// another request.
    pub fn unexpected_body(method: &Method) -> Self {
        let detail = format!("{method} takes no body: input belongs in the query");
        Self { close: true, ..Error::bad("body", detail).into() }
    }

    /// 413 for a body over `limit` bytes.
    pub fn body_too_large(limit: usize) -> Self {
        let detail = format!("the request body is over {limit} bytes");
        Self { close: true, ..Self::new(&kind::BODY_TOO_LARGE, detail) }
    }

    /// 414 for a path and query over `limit` bytes.
    pub fn uri_too_long(limit: usize) -> Self {
        let detail = format!("the path and query are over {limit} bytes");
        Self::new(&kind::URI_TOO_LONG, detail)
    }

    /// 431 for a head of over `limit` fields.
    pub fn too_many_fields(limit: usize) -> Self {
        let detail = format!("the head has over {limit} fields");
        Self::new(&kind::TOO_MANY_FIELDS, detail)
    }

    /// 415 for a body in a coding that is not supported.
    pub fn unsupported_coding() -> Self {
        let problem = Self::new(&kind::UNSUPPORTED_MEDIA_TYPE, "a body must not be encoded");
        Self { field: Some(Cow::Borrowed(header::CONTENT_ENCODING.as_str())), ..problem }
    }

    /// 417 for an expectation other than `100-continue`.
    pub fn expectation_failed() -> Self {
        let detail = "the only expectation that can be met is 100-continue";
        let problem = Self::new(&kind::EXPECTATION_FAILED, detail);
        Self { field: Some(Cow::Borrowed(header::EXPECT.as_str())), ..problem }
    }

    /// 503 for an answer of a service that cannot be decoded.
    pub fn malformed(service: &str) -> Self {
        Error::unavailable(format!("{service} gave a malformed answer")).into()
    }

    /// 503 for a write that may have waited longer than its caller does, while this process paused. It was not made.
    pub fn late() -> Self {
        let detail = "the request may be older than its time limit";
        Self { overload: true, ..Self::new(&kind::OVERLOADED, detail) }
    }

    /// Returns true if the request was refused for overload.
    pub const fn is_overload(&self) -> bool {
        self.overload
    }

    /// Returns the response without its body, and with this problem among its extensions; [`Self::write`] writes
    /// the body, which names the trace.
    pub fn into_response(self) -> Response {
        let mut response = Response::default();
        *response.status_mut() = self.kind.status;
        response.extensions_mut().insert(self);
        response
    }

    /// Writes the body and the headers of the response of this problem.
    pub fn write(self, response: &mut Response, context: &Context) {
        let status = self.kind.status;
        let body = Body {
            r#type: format!("{}{}", kind::PREFIX, self.kind.name),
            title: status.canonical_reason().unwrap_or("Error"),
            status: status.as_u16(),
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
        if let Some(challenge) = self.challenge {
            headers.insert(header::WWW_AUTHENTICATE, *challenge);
        }
        if matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS) {
            headers.insert(header::RETRY_AFTER, self.retry_after.into());
        }
        if status == StatusCode::UNSUPPORTED_MEDIA_TYPE {
            headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        }
        if self.close {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
    }
}

/// Returns a time in seconds, rounded up.
fn whole_seconds(time: Duration) -> u32 {
    u32::try_from(time.as_secs() + u64::from(time.subsec_nanos() > 0)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::admission::Overload;

    #[test]
    fn retry_after_rounds_up() {
        let seconds = [1, 1000, 1001].map(|ms| {
            let refusal = Refusal::RateLimited { retry_after: Duration::from_millis(ms) };
            Problem::from(refusal).retry_after
        });
        assert_eq!(seconds, [1, 1, 2]);
    }

    #[test]
    fn overload_is_not_any_503() {
        for overload in [Overload::InFlight, Overload::Memory] {
            assert!(Problem::from(Refusal::Overloaded(overload)).is_overload());
        }
        let unavailable = Problem::from(Error::unavailable("too many requests are in progress"));
        assert!(!unavailable.is_overload());
        assert!(!Problem::from(Refusal::DeadlinePassed).is_overload());
    }
}
