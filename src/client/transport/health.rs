//! Opens connections on which the peer has answered, and follows what it says of its health
//! (grpc.health.v1) on each of them, so that callers see a drain even while the registry is away.

use std::convert::Infallible;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Response};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use prost::Message as _;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tonic::Status;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use crate::api::error::chain;
use crate::api::headers::{INSTANCE, WRONG_SERVICE};
use crate::api::rpc::Rpc;
use crate::backoff::Backoff;
use crate::client::transport::connection::{Dialer, RequestSender};
use crate::client::transport::{outcome, wire};
use crate::timeout::timeout;
use crate::tls::Validity;

/// The part of `client.keepalive_ms` after which a peer is asked for its health. The rest is the time for its answer.
const ASK_AFTER: f64 = 0.85;
/// The first and the longest wait before a health stream that ended is opened again.
const WATCH_BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// After a health stream lasted this long the next attempts begin with the first wait again. Some peers, and proxies
/// before them, end each stream at once.
const STABLE_AFTER: Duration = Duration::from_secs(1);

/// A connection on which the peer has answered.
pub struct WatchedConnection {
    /// Sends requests on it.
    pub sender: RequestSender,
    /// Ends with the connection. Its task is detached: calls in flight finish even after the pool has dropped
    /// the connection.
    pub ended: JoinHandle<hyper::Result<()>>,
    /// The peer's answer to the health watch.
    pub watch: HealthWatch,
    /// How long the certificate of the peer counts, if it has shown one.
    pub validity: Option<Validity>,
}

/// Opens a connection and asks for the peer's health, both within `client.connect_timeout_ms`.
///
/// # Errors
/// Why there is no connection, for operators.
pub async fn open(addr: &str, dialer: &Dialer) -> Result<WatchedConnection, String> {
    let limit = dialer.settings.connect_timeout;
    let open = async {
        let connection = dialer.connect(addr).await?;
        let watch = watch(connection.sender.clone(), addr, &dialer.identity).await?;
        let (sender, ended, validity) = (connection.sender, connection.driver.detach(), connection.validity);
        Ok(WatchedConnection { sender, ended, watch, validity })
    };
    let opened = timeout(limit, open).await;
    opened.unwrap_or_else(|_| Err(format!("connected, but no answer within {limit:?}")))
}

/// Returns whether the peer answers a health check on a connection within a time limit.
pub async fn answers(mut sender: RequestSender, addr: &str, identity: &HeaderValue, limit: Duration) -> bool {
    let path = Rpc::HealthCheck.path();
    let Ok(request) = whole_server().and_then(|asked| wire::request(addr, identity, path, asked)) else {
        return true; // not the peer's fault
    };
    match timeout(limit, sender.send_request(request)).await {
        Ok(Ok(_)) => true,
        Ok(Err(error)) => outcome::is_reset(&error), // a refused stream is an answer, too
        Err(_) => false,
    }
}

/// Asks for the peer's health again and again, so that it is heard on a connection that is silent otherwise. The question
/// comes shortly before hyper would ping a silent peer: one that answers gets no pings, and one that does not answer is
/// found by them.
///
/// Pings alone would not do. A server of grpc-go or gRPC's C core closes a connection after three of them, unless
/// it has sent something in between or they are five minutes apart.
///
/// *Cancellation*: the question that is on its way is reset.
pub async fn keep_heard(
    mut sender: RequestSender,
    addr: &str,
    identity: &HeaderValue,
    silence: Duration,
) -> Infallible {
    // connections that were opened together are not asked together
    let mut wait = silence.mul_f64(crate::random::range(ASK_AFTER / 2.0..=ASK_AFTER));
    loop {
        tokio::time::sleep(wait).await;
        wait = silence.mul_f64(ASK_AFTER);
        let request =
            whole_server().and_then(|asked| wire::request(addr, identity, Rpc::HealthCheck.path(), asked));
        if let Ok(request) = request {
            // whatever the answer says: the watch tells the peer's health
            let asked = async { Some(wire::read_answer(sender.send_request(request).await.ok()?).await) };
            let _ = tokio::time::timeout(silence, asked).await;
        }
    }
}

