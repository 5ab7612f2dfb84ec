//! Refuses the parts of a request that would change what it does, and that this gateway does not do: a caller that sends
//! one of them would take the answer for something that it is not. docs/api.md has the list, and what is ignored because
//! it changes nothing.

use http::{HeaderMap, HeaderName, Method, Request, header};
use http_body::Body;

use super::problem::Problem;
use super::request;
use crate::api::error::Error;

/// Preconditions: records have neither an entity tag nor a date, so none of these can be examined, and a method must not
/// be performed under a condition that is false (RFC 9110, 13.1 and 13.2).
const PRECONDITIONS: [HeaderName; 3] = [header::IF_MATCH, header::IF_NONE_MATCH, header::IF_UNMODIFIED_SINCE];
/// Headers that ask for another method than the request has.
const METHOD_OVERRIDES: [HeaderName; 3] = [
    HeaderName::from_static("x-http-method-override"),
    HeaderName::from_static("x-http-method"),
    HeaderName::from_static("x-method-override"),
];

/// Checks the head of a request whose route has been found; `query` is that of its target.
///
/// # Errors
/// Names the first part that is not supported.
pub fn check<B: Body>(request: &Request<B>) -> Result<(), Problem> {
    let headers = request.headers();
    check_expectations(headers)?;
    let given = |names: &[HeaderName]| names.iter().find(|name| headers.contains_key(*name)).cloned();
    if let Some(name) = given(&METHOD_OVERRIDES) {
        return Err(Error::bad(name.as_str().to_owned(), "is not supported, send the method itself").into());
    }
    let reads = request.method().is_safe();
    let conditions = if reads { &PRECONDITIONS[..1] } else { &PRECONDITIONS[..] };
    if let Some(name) = given(conditions) {
        return Err(Error::bad(name.as_str().to_owned(), "conditions are not supported").into());
    }
    if headers.contains_key(header::CONTENT_RANGE) {
        // RFC 9110, 14.4 and 14.5
        return Err(Error::bad(header::CONTENT_RANGE.as_str(), "a record is written as a whole").into());
    }
    if request.method() != Method::PUT {
        return check_no_body(request);
    }
    let coded = |value: &http::HeaderValue| !value.as_bytes().eq_ignore_ascii_case(b"identity");
    if headers.get_all(header::CONTENT_ENCODING).iter().any(coded) {
        return Err(Problem::unsupported_coding());
    }
    // the input is in the body: every parameter is unknown
    request::query(request.uri().query().unwrap_or_default())?.finish()
}

/// RFC 9110, 10.1.1.
fn check_expectations(headers: &HeaderMap) -> Result<(), Problem> {
    let met = |value: &http::HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"100-continue");
    if headers.get_all(header::EXPECT).iter().all(met) { Ok(()) } else { Err(Problem::expectation_failed()) }
}

/// RFC 9110, 9.3.1 and 9.3.5: a body of GET or DELETE has no meaning.
fn check_no_body<B: Body>(request: &Request<B>) -> Result<(), Problem> {
    if request.body().is_end_stream() {
        return Ok(());
    }
    Err(Problem::unexpected_body(request.method()))
}
