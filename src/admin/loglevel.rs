//! `/loglevel`: GET returns the log level, PUT changes it until the next start. The body is a value of the setting
//! `log.level`: `debug`, or `info,microservice_app::client=debug`.

use std::time::Duration;

use futures_util::StreamExt as _;
use http::{HeaderValue, Method, StatusCode, header};
use warp::filters::BoxedFilter;
use warp::reply::Response;
use warp::{Buf, Filter, Stream};

use super::peer::Peer;
use super::reply::{Refusal, text};
use crate::telemetry::log;

/// Longest body, bytes.
const MAX_BODY: usize = 1024;
/// Time for the body.
const BODY_TIME: Duration = Duration::from_secs(5);

/// Returns what answers requests for the log level. Without a level, every answer is 501.
pub fn answers(level: Option<log::Level>) -> BoxedFilter<(Response,)> {
    warp::method()
        .and(warp::ext::get::<Peer>())
        .and(warp::body::stream())
        .then(move |method: Method, peer, body| {
            let level = level.clone();
            async move {
                let Some(level) = level else {
                    let detail = "this process does not set the log level\n";
                    return text(StatusCode::NOT_IMPLEMENTED, detail.to_owned());
                };
                match method {
                    Method::GET | Method::HEAD => text(StatusCode::OK, format!("{}\n", level.get())),
                    Method::PUT => put(&level, peer, body).await.unwrap_or_else(Response::from),
                    _ => {
                        let detail = "want GET or PUT\n".to_owned();
                        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, detail);
                        let allow = HeaderValue::from_static("GET, HEAD, PUT");
                        response.headers_mut().insert(header::ALLOW, allow);
                        response
                    }
                }
            }
        })
        .boxed()
}

async fn put<B: Buf>(
    level: &log::Level,
    peer: Peer,
    body: impl Stream<Item = Result<B, warp::Error>> + Send,
) -> Result<Response, Refusal> {
    peer.local()?;
    let bad = |reason: String| Refusal(StatusCode::BAD_REQUEST, format!("level: {reason}"));
    let read = tokio::time::timeout(BODY_TIME, read(body)).await;
    let body = read.unwrap_or_else(|_| Err(format!("did not arrive within {BODY_TIME:?}"))).map_err(bad)?;
    let new = std::str::from_utf8(&body).map_err(|_| bad("is not UTF-8".to_owned()))?.trim();
    level.set(new).map_err(bad)?;
    Ok(text(StatusCode::OK, format!("{new}\n")))
}

async fn read<B: Buf>(body: impl Stream<Item = Result<B, warp::Error>>) -> Result<Vec<u8>, String> {
    let mut body = std::pin::pin!(body);
    let mut whole = Vec::new();
    while let Some(part) = body.next().await {
        let mut part = part.map_err(|error| format!("could not be read: {error}"))?;
        if whole.len() + part.remaining() > MAX_BODY {
            return Err(format!("is over {MAX_BODY} bytes"));
        }
        whole.extend_from_slice(&part.copy_to_bytes(part.remaining()));
    }
    Ok(whole)
}