/// The peer's answer to a health watch.
pub enum HealthWatch {
    /// It reports its health on this stream.
    Stream(Response<Incoming>),
    /// It answered, but does not report its health.
    Refused {
        /// Its instance id, if it sent one.
        instance: Option<String>,
        /// True if it may report later: it refused the stream for now.
        retry: bool,
    },
    /// It is another service, and which one.
    WrongService(HeaderValue),
}

impl HealthWatch {
    /// Returns the id of the instance that answers.
    pub fn instance(&self) -> Option<String> {
        match self {
            Self::Stream(response) => id_of(response),
            Self::Refused { instance, .. } => instance.clone(),
            Self::WrongService(_) => None,
        }
    }

    /// Returns which other service answers.
    pub const fn wrong_service(&self) -> Option<&HeaderValue> {
        match self {
            Self::WrongService(found) => Some(found),
            Self::Stream(_) | Self::Refused { .. } => None,
        }
    }
}

fn id_of(response: &Response<Incoming>) -> Option<String> {
    response.headers().get(INSTANCE)?.to_str().ok().map(str::to_owned)
}

/// Asks the peer to report its health, and waits for its answer. Any answer will do: a peer that refuses the
/// stream is there.
async fn watch(mut sender: RequestSender, addr: &str, identity: &HeaderValue) -> Result<HealthWatch, String> {
    let request = wire::request(addr, identity, Rpc::HealthWatch.path(), whole_server()?)?;
    let response = match sender.send_request(request).await {
        Ok(response) => response,
        Err(error) if outcome::is_reset(&error) => {
            return Ok(HealthWatch::Refused { instance: None, retry: true });
        }
        Err(error) => return Err(chain(&error)),
    };
    if let Some(other) = response.headers().get(WRONG_SERVICE) {
        return Ok(HealthWatch::WrongService(other.clone()));
    }
    if let Some(refusal) = Status::from_header_map(response.headers()) {
        // it has no health service, or as many watchers as it may have
        let retry = refusal.code() != tonic::Code::Unimplemented;
        return Ok(HealthWatch::Refused { instance: id_of(&response), retry });
    }
    Ok(HealthWatch::Stream(response))
}

/// Follows the health of the instance at the other end of a connection: calls `report` with true whenever it
/// says that it serves, with false whenever it says that it does not. Opens a stream that ends again.
///
/// *Cancellation*: the stream is reset.
pub async fn follow(
    mut watch: HealthWatch,
    sender: RequestSender,
    addr: &str,
    identity: &HeaderValue,
    report: impl Fn(bool),
) -> Infallible {
    let mut backoff = Backoff::new(WATCH_BACKOFF.0, WATCH_BACKOFF.1);
    loop {
        match watch {
            HealthWatch::Stream(response) => {
                let begun = Instant::now();
                match read(response, &report).await {
                    Ok(Some(status)) if status.code() == tonic::Code::Unimplemented => {
                        return std::future::pending().await;
                    }
                    Ok(_) => {}
                    Err(reason) => tracing::debug!(addr, reason, "health stream failed"),
                }
                if begun.elapsed() >= STABLE_AFTER {
                    backoff.reset();
                }
            }
            HealthWatch::Refused { retry: true, .. } => {}
            HealthWatch::Refused { .. } | HealthWatch::WrongService(_) => {
                return std::future::pending().await;
            }
        }
        watch = loop {
            tokio::time::sleep(backoff.next_wait()).await;
            match self::watch(sender.clone(), addr, identity).await {
                Ok(watch) => break watch,
                Err(reason) => tracing::debug!(addr, reason, "health stream failed"),
            }
        };
    }
}

