//! One connection: serves HTTP/1 or HTTP/2 on it, and decides when it ends.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use super::conn::{Conn, Peer};
use super::conns::{ActiveRequest, Conns};
use super::flood;
use super::half_close::{End, RequestBody};
use super::metrics::{Cut, Metrics};
use super::output::{Received, Stream};
use crate::api::error::chain;
use crate::telemetry::log::LogThrottle;
use crate::tls::accept::{Accepted, Authenticated};
use crate::tls::edge::HTTP2;
use crate::tls::{Acceptor, Validity};

/// Time that an idle kept-alive connection stays open once the drain has begun: a request may be on its way.
const IDLE_LINGER: Duration = Duration::from_millis(50);
/// Time that an idle connection may take to end once it was told that the server drains. It bounds the wait for
/// peers that are frozen, for streams that are open, and for heads that are not complete.
const IDLE_DRAIN: Duration = Duration::from_millis(250);
/// Time that an idle connection may take to end after it was asked to make room; then it is cut.
const EVICTION: Duration = Duration::from_secs(1);
/// Time in which a connection ends whose peer is trusted no more, whatever is still called on it.
const OUTLIVED: Duration = Duration::from_secs(30);
/// Time from the opening of an HTTP/2 connection to its first frame. After that it may be idle for as long as its
/// peer answers pings: clients connect ahead.
const HELLO: Duration = Duration::from_secs(10);
/// Largest head of an HTTP/1 request, bytes; hyper answers larger ones with 431. Larger than hyper's longest
/// URI, so that a URI that is too long is answered with 414.
const MAX_HEAD: usize = 128 * 1024;
/// Most header lines of an HTTP/1 request; hyper answers more with 431.
const MAX_HEADERS: usize = 100;
/// Most resets, per connection, of calls that the server has not begun to serve. Callers that hang up in a
/// burst cause such resets: 256 of them exceed h2's default of 20, which ends the connection for all of its
/// users. A rapid reset attack still meets this bound.
const MAX_PENDING_RESETS: usize = 10_000;
/// Interval of HTTP/2 pings to a caller, and the time for their answer: finds dead peers.
const PING: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(10));
/// Most resets, per connection, that this server sends because a peer broke a rule of a stream; then the
/// connection ends (CVE-2025-8671). hyper's default, stated here.
const MAX_ERROR_RESETS: usize = 1024;
/// Largest head of an HTTP/2 request, bytes as RFC 9113 (6.5.2) counts them. It bounds the number of
/// CONTINUATION frames too. h2 refuses larger heads with 431 and ends the connection for much larger ones.
const MAX_HEADER_LIST: u32 = 16 * 1024;
/// The same of a caller of the gateway, whose path and token may have 8 KiB each.
const EDGE_HEADER_LIST: u32 = 32 * 1024;
/// Requests at the same time on one HTTP/2 connection of a caller of the gateway (RFC 9113, 6.5.2: at least 100).
const EDGE_STREAMS: u32 = 128;
/// Most bytes of one stream in h2's buffer, beyond the part that is being sent.
const MAX_SEND_BUFFER: usize = 256 * 1024;
/// HTTP/2 windows for request bodies, bytes: the largest message fits without a round trip.
const WINDOW: u32 = 1024 * 1024;

/// The protocol of a listener.
#[derive(Clone, Copy, Debug)]
pub enum Protocol {
    /// HTTP/1.1. With TLS also HTTP/2, for those who ask for it.
    Http1 {
        /// Time for a request's head, and for a kept-alive connection to stay idle.
        header_timeout: Duration,
    },
    /// HTTP/2 with prior knowledge, for gRPC.
    Http2 {
        /// Calls at the same time on one connection.
        max_concurrent_streams: u32,
    },
}

impl Protocol {
    /// Returns the protocol of a connection on which `alpn` was agreed on.
    fn agreed(self, alpn: Option<&[u8]>) -> Self {
        match self {
            Self::Http1 { .. } if alpn == Some(HTTP2) => Self::Http2 { max_concurrent_streams: EDGE_STREAMS },
            listened => listened,
        }
    }

    /// Returns true for HTTP/1.1.
    #[must_use]
    pub const fn is_http1(self) -> bool {
        matches!(self, Self::Http1 { .. })
    }
}

/// When a server stops, and how long its drain may take.
#[derive(Clone, Debug)]
pub struct Stop {
    /// Cancelled when the drain begins.
    pub begin: CancellationToken,
    /// Time for requests in flight from then on.
    pub grace: Duration,
}

