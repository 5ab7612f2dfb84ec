//! The accept loop of every listener: HTTP, gRPC and admin.
//!
//! warp's and tonic's own servers lack what an edge needs: a time limit on headers and on readers that
//! stop, a bound on connections and on what they have unsent, an end to floods of frames, a drain that
//! ends. Here each connection is a task, bounded in number, with TCP_NODELAY, and a drain lets it finish
//! what it began until the grace period is over.

mod conns;
mod flood;
pub mod listener;
pub mod metrics;
mod output;

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use self::metrics::{Cut, Metrics};
use crate::api::error::chain;
use crate::limit::Limit;
use crate::server::listener::Listener;
use crate::telemetry::log::LogThrottle;
use conns::{Busy, Conn, Conns};
use output::Stream;

/// How long an idle kept-alive connection stays open once the drain began: a request may be on its way.
const IDLE_LINGER: Duration = Duration::from_millis(50);
/// How long a connection that was asked to make room may take to end; then it is cut.
const EVICTION: Duration = Duration::from_secs(1);
/// Time from an HTTP/2 connection to its first request.
const FIRST_REQUEST: Duration = Duration::from_secs(10);
/// Wait after a failed accept (file descriptors used up), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// While no slot is free: how often an idle connection is looked for.
const SLOT_RETRY: Duration = Duration::from_millis(20);
/// Largest head of an HTTP/1 request; above it hyper answers 431. Larger than hyper's longest URI, so
/// that a longer one is a 414.
const MAX_HEAD: usize = 128 * 1024;
/// Most header lines of an HTTP/1 request; above it hyper answers 431.
const MAX_HEADERS: usize = 100;
/// Resets of calls that the server has not begun to serve, per connection. Callers that hang up in a
/// burst cause them (256 of them more than h2's default 20, which then ends the connection for everyone
/// on it); a rapid reset attack still meets this bound.
const MAX_PENDING_RESETS: usize = 10_000;
/// HTTP/2 pings to a caller, and how long an answer may take: finds dead peers.
const PING: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(10));
/// Resets that we send because a peer broke a rule of a stream, per connection; then the connection ends
/// (CVE-2025-8671). hyper's default, written down.
const MAX_ERROR_RESETS: usize = 1024;
/// Largest head of an HTTP/2 request, bytes as RFC 9113 (6.5.2) counts them; it bounds the number of
/// CONTINUATION frames too. Larger ones are refused with 431 by h2, much larger ones end the connection.
const MAX_HEADER_LIST: u32 = 16 * 1024;
/// What one stream may have in h2's buffer beyond the part being sent, bytes.
const MAX_SEND_BUFFER: usize = 256 * 1024;
/// Most that all connections of a listener may have unsent, bytes: 64 of the largest answers. Readers
/// take typical answers (a few KiB) at once, so that only large answers to slow readers come near it.
pub const MAX_UNSENT: usize = 128 * 1024 * 1024;
/// HTTP/2 windows for request bodies: a largest message fits without a round trip.
const WINDOW: u32 = 1024 * 1024;

/// What speaks on a listener.
#[derive(Clone, Copy, Debug)]
pub enum Protocol {
    /// HTTP/1.1.
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

/// What bounds the connections of a listener.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections at the same time. At the limit the one that has been idle longest makes room.
    pub max_connections: usize,
    /// A connection whose output does not move for this long ends, at most an eighth (or 1 s) later.
    pub write_timeout: Duration,
    /// Bytes of answers that all connections together have unsent. From half of it on the connection whose
    /// answer has waited longest is cut; who answers calls should refuse more of them while it is full.
    pub unsent: Arc<Limit>,
}

/// How connections end.
#[derive(Clone, Debug)]
pub struct Stop {
    /// Cancelled when the drain begins.
    pub begin: CancellationToken,
    /// Time for calls in flight from then on.
    pub grace: Duration,
}

struct Server<S> {
    protocol: Protocol,
    service: S,
    conns: Arc<Conns>,
    metrics: Metrics,
    floods: LogThrottle,
    stop: Stop,
    slots: Arc<Semaphore>,
}

