//! What an instance says of itself (grpc.health.v1): followed on every connection, so that a drain is
//! seen even while the registry is away; and asked once of an instance that the registry has lost.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use futures_util::FutureExt as _;
use http::{HeaderValue, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use prost::Message as _;
use tonic::Status;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use crate::api::error::chain;
use crate::api::headers::{INSTANCE, WRONG_SERVICE};
use crate::backoff::Backoff;
use crate::client::transport::connection::connect;
use crate::client::transport::exchange;
use crate::client::transport::outcome::{self, Ended};
use crate::client::transport::pool::Shared;
use crate::config;
use crate::registry::Probe;

/// Time for a word on a connection that is in doubt. A peer that is busy answers this late, too; a new
/// connection to it costs little.
const ANSWER: Duration = Duration::from_millis(500);

const CHECK: &str = "/grpc.health.v1.Health/Check";
const WATCH: &str = "/grpc.health.v1.Health/Watch";
/// Largest health message, bytes; a real one has two.
const MAX_MESSAGE: usize = 1024;

/// Returns a probe: one connection, one health check. An instance that knows no health service (another
/// implementation) serves as long as it answers.
pub fn probe(settings: config::Client, prefix: String) -> Probe {
    let settings = Arc::new(settings);
    Arc::new(move |instance| {
        let (settings, prefix) = (settings.clone(), prefix.clone());
        async move {
            let identity = identity(&prefix, &instance.service);
            let (mut sender, connection) = connect(&instance.addr, &settings).await?;
            let request = exchange::request(&instance.addr, &identity, CHECK, whole_server()?)?;
            let exchange = async {
                let response = sender.send_request(request).await.map_err(|e| chain(&e))?;
                match exchange::read(response).await {
                    Ended::Answered(answer) => {
                        serving(&answer.message).then_some(()).ok_or("it does not serve".to_owned())
                    }
                    Ended::Said(status) if status.code() == tonic::Code::Unimplemented => Ok(()),
                    ended => Err(ended.to_string()),
                }
            };
            tokio::select! {
                result = exchange => result,
                _ = connection => Err("the connection ended".to_owned()),
            }
        }
        .boxed()
    })
}

/// Returns whether anything comes back on a connection within half a second.
pub async fn answers(mut sender: SendRequest<Full<Bytes>>, addr: &str, identity: &HeaderValue) -> bool {
    let Ok(request) = whole_server().and_then(|asked| exchange::request(addr, identity, CHECK, asked)) else {
        return true; // our own fault
    };
    match tokio::time::timeout(ANSWER, sender.send_request(request)).await {
        Ok(Ok(_)) => true,
        Ok(Err(error)) => outcome::is_reset(&error), // a refusal is a word, too
        Err(_) => false,
    }
}

/// Returns what a call to a service carries to say whom it means.
pub fn identity(prefix: &str, service: &str) -> HeaderValue {
    let text = format!("{prefix}{service}");
    // a prefix that no header can carry is as good as none, at both ends
    HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static("?"))
}

/// The peer's first word on a connection: its answer to a health watch.
pub enum Greeting {
    /// It tells its health on this stream.
    Watch(Response<Incoming>),
    /// It answered, but does not tell its health.
    Silent {
        /// Its id, if it gave one.
        instance: Option<String>,
        /// True if it may tell later: it refused the stream for now.
        later: bool,
    },
    /// It is another service, which one.
    WrongService(HeaderValue),
}

impl Greeting {
    /// Returns the id of the instance that answers.
    pub fn instance(&self) -> Option<String> {
        match self {
            Self::Watch(response) => id_of(response),
            Self::Silent { instance, .. } => instance.clone(),
            Self::WrongService(_) => None,
        }
    }

    /// Returns which other service answers here.
    pub const fn wrong_service(&self) -> Option<&HeaderValue> {
        match self {
            Self::WrongService(found) => Some(found),
            Self::Watch(_) | Self::Silent { .. } => None,
        }
    }
}

fn id_of(response: &Response<Incoming>) -> Option<String> {
    response.headers().get(INSTANCE)?.to_str().ok().map(str::to_owned)
}

