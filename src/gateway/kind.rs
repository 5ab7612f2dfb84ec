//! The kinds of problems: one table, which the answers and the description of the API read.

use http::StatusCode;

use crate::api::error::Code;

/// One kind of problem.
#[derive(Debug, PartialEq, Eq)]
pub struct Kind {
    /// The status of the answer.
    pub status: StatusCode,
    /// The last part of `type`, [`PREFIX`] before it.
    pub name: &'static str,
    /// When it is the answer, a sentence of Markdown without its full stop.
    pub when: &'static str,
}

/// The first part of `type`.
pub const PREFIX: &str = "urn:microservice-app:problem:";

macro_rules! kinds {
    ($($kind:ident = $status:expr, $name:expr, $when:literal;)+) => {
        $(
            #[doc = concat!($when, ".")]
            pub static $kind: Kind = Kind { status: $status, name: $name, when: $when };
        )+

        /// Every kind, by status.
        pub static KINDS: &[&Kind] = &[$(&$kind),+];
    };
}

kinds! {
    BAD_REQUEST = Code::BadRequest.http(), Code::BadRequest.name(),
        "The input is wrong; `field` names it, unless it is a CHECK of the database that forbids the record";
    UNAUTHORIZED = StatusCode::UNAUTHORIZED, "unauthorized",
        "The bearer token is missing or not valid; `www-authenticate` says why";
    FORBIDDEN = StatusCode::FORBIDDEN, "forbidden",
        "The bearer token does not give the right to this operation, or to the records of this user";
    NOT_FOUND = Code::NotFound.http(), Code::NotFound.name(), "There is no such user, feed, profile or topic";
    UNKNOWN_ROUTE = StatusCode::NOT_FOUND, "unknown_route", "There is no such path";
    METHOD_NOT_ALLOWED = StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed",
        "The path exists, but not with this method";
    SLOW_REQUEST = StatusCode::REQUEST_TIMEOUT, "slow_request",
        "The body did not arrive in time; the connection is closed";
    BODY_TOO_LARGE = StatusCode::PAYLOAD_TOO_LARGE, "body_too_large",
        "The body is over its limit; the connection is closed";
    URI_TOO_LONG = StatusCode::URI_TOO_LONG, "uri_too_long", "Path and query are over their limit";
    UNSUPPORTED_MEDIA_TYPE = StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type",
        "The body is encoded (`content-encoding`)";
    EXPECTATION_FAILED = StatusCode::EXPECTATION_FAILED, "expectation_failed",
        "`expect` asks for something else than `100-continue`";
    MISDIRECTED_REQUEST = StatusCode::MISDIRECTED_REQUEST, "misdirected_request",
        "The target has another scheme than this port serves, or the host is none of `http.hosts`";
    TOO_MANY_REQUESTS = Code::TooManyRequests.http(), Code::TooManyRequests.name(),
        "This client is over `http.rate_limit`";
    TOO_MANY_FIELDS = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "too_many_fields", "The head has over 100 fields";
    INTERNAL = Code::Internal.http(), Code::Internal.name(), "A defect in this program";
    UNAVAILABLE = Code::Unavailable.http(), Code::Unavailable.name(),
        "No instance can be called, or its store cannot answer";
    OVERLOADED = StatusCode::SERVICE_UNAVAILABLE, "overloaded",
        "Too many requests are in progress, or the gateway has just paused and a write may be too old; this one was not begun";
    TIMEOUT = Code::Timeout.http(), Code::Timeout.name(), "The deadline passed";
}

impl From<Code> for &'static Kind {
    fn from(code: Code) -> Self {
        match code {
            Code::BadRequest => &BAD_REQUEST,
            Code::NotFound => &NOT_FOUND,
            Code::TooManyRequests => &TOO_MANY_REQUESTS,
            Code::Unavailable => &UNAVAILABLE,
            Code::Timeout => &TIMEOUT,
            Code::Internal => &INTERNAL,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_and_its_kind_agree() {
        for code in Code::ALL {
            let kind = <&Kind>::from(code);
            assert_eq!((kind.status, kind.name), (code.http(), code.name()));
        }
        assert!(KINDS.is_sorted_by_key(|kind| kind.status.as_u16()));
    }
}
