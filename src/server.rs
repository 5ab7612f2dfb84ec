//! The accept loop of every listener: HTTP, gRPC and admin.
//!
//! warp's and tonic's own servers lack what an edge needs: a time limit on headers, a bound on
//! connections, a drain that ends. Here each connection is a task, bounded in number, with TCP_NODELAY,
//! and a drain lets it finish what it began until the grace period is over.

use std::collections::HashMap;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::error::chain;
use crate::listener::Listener;

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

/// How connections end.
#[derive(Clone, Debug)]
pub struct Stop {
    /// Cancelled when the drain begins.
    pub begin: CancellationToken,
    /// Time for calls in flight from then on.
    pub grace: Duration,
}

/// One connection as the others see it.
#[derive(Debug, Default)]
struct Conn {
    /// Requests being answered.
    busy: AtomicUsize,
    /// When the last answer was given, ms on the server's clock.
    idle_since: AtomicU64,
    /// True once a request has come.
    used: AtomicBool,
    /// True once it was asked to close.
    closing: AtomicBool,
    /// Asks it to close.
    close: Notify,
}

/// Falls when a request has been answered or given up.
struct Busy<S> {
    conn: Arc<Conn>,
    server: Arc<Server<S>>,
}

impl<S> Drop for Busy<S> {
    fn drop(&mut self) {
        self.conn.idle_since.store(self.server.now(), Relaxed);
        self.conn.busy.fetch_sub(1, Relaxed);
    }
}

/// A body that keeps its connection busy.
struct Guarded<B, S> {
    body: Pin<Box<B>>,
    _busy: Busy<S>,
}

impl<B: http_body::Body, S> http_body::Body for Guarded<B, S> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<B::Data>, B::Error>>> {
        self.body.as_mut().poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

/// Takes a connection off the list however it ends.
struct Listed<'a, S> {
    server: &'a Server<S>,
    id: u64,
}

impl<S> Drop for Listed<'_, S> {
    fn drop(&mut self) {
        self.server.lock().remove(&self.id);
    }
}

struct Server<S> {
    protocol: Protocol,
    service: S,
    stop: Stop,
    clock: Instant,
    slots: Arc<Semaphore>,
    conns: Mutex<HashMap<u64, Arc<Conn>>>,
}

impl<S> Server<S> {
    fn now(&self) -> u64 {
        u64::try_from(self.clock.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Arc<Conn>>> {
        self.conns.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Serves a listener until `stop` begins, then drains: returns when the last connection has ended or the
/// grace period is over, whatever is first.
///
/// `service` answers one request and does not fail.
pub async fn serve<S, F, B>(
    listener: Listener,
    protocol: Protocol,
    max_connections: usize,
    service: S,
    stop: Stop,
) where
    S: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let server = Arc::new(Server {
        protocol,
        service,
        stop: stop.clone(),
        clock: Instant::now(),
        slots: Arc::new(Semaphore::new(max_connections)),
        conns: Mutex::default(),
    });
    let tasks = TaskTracker::new();
    let cut = CancellationToken::new();
    let mut next_id = 0;
    let mut open = |stream, permit| {
        next_id += 1;
        let connection = server.clone().connection(next_id, stream, permit);
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
                tracing::warn!(%error, addr = %listener.addr(), "accept failed");
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
    S: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
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
            self.close_longest_idle();
            let freed = self.slots.clone().acquire_owned();
            if let Ok(Ok(permit)) = tokio::time::timeout(SLOT_RETRY, freed).await {
                return permit;
            }
        }
    }

    fn close_longest_idle(&self) {
        let conns = self.lock();
        let idle = |conn: &&Arc<Conn>| conn.busy.load(Relaxed) == 0 && !conn.closing.load(Relaxed);
        if let Some(conn) = conns.values().filter(idle).min_by_key(|conn| conn.idle_since.load(Relaxed)) {
            conn.closing.store(true, Relaxed);
            conn.close.notify_one();
        }
    }

    async fn connection(self: Arc<Self>, id: u64, stream: TcpStream, slot: OwnedSemaphorePermit) {
        let conn = Arc::new(Conn::default());
        conn.idle_since.store(self.now(), Relaxed);
        self.lock().insert(id, conn.clone());
        let _listed = Listed { server: &self, id };
        let service = {
            let (server, conn) = (self.clone(), conn.clone());
            hyper::service::service_fn(move |request| {
                conn.busy.fetch_add(1, Relaxed);
                conn.used.store(true, Relaxed);
                let busy = Busy { conn: conn.clone(), server: server.clone() };
                let draining = server.stop.begin.is_cancelled();
                let http1 = matches!(server.protocol, Protocol::Http1 { .. });
                let answer = (server.service)(request);
                async move {
                    let mut response = answer.await;
                    if draining && http1 {
                        response
                            .headers_mut()
                            .insert(http::header::CONNECTION, HeaderValue::from_static("close"));
                    }
                    // busy until the body has been written, or nobody wants it any more
                    Ok::<_, Infallible>(response.map(|body| Guarded { body: Box::pin(body), _busy: busy }))
                }
            })
        };
        let io = TokioIo::new(stream);
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
        let http1 = matches!(self.protocol, Protocol::Http1 { .. });
        let mut connection = std::pin::pin!(connection);
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
            result = &mut connection => return log_end(result),
            () = first_request => return,
            () = conn.close.notified() => true,
            () = self.stop.begin.cancelled() => false,
        };
        if !evicted && !http1 && !conn.used.load(Relaxed) {
            return;
        }
        if !evicted && http1 && conn.busy.load(Relaxed) == 0 {
            tokio::select! {
                result = &mut connection => return log_end(result),
                () = tokio::time::sleep(IDLE_LINGER) => {}
            }
        }
        finish(connection.as_mut());
        let limit = if evicted { EVICTION } else { Duration::MAX };
        if let Ok(result) = tokio::time::timeout(limit, connection).await {
            log_end(result);
        }
    }
}

fn log_end(result: hyper::Result<()>) {
    if let Err(error) = result {
        tracing::debug!(error = chain(&error), "connection ended");
    }
}