/// Reads one stream to its end. Returns the status that it ends with, if it has one.
async fn read(response: Response<Incoming>, report: &impl Fn(bool)) -> Result<Option<Status>, String> {
    let mut body = response.into_body();
    let mut buffer = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| chain(&e))?;
        if let Some(trailers) = frame.trailers_ref() {
            return Ok(Status::from_header_map(trailers));
        }
        buffer.extend_from_slice(&frame.into_data().unwrap_or_default());
        while let Some(message) = wire::next_message(&mut buffer)? {
            report(is_serving(&message));
        }
    }
    Ok(None)
}

/// Returns true if an encoded health answer says that the server serves.
pub fn is_serving(message: &Bytes) -> bool {
    let answer = HealthCheckResponse::decode(message.clone());
    answer.is_ok_and(|answer| answer.status() == ServingStatus::Serving)
}

/// Returns the framed request for the health of the whole server, which every health service knows.
///
/// # Errors
/// Never in practice: the message is a few bytes long.
pub fn whole_server() -> Result<Bytes, String> {
    wire::frame(&HealthCheckRequest { service: String::new() }).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use hyper_util::rt::{TokioExecutor, TokioIo};

    use super::*;

    #[test]
    fn only_serving_serves() {
        for (status, serves) in [(0, false), (1, true), (2, false), (3, false), (99, false)] {
            let message = HealthCheckResponse { status }.encode_to_vec();
            assert_eq!(is_serving(&message.into()), serves, "{status}");
        }
        assert!(!is_serving(&Bytes::from_static(b"\xff")));
    }

    /// Answers health watches over memory as `answer` says; returns how often it was asked within a minute.
    async fn asked_in_a_minute(answer: fn(&mut h2::server::SendResponse<Bytes>)) -> usize {
        let (here, there) = tokio::io::duplex(64 * 1024);
        let asked = Arc::new(AtomicUsize::new(0));
        let server = tokio::spawn({
            let asked = asked.clone();
            async move {
                let mut connection = h2::server::handshake(there).await.unwrap();
                while let Some(Ok((_, mut respond))) = connection.accept().await {
                    asked.fetch_add(1, Relaxed);
                    answer(&mut respond);
                }
            }
        });
        let builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
        let (sender, connection) = builder.handshake(TokioIo::new(here)).await.unwrap();
        let client = tokio::spawn(connection);
        let identity = HeaderValue::from_static("/services/feed");
        let first = watch(sender.clone(), "peer:1", &identity).await.unwrap();
        let following = follow(first, sender, "peer:1", &identity, |_| {});
        tokio::time::timeout(Duration::from_mins(1), following).await.unwrap_err();
        server.abort();
        client.abort();
        asked.load(Relaxed)
    }

    fn head() -> Response<()> {
        Response::builder().header("content-type", "application/grpc").body(()).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_ends_each_health_stream_is_asked_ever_more_rarely() {
        let after_its_head = asked_in_a_minute(|respond| {
            respond.send_response(head(), true).unwrap();
        });
        let after_its_first_message = asked_in_a_minute(|respond| {
            let mut body = respond.send_response(head(), false).unwrap();
            body.send_data(Bytes::from_static(&[0, 0, 0, 0, 2, 8, 1]), true).unwrap();
        });
        // 0.1 s, 0.2 s, ... 10 s, each with jitter
        for asked in [after_its_head.await, after_its_first_message.await] {
            assert!((8..=20).contains(&asked), "asked {asked} times");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_says_in_trailers_that_it_has_no_health_service_is_asked_once() {
        let asked = asked_in_a_minute(|respond| {
            let mut body = respond.send_response(head(), false).unwrap();
            let mut trailers = http::HeaderMap::new();
            trailers.insert("grpc-status", HeaderValue::from_static("12"));
            body.send_trailers(trailers).unwrap();
        });
        assert_eq!(asked.await, 1);
    }
}