/// What the connections of a listener share.
pub struct Server<S> {
    protocol: Protocol,
    service: S,
    conns: Arc<Conns>,
    metrics: Metrics,
    floods: LogThrottle,
    outlived: LogThrottle,
    stop: Stop,
    tls: Option<Acceptor>,
}

impl<S, F, B> Server<S>
where
    S: Fn(Request<RequestBody>, IpAddr) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    /// Returns a server of `protocol` that answers with `service`.
    pub fn new(protocol: Protocol, service: S, conns: Arc<Conns>, metrics: Metrics, stop: Stop) -> Self {
        let (floods, outlived) = (LogThrottle::default(), LogThrottle::default());
        Self { protocol, service, conns, metrics, floods, outlived, stop, tls: None }
    }

    /// Returns the same for a listener whose connections have TLS.
    pub fn with_tls(self, tls: Option<Acceptor>) -> Self {
        Self { tls, ..self }
    }

    /// Serves one connection to its end, and then gives its slot back.
    pub async fn connection(
        self: Arc<Self>,
        id: u64,
        stream: TcpStream,
        peer: SocketAddr,
        slot: OwnedSemaphorePermit,
    ) {
        let (conn, _listed) = self.conns.add(id);
        let Some(Accepted { stream, caller, open: _open }) = self.begin_tls(stream, peer, &conn).await else {
            return;
        };
        let validity = caller.map(|Authenticated { identity, validity }| {
            if let Some(identity) = identity {
                let _ = conn.caller.set(identity); // it is the first one
            }
            validity
        });
        let edge = self.protocol.is_http1();
        let protocol = self.protocol.agreed(stream.alpn());
        let http1 = protocol.is_http1();
        let client = peer.ip().to_canonical();
        let service = {
            let (server, conn) = (self.clone(), conn.clone());
            hyper::service::service_fn(move |request: Request<Incoming>| {
                let active = ActiveRequest::new(&conn, &server.conns, !request.method().is_safe());
                let mut request = request.map(|body| RequestBody::new(body, conn.input.clone()));
                if !http1 {
                    request.extensions_mut().insert(Peer::new(conn.clone()));
                }
                let draining = server.stop.begin.is_cancelled();
                // hyper moves it a few times, on HTTP/2 ten times: it is large
                let answer = Box::pin((server.service)(request, client));
                async move {
                    let mut response = answer.await;
                    if draining && http1 {
                        response
                            .headers_mut()
                            .insert(http::header::CONNECTION, HeaderValue::from_static("close"));
                    }
                    Ok::<_, Infallible>(response.map(|body| active.track(body, http1)))
                }
            })
        };
        let received = match protocol {
            Protocol::Http1 { .. } => Received::Http1(End::new(conn.input.clone())),
            Protocol::Http2 { .. } => Received::Http2(flood::Meter::default(), conn.drained.clone()),
        };
        let io = TokioIo::new(Stream::new(stream, conn.output.clone(), received));
        match protocol {
            Protocol::Http1 { header_timeout } => {
                let connection = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(header_timeout)
                    .max_buf_size(MAX_HEAD)
                    .max_headers(MAX_HEADERS)
                    .half_close(false)
                    .serve_connection(io, service);
                self.drive(
                    connection,
                    &conn,
                    protocol,
                    validity.as_ref(),
                    http1::Connection::graceful_shutdown,
                )
                .await;
            }
            Protocol::Http2 { max_concurrent_streams } => {
                let connection = http2::Builder::new(TokioExecutor::new())
                    .timer(TokioTimer::new())
                    .keep_alive_interval(PING.0)
                    .keep_alive_timeout(PING.1)
                    .max_concurrent_streams(max_concurrent_streams)
                    .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
                    .max_local_error_reset_streams(MAX_ERROR_RESETS)
                    .max_header_list_size(if edge { EDGE_HEADER_LIST } else { MAX_HEADER_LIST })
                    .max_send_buf_size(MAX_SEND_BUFFER)
                    .initial_connection_window_size(WINDOW)
                    .initial_stream_window_size(WINDOW)
                    .serve_connection(io, service);
                self.drive(
                    connection,
                    &conn,
                    protocol,
                    validity.as_ref(),
                    http2::Connection::graceful_shutdown,
                )
                .await;
            }
        }
        drop(slot);
    }

    /// Begins TLS if the listener has it; `None` if the connection ends before that.
    async fn begin_tls(&self, stream: TcpStream, peer: SocketAddr, conn: &Conn) -> Option<Accepted> {
        let Some(acceptor) = &self.tls else {
            return Some(Accepted::plain(stream));
        };
        let drained = async {
            self.stop.begin.cancelled().await;
            tokio::time::sleep(IDLE_DRAIN).await;
        };
        tokio::select! {
            accepted = Box::pin(acceptor.accept(stream, peer)) => accepted,
            () = conn.close.notified() => None,
            () = drained => None,
        }
    }

    /// Waits until a caller of the gateway has not used its HTTP/2 connection for as long as one on HTTP/1 may be idle.
    /// Connections between the parts may be idle: they are opened ahead.
    async fn unused(&self, conn: &Conn, protocol: Protocol) {
        match (self.protocol, protocol) {
            (Protocol::Http1 { header_timeout }, Protocol::Http2 { .. }) => {
                self.conns.idle(conn, header_timeout).await;
            }
            _ => std::future::pending().await,
        }
    }

    /// Waits until the certificate of the peer counts no more.
    async fn outlived(&self, validity: Option<&Validity>) {
        let Some(validity) = validity else {
            return std::future::pending().await;
        };
        let reason = validity.ended().await;
        if let Some(times) = self.outlived.note() {
            tracing::info!(reason, times, "a connection has outlived the certificate of its peer, ending it");
        }
    }

    /// Polls a connection to its end. Calls `finish` on it when the drain begins, its slot is wanted, or the certificate of
    /// its peer counts no more.
    async fn drive<C>(
        &self,
        connection: C,
        conn: &Conn,
        protocol: Protocol,
        validity: Option<&Validity>,
        finish: impl Fn(Pin<&mut C>),
    ) where
        C: Future<Output = hyper::Result<()>>,
    {
        let http1 = protocol.is_http1();
        let greeted = || http1 || conn.output.is_greeted();
        let mut connection = std::pin::pin!(connection);
        let mut cut = std::pin::pin!(conn.cut.notified());
        // hyper limits the time to the first request on HTTP/1, and nothing on HTTP/2
        let no_hello = async {
            tokio::time::sleep(HELLO).await;
            if greeted() {
                std::future::pending::<()>().await;
            }
        };
        // a peer that is trusted no more would keep the connection from being idle by calling on
        let (evicted, within) = tokio::select! {
            biased; // requests that have arrived are read before the order to stop is followed
            result = &mut connection => return self.log_end(result),
            () = &mut cut => return,
            () = no_hello => return,
            () = conn.close.notified() => (true, Duration::MAX),
            () = self.outlived(validity) => (true, OUTLIVED),
            () = self.unused(conn, protocol) => (true, Duration::MAX),
            () = self.stop.begin.cancelled() => (false, Duration::MAX),
        };
        if !evicted && !conn.is_busy() && (http1 || !greeted()) {
            tokio::select! {
                result = &mut connection => return self.log_end(result),
                () = &mut cut => return,
                () = tokio::time::sleep(IDLE_LINGER) => {}
            }
        }
        if !greeted() {
            return; // hyper would wait for a preface that may never come
        }
        finish(connection.as_mut());
        tokio::select! {
            biased;
            result = connection => self.log_end(result),
            () = cut => {}
            () = self.conns.idle(conn, if evicted { EVICTION } else { IDLE_DRAIN }) => {}
            () = tokio::time::sleep(within) => {}
        }
    }

    /// Logs why a connection failed, if it did, and counts it if its peer is the cause.
    fn log_end(&self, result: hyper::Result<()>) {
        let Err(error) = result else { return };
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
        while let Some(error) = cause {
            let h2 = error.downcast_ref::<h2::Error>();
            let io = error.downcast_ref::<std::io::Error>().or_else(|| h2?.get_io());
            // the kernel reports unacknowledged data so (TCP_USER_TIMEOUT)
            if io.is_some_and(|io| io.kind() == std::io::ErrorKind::TimedOut) {
                self.metrics.cut(Cut::WriteTimeout);
            }
            if h2.is_some_and(is_flood) {
                self.metrics.cut(Cut::Flood);
                if let Some(times) = self.floods.note() {
                    tracing::warn!(error = chain(error), times, "connection ended: its peer floods it");
                }
                return;
            }
            cause = error.source();
        }
        tracing::debug!(error = chain(&error), "connection ended");
    }
}

/// Returns true if [`flood::Meter`] or h2 itself has detected a flood.
fn is_flood(error: &h2::Error) -> bool {
    let metered = error.get_io().and_then(std::io::Error::get_ref);
    metered.is_some_and(<dyn std::error::Error + Send + Sync>::is::<flood::Flood>)
        || error.is_library() && error.reason() == Some(h2::Reason::ENHANCE_YOUR_CALM)
}
