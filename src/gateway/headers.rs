//! The headers that callers and the gateway exchange: one table, which the description of the API and CORS read.

use http::{HeaderName, header};

use super::parameter::Range;
use crate::api::headers::{DEGRADED, INSTANCE, REQUEST_ID, REQUEST_TIMEOUT, TRACE_ID};
use crate::context::MAX_DEADLINE_MS;

/// A header of a request. None is required.
pub struct RequestHeader {
    /// Its name.
    pub name: HeaderName,
    /// What it means, sentences of Markdown.
    pub about: &'static str,
    /// Which values are accepted; anything if there is none.
    pub range: Option<Range>,
    /// A value.
    pub example: &'static str,
}

/// The headers of a request that have a meaning on every route.
pub static REQUEST_HEADERS: [RequestHeader; 4] = [
    RequestHeader {
        name: REQUEST_TIMEOUT,
        about: "The caller's own deadline, milliseconds. It can only shorten that of the gateway (`client.deadline_ms`).",
        range: Some(Range::integer(1, MAX_DEADLINE_MS.cast_signed())),
        example: "1500",
    },
    RequestHeader {
        name: REQUEST_ID,
        about: "An id of the caller's, 1 to 128 visible ASCII characters, that the log and the answer repeat. In the \
                place of a malformed one the gateway makes one up.",
        range: None,
        example: "order-17",
    },
    RequestHeader {
        name: HeaderName::from_static("traceparent"),
        about: "The caller's trace, as W3C writes it; `tracestate` is passed on. What cannot be read is ignored.",
        range: None,
        example: "00-80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1-01",
    },
    RequestHeader {
        name: HeaderName::from_static("b3"),
        about: "The caller's trace, as Zipkin writes it; the headers `x-b3-*` are read as well. It wins over `traceparent`. \
                What cannot be read is ignored.",
        range: None,
        example: "80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1-1",
    },
];

/// A header of an answer.
pub struct AnswerHeader {
    /// Its name.
    pub name: HeaderName,
    /// The answers that may have it.
    pub on: On,
    /// What it means, sentences of Markdown.
    pub about: &'static str,
    /// A pattern of its values, a regular expression; empty for any.
    pub pattern: &'static str,
    /// A value.
    pub example: &'static str,
}

/// The answers that may have a header.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum On {
    /// All that this program writes.
    Every,
    /// Those of a service.
    Service,
    /// Reads that are degraded.
    Read,
    /// Pages of feeds that were shortened.
    Shortened,
    /// Files, such as the description of the API.
    File,
    /// Those with one of these statuses.
    Status(&'static [u16]),
}

/// The headers of answers, beside those that every HTTP server sends.
pub static ANSWER_HEADERS: [AnswerHeader; 12] = [
    AnswerHeader {
        name: REQUEST_ID,
        on: On::Every,
        about: "The id of the request.",
        pattern: "^[!-~]{1,128}$",
        example: "order-17",
    },
    AnswerHeader {
        name: TRACE_ID,
        on: On::Every,
        about: "The id of the trace of the request.",
        pattern: TRACE_ID_PATTERN,
        example: "80f198ee56343ba864fe8b2a57d3eff7",
    },
    AnswerHeader {
        name: header::CACHE_CONTROL,
        on: On::Every,
        about: "`no-store`, but for files, which may be kept and have to be compared by their `etag`: `no-cache`.",
        pattern: "^no-(store|cache)$",
        example: "no-store",
    },
    AnswerHeader {
        name: INSTANCE,
        on: On::Service,
        about: "The instance that answered, by the id that `/status` of the admin port lists.",
        pattern: "",
        example: "a59dbc69e58bd412",
    },
    AnswerHeader {
        name: DEGRADED,
        on: On::Read,
        about: "How the answer is degraded: `stale` is the last good answer, `feeds_unavailable` a profile without its \
                feeds.",
        pattern: "^(stale|feeds_unavailable)$",
        example: "stale",
    },
    AnswerHeader {
        name: header::AGE,
        on: On::Read,
        about: "The age of a stale answer, seconds.",
        pattern: "^[0-9]+$",
        example: "3",
    },
    AnswerHeader {
        name: header::LINK,
        on: On::Shortened,
        about: "The address of the next page, if this one was shortened.",
        pattern: "^</.*>; rel=\"next\"$",
        example: "</api/feed/get_feeds?user_id=123&size=1000&before=2>; rel=\"next\"",
    },
    AnswerHeader {
        name: header::ETAG,
        on: On::File,
        about: "The version of the file, for `if-none-match`.",
        pattern: "^\"[0-9a-f]{16}\"$",
        example: "\"0123456789abcdef\"",
    },
    AnswerHeader {
        name: header::ALLOW,
        on: On::Status(&[405]),
        about: "The methods of the route.",
        pattern: "^[A-Z]+(, [A-Z]+)*$",
        example: "GET, HEAD, OPTIONS",
    },
    AnswerHeader {
        name: header::WWW_AUTHENTICATE,
        on: On::Status(&[401, 403]),
        about: "What is wrong with the bearer token (RFC 6750): `error`, `error_description`, and the `scope` that is needed.",
        pattern: "^Bearer realm=\"microservice-app\"",
        example: "Bearer realm=\"microservice-app\", error=\"invalid_token\", error_description=\"the token has expired\"",
    },
    AnswerHeader {
        name: header::ACCEPT_ENCODING,
        on: On::Status(&[415]),
        about: "The encodings that a body may have.",
        pattern: "^identity$",
        example: "identity",
    },
    AnswerHeader {
        name: header::RETRY_AFTER,
        on: On::Status(&[429, 503]),
        about: "Seconds to wait before the next try.",
        pattern: "^[0-9]+$",
        example: "1",
    },
];

/// The pattern of the id of a trace.
pub const TRACE_ID_PATTERN: &str = "^([0-9a-f]{16}){1,2}$";