/// Asks to be told the peer's health, and waits for its first word. Any word will do: a peer that refuses the
/// stream is there.
///
/// # Errors
/// When the connection broke.
pub async fn greet(
    mut sender: SendRequest<Full<Bytes>>,
    addr: &str,
    identity: &HeaderValue,
) -> Result<Greeting, String> {
    let request = exchange::request(addr, identity, WATCH, whole_server()?)?;
    let response = match sender.send_request(request).await {
        Ok(response) => response,
        Err(error) if outcome::is_reset(&error) => {
            return Ok(Greeting::Silent { instance: None, later: true });
        }
        Err(error) => return Err(chain(&error)),
    };
    if let Some(other) = response.headers().get(WRONG_SERVICE) {
        return Ok(Greeting::WrongService(other.clone()));
    }
    if let Some(refusal) = Status::from_header_map(response.headers()) {
        // without a word: it knows no health service, or has no room for one more who follows it
        let later = refusal.code() != tonic::Code::Unimplemented;
        return Ok(Greeting::Silent { instance: id_of(&response), later });
    }
    Ok(Greeting::Watch(response))
}

/// Follows the health of the instance at the other end of a connection, as long as that lasts; a stream
/// that ends is asked for again.
///
/// *Cancellation*: the stream is reset.
pub(in crate::client) async fn follow(
    mut greeting: Greeting,
    sender: SendRequest<Full<Bytes>>,
    shared: &Shared,
    slot: usize,
) -> Infallible {
    let addr = &shared.addr;
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(10));
    loop {
        match greeting {
            Greeting::Watch(response) => match read(response, shared, slot).await {
                Ok(()) => backoff.reset(),
                Err(reason) => tracing::debug!(addr, reason, "health is not followed"),
            },
            Greeting::Silent { later: true, .. } => {}
            // no use asking again
            Greeting::Silent { .. } | Greeting::WrongService(_) => return std::future::pending().await,
        }
        greeting = loop {
            tokio::time::sleep(backoff.next_wait()).await;
            match greet(sender.clone(), addr, &shared.identity).await {
                Ok(greeting) => break greeting,
                Err(reason) => tracing::debug!(addr, reason, "health is not followed"),
            }
        };
    }
}

/// Reads one stream to its end.
async fn read(response: Response<Incoming>, shared: &Shared, slot: usize) -> Result<(), String> {
    let mut body = response.into_body();
    let mut buffer = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|e| chain(&e))?.into_data() else {
            continue; // trailers
        };
        buffer.extend_from_slice(&data);
        while let Some(message) = next_message(&mut buffer)? {
            shared.health(slot, serving(&message));
        }
    }
    Ok(())
}

/// Takes one message off the front of a stream's bytes; `None` if it has not all come yet.
fn next_message(buffer: &mut BytesMut) -> Result<Option<Bytes>, String> {
    let Some(prefix) = buffer.first_chunk::<5>() else {
        return Ok(None);
    };
    let [compressed, length @ ..] = *prefix;
    let length = usize::try_from(u32::from_be_bytes(length)).map_err(|e| e.to_string())?;
    if compressed != 0 || length > MAX_MESSAGE {
        return Err("a garbled health message".to_owned());
    }
    if buffer.len() < prefix.len() + length {
        return Ok(None);
    }
    buffer.advance(5);
    Ok(Some(buffer.split_to(length).freeze()))
}

fn serving(message: &Bytes) -> bool {
    let answer = HealthCheckResponse::decode(message.clone());
    answer.is_ok_and(|answer| answer.status() == ServingStatus::Serving)
}

/// Asks for the health of the whole server, which every server knows.
fn whole_server() -> Result<Bytes, String> {
    exchange::frame(&HealthCheckRequest { service: String::new() }).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_taken_off_as_they_come() {
        let mut buffer = BytesMut::new();
        let whole = exchange::frame(&HealthCheckResponse { status: 1 }).unwrap();
        for byte in &whole[..whole.len() - 1] {
            buffer.extend_from_slice(&[*byte]);
            assert_eq!(next_message(&mut buffer).unwrap(), None);
        }
        buffer.extend_from_slice(&whole[whole.len() - 1..]);
        buffer.extend_from_slice(&whole);
        for _ in 0..2 {
            assert!(serving(&next_message(&mut buffer).unwrap().unwrap()));
        }
        assert_eq!(next_message(&mut buffer).unwrap(), None);
        buffer.extend_from_slice(&[0, 255, 0, 0, 0]);
        next_message(&mut buffer).unwrap_err();
    }
}
