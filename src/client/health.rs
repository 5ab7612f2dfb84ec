//! What an instance says of itself (grpc.health.v1): followed on every connection, so that a drain is
//! seen even while the registry is away; and asked once of an instance that the registry has lost.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::{Buf as _, Bytes, BytesMut};
use futures_util::FutureExt as _;
use http::HeaderValue;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2::SendRequest;
use prost::Message as _;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use super::endpoint::{Link, connect};
use super::grpc::{self, Read};
use crate::config;
use crate::context::WRONG_SERVICE;
use crate::error::chain;
use crate::registry::Probe;

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
            let request = grpc::request(&instance.addr, &identity, CHECK, whole_server()?)?;
            let exchange = async {
                let response = sender.send_request(request).await.map_err(|e| chain(&e))?;
                match grpc::read(response).await {
                    Ok(answer) => {
                        serving(&answer.message).then_some(()).ok_or("it does not serve".to_owned())
                    }
                    Err(Read::Said(status)) if status.code() == tonic::Code::Unimplemented => Ok(()),
                    Err(Read::Said(status)) => Err(status.message().to_owned()),
                    Err(Read::Lost(reason)) => Err(reason),
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

/// Returns what a call to a service carries to say whom it means.
pub fn identity(prefix: &str, service: &str) -> HeaderValue {
    let text = format!("{prefix}{service}");
    // a prefix that no header can carry is as good as none, at both ends
    HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static("?"))
}

/// Follows the health of the instance at the other end of a connection, as long as it tells.
///
/// *Cancellation*: the stream is reset.
pub async fn watch(
    sender: SendRequest<Full<Bytes>>,
    addr: &str,
    identity: &HeaderValue,
    link: &Link,
) -> Infallible {
    if let Err(reason) = follow(sender, addr, identity, link).await {
        tracing::debug!(addr, reason, "health is not followed");
    }
    std::future::pending().await
}

async fn follow(
    mut sender: SendRequest<Full<Bytes>>,
    addr: &str,
    identity: &HeaderValue,
    link: &Link,
) -> Result<(), String> {
    let request = grpc::request(addr, identity, WATCH, whole_server()?)?;
    let response = sender.send_request(request).await.map_err(|e| chain(&e))?;
    // the stream alone must not keep the connection open
    drop(sender);
    if let Some(other) = response.headers().get(WRONG_SERVICE) {
        link.wrong_service(addr, identity, other);
        return Ok(());
    }
    let mut body = response.into_body();
    let mut buffer = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|e| chain(&e))?.into_data() else {
            continue; // trailers
        };
        buffer.extend_from_slice(&data);
        while let Some(message) = next_message(&mut buffer)? {
            link.health(serving(&message));
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
    grpc::frame(&HealthCheckRequest { service: String::new() }).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_taken_off_as_they_come() {
        let mut buffer = BytesMut::new();
        let whole = grpc::frame(&HealthCheckResponse { status: 1 }).unwrap();
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
