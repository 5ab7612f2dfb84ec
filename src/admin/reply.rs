//! The answers of the admin listener: text or JSON.

use http::{HeaderValue, StatusCode, header};
use serde_json::Value;
use warp::reply::Response;

/// A refused request: the status, and the reason for the caller.
pub struct Refusal(pub StatusCode, pub String);

impl From<Refusal> for Response {
    fn from(Refusal(status, reason): Refusal) -> Self {
        text(status, reason + "\n")
    }
}

/// Returns a JSON answer.
pub fn json(body: &Value) -> Response {
    let mut response = text(StatusCode::OK, format!("{body:#}\n"));
    let kind = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

/// Returns the answer of a handler that failed; the log says why.
pub fn failed() -> Response {
    text(StatusCode::INTERNAL_SERVER_ERROR, "the handler failed\n".to_owned())
}

/// Returns a text answer.
pub fn text(status: StatusCode, body: String) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}