/// Serves a listener until `stop` begins, then drains: returns when the last connection has ended or the
/// grace period is over, whatever is first.
///
/// `service` answers one request, from the address beside it, and does not fail.
pub async fn serve<S, F, B>(
    listener: Listener,
    protocol: Protocol,
    limits: Limits,
    metrics: &Metrics,
    service: S,
    stop: Stop,
) where
    S: Fn(Request<Incoming>, IpAddr) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    if let Err(error) = listener.bound_output(limits.write_timeout) {
        tracing::warn!(%error, addr = %listener.addr(), "the kernel's part of the output is not bounded");
    }
    let server = Arc::new(Server {
        protocol,
        service,
        slots: Arc::new(Semaphore::new(limits.max_connections)),
        conns: Conns::new(matches!(protocol, Protocol::Http1 { .. }), limits, metrics),
        metrics: metrics.clone(),
        floods: LogThrottle::default(),
        stop: stop.clone(),
    });
    let tasks = TaskTracker::new();
    let cut = CancellationToken::new();
    let _watch = AbortOnDropHandle::new(tokio::spawn(server.conns.clone().watch()));
    let accept_failures = LogThrottle::default();
    let mut next_id = 0;
    let mut open = |(stream, peer): (TcpStream, SocketAddr), permit| {
        next_id += 1;
        let connection = server.clone().connection(next_id, stream, peer, permit);
        tasks.spawn(cut.clone().run_until_cancelled_owned(connection));
    };
    let mut waiting = Vec::new();
    while let Some(accepted) = stop.begin.run_until_cancelled(listener.accept()).await {
        match accepted {
            Ok(stream) => match stop.begin.run_until_cancelled(server.slot()).await {
                Some(permit) => open(stream, permit),
                None => waiting.push(stream),
            },
            Err(error) => {
                if let Some(times) = accept_failures.note() {
                    tracing::warn!(%error, times, addr = %listener.addr(), "accept failed");
                }
                // most likely file descriptors have run out: an idle connection gives its own
                server.conns.close_longest_idle();
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    // what the kernel has already accepted is answered, not reset
    waiting.extend(listener.close());
    for stream in waiting {
        if let Ok(permit) = server.slots.clone().try_acquire_owned() {
            open(stream, permit);
        }
    }
    tasks.close();
    if tokio::time::timeout(stop.grace, tasks.wait()).await.is_err() {
        tracing::warn!(connections = tasks.len(), "grace period is over, cutting connections");
        cut.cancel();
    }
}

impl<S, F, B> Server<S>
where
    S: Fn(Request<Incoming>, IpAddr) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    /// Returns a slot for one more connection. With none free the longest idle connection is asked to
    /// close, as often as it takes.
    async fn slot(&self) -> OwnedSemaphorePermit {
        loop {
            if let Ok(permit) = self.slots.clone().try_acquire_owned() {
                return permit;
            }
            self.conns.close_longest_idle();
            let freed = self.slots.clone().acquire_owned();
            if let Ok(Ok(permit)) = tokio::time::timeout(SLOT_RETRY, freed).await {
                return permit;
            }
        }
    }

    async fn connection(
        self: Arc<Self>,
        id: u64,
        stream: TcpStream,
        peer: SocketAddr,
        slot: OwnedSemaphorePermit,
    ) {
        let (conn, _listed) = self.conns.add(id);
        let client = peer.ip().to_canonical();
        let service = {
            let (server, conn) = (self.clone(), conn.clone());
            hyper::service::service_fn(move |request| {
                let busy = Busy::new(&conn, &server.conns);
                let http1 = server.conns.is_http1();
                let draining = server.stop.begin.is_cancelled();
                let answer = (server.service)(request, client);
                async move {
                    let mut response = answer.await;
                    if draining && http1 {
                        response
                            .headers_mut()
                            .insert(http::header::CONNECTION, HeaderValue::from_static("close"));
                    }
                    Ok::<_, Infallible>(response.map(|body| busy.guard(body)))
                }
            })
        };
        let meter = (!self.conns.is_http1()).then(flood::Meter::default);
        let io = TokioIo::new(Stream::new(stream, conn.output.clone(), meter));
        match self.protocol {
            Protocol::Http1 { header_timeout } => {
                let connection = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(header_timeout)
                    .max_buf_size(MAX_HEAD)
                    .max_headers(MAX_HEADERS)
                    .half_close(false)
                    .serve_connection(io, service);
                self.drive(connection, &conn, http1::Connection::graceful_shutdown).await;
            }
            Protocol::Http2 { max_concurrent_streams } => {
                let connection = http2::Builder::new(TokioExecutor::new())
                    .timer(TokioTimer::new())
                    .keep_alive_interval(PING.0)
                    .keep_alive_timeout(PING.1)
                    .max_concurrent_streams(max_concurrent_streams)
                    .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
                    .max_local_error_reset_streams(MAX_ERROR_RESETS)
                    .max_header_list_size(MAX_HEADER_LIST)
                    .max_send_buf_size(MAX_SEND_BUFFER)
                    .initial_connection_window_size(WINDOW)
                    .initial_stream_window_size(WINDOW)
                    .serve_connection(io, service);
                self.drive(connection, &conn, http2::Connection::graceful_shutdown).await;
            }
        }
        drop(slot);
    }

    /// Polls a connection to its end; tells it to finish when the drain begins or when its slot is wanted.
    async fn drive<C>(&self, connection: C, conn: &Conn, finish: impl Fn(Pin<&mut C>))
    where
        C: Future<Output = hyper::Result<()>>,
    {
        let http1 = self.conns.is_http1();
        let mut connection = std::pin::pin!(connection);
        let mut cut = std::pin::pin!(conn.cut.notified());
        // hyper has a time limit for the first request on HTTP/1 only
        let first_request = async {
            if !http1 {
                tokio::time::sleep(FIRST_REQUEST).await;
            }
            if http1 || conn.used.load(Relaxed) {
                std::future::pending::<()>().await;
            }
        };
        let evicted = tokio::select! {
            biased; // what has arrived is seen before the order to stop
            result = &mut connection => return self.log_end(result),
            () = &mut cut => return,
            () = first_request => return,
            () = conn.close.notified() => true,
            () = self.stop.begin.cancelled() => false,
        };
        let quiet = if http1 { conn.busy.load(Relaxed) == 0 } else { !conn.used.load(Relaxed) };
        if !evicted && quiet {
            tokio::select! {
                result = &mut connection => return self.log_end(result),
                () = &mut cut => return,
                () = tokio::time::sleep(IDLE_LINGER) => {}
            }
        }
        if !http1 && !conn.used.load(Relaxed) {
            return; // hyper would wait for a preface that may never come
        }
        finish(connection.as_mut());
        let limit = if evicted { EVICTION } else { Duration::MAX };
        tokio::select! {
            biased;
            result = connection => self.log_end(result),
            () = cut => {}
            () = tokio::time::sleep(limit) => {}
        }
    }

    fn log_end(&self, result: hyper::Result<()>) {
        let Err(error) = result else { return };
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
        while let Some(error) = cause {
            let h2 = error.downcast_ref::<h2::Error>();
            let io = error.downcast_ref::<std::io::Error>().or_else(|| h2?.get_io());
            // the kernel's word for data that nobody acknowledged
            if io.is_some_and(|io| io.kind() == std::io::ErrorKind::TimedOut) {
                self.metrics.cut(Cut::WriteTimeout);
            }
            if h2.is_some_and(is_flood) {
                self.metrics.cut(Cut::Flood);
                if let Some(times) = self.floods.note() {
                    tracing::warn!(error = chain(error), times, "connection ended for a flood");
                }
                return;
            }
            cause = error.source();
        }
        tracing::debug!(error = chain(&error), "connection ended");
    }
}

/// Returns true if the meter or h2 itself has seen a flood.
fn is_flood(error: &h2::Error) -> bool {
    let metered = error.get_io().and_then(std::io::Error::get_ref);
    metered.is_some_and(<dyn std::error::Error + Send + Sync>::is::<flood::Flood>)
        || error.is_library() && error.reason() == Some(h2::Reason::ENHANCE_YOUR_CALM)
}
