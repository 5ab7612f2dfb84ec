//! The accept loop of every listener: HTTP, gRPC and admin.
//!
//! warp's and tonic's own servers lack what an edge needs: a time limit on headers and on readers that
//! stop, a bound on connections and on what they have unsent, an end to floods of frames, a drain that
//! ends. Here each connection is a task, bounded in number, with TCP_NODELAY, and a drain lets it finish
//! what it began until the grace period is over.

mod flood;
mod output;

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
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
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use crate::error::chain;
use crate::limit::{Limit, Quiet};
use crate::listener::Listener;
use crate::metrics::{Cut, Metrics};
use output::{Output, Stream, Unsent};

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
/// How long an answer must have waited before its connection can be cut to make room for others: short
/// enough that readers who stop cannot hold all the room, long enough for everyone who reads.
const UNSENT_PATIENCE: Duration = Duration::from_millis(100);
/// The same where one connection carries the answers of many.
const SHARED_PATIENCE: Duration = Duration::from_secs(1);
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
    /// What it has yet to send.
    output: Arc<Output>,
    /// The step that the output was last seen at, and at how many looks since: looks and not time, since a
    /// process that stands still must not hold that against its peers.
    seen: AtomicU64,
    seen_again: AtomicU64,
    /// When its answer began to wait, ms on the server's clock.
    unsent_since: AtomicU64,
    /// Ends it at once.
    cut: Notify,
}

/// Falls when a request has been answered or given up.
struct Busy<S> {
    conn: Arc<Conn>,
    server: Arc<Server<S>>,
}

/// The part of a request's answer that is being given.
struct Answering<S> {
    conn: Arc<Conn>,
    server: Arc<Server<S>>,
    /// Held on HTTP/1 until the body has been handed over, or nobody wants it any more. On HTTP/2 a body
    /// that goes on is a health watch, which must not hold the connection's slot.
    _busy: Option<Busy<S>>,
}

impl<S> Drop for Busy<S> {
    fn drop(&mut self) {
        self.conn.idle_since.store(self.server.now(), Relaxed);
        self.conn.busy.fetch_sub(1, Relaxed);
    }
}

/// A body that keeps its connection busy and counts what it hands over.
struct Guarded<B, S> {
    body: Pin<Box<B>>,
    answering: Answering<S>,
}

impl<B: http_body::Body<Data = Bytes>, S> http_body::Body for Guarded<B, S> {
    type Data = Unsent;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Unsent>, B::Error>>> {
        let frame = std::task::ready!(self.body.as_mut().poll_frame(cx));
        let Answering { conn, server, .. } = &self.answering;
        let counted = |frame: http_body::Frame<Bytes>| frame.map_data(|bytes| server.unsent(conn, bytes));
        std::task::Poll::Ready(frame.map(|frame| frame.map(counted)))
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
    limits: Limits,
    metrics: Metrics,
    floods: Quiet,
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

    fn is_http1(&self) -> bool {
        matches!(self.protocol, Protocol::Http1 { .. })
    }

    /// Counts a part of an answer until it is sent. If that is too much for all together, room is made.
    fn unsent(&self, conn: &Conn, bytes: Bytes) -> Unsent {
        let permit = self.limits.unsent.acquire(bytes.len());
        if !conn.output.has_unsent() {
            conn.unsent_since.store(self.now(), Relaxed);
        }
        let unsent = Unsent::new(bytes, &conn.output, permit);
        if self.limits.unsent.is_half_full() {
            self.cut_longest_unsent();
        }
        unsent
    }

    /// Ends the connection whose answer has waited longest, if that is longer than is usual. A connection
    /// of HTTP/2 carries many answers: it waits only while none of them moves.
    fn cut_longest_unsent(&self) {
        let conns = self.lock();
        let waiting = conns.values().filter(|conn| conn.output.has_unsent() && !conn.output.is_cut());
        let now = self.now();
        let waited = |conn: &Arc<Conn>| {
            if self.is_http1() {
                now.saturating_sub(conn.unsent_since.load(Relaxed))
            } else {
                conn.seen_again.load(Relaxed).saturating_mul(ms(self.look_every()))
            }
        };
        let patience = if self.is_http1() { UNSENT_PATIENCE } else { SHARED_PATIENCE };
        let longest = waiting.max_by_key(|conn| waited(conn));
        if let Some(conn) = longest.filter(|conn| waited(conn) >= ms(patience)) {
            self.cut(conn, Cut::Unsent);
        }
    }

    /// Returns the time between two looks at the outputs.
    fn look_every(&self) -> Duration {
        (self.limits.write_timeout / 8).clamp(Duration::from_millis(5), Duration::from_secs(1))
    }

    /// Ends the connections whose output has not moved for too long.
    fn cut_stalled(&self) {
        let limit = ms(self.limits.write_timeout).div_ceil(ms(self.look_every()));
        for conn in self.lock().values() {
            let moved = conn.output.moved();
            if !conn.output.is_pending() || conn.seen.load(Relaxed) != moved {
                conn.seen.store(moved, Relaxed);
                conn.seen_again.store(0, Relaxed);
            } else if conn.seen_again.fetch_add(1, Relaxed) + 1 >= limit {
                self.cut(conn, Cut::WriteTimeout);
            }
        }
    }

    fn cut(&self, conn: &Conn, reason: Cut) {
        if conn.output.cut() {
            self.metrics.cut(reason);
            conn.cut.notify_one();
        }
    }
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
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
        limits,
        metrics: metrics.clone(),
        floods: Quiet::default(),
        stop: stop.clone(),
        clock: Instant::now(),
        conns: Mutex::default(),
    });
    let tasks = TaskTracker::new();
    let cut = CancellationToken::new();
    let _watch = AbortOnDropHandle::new(tokio::spawn(watch(server.clone())));
    let accept_failures = Quiet::default();
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
                server.close_longest_idle();
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

/// Looks after what the connections have unsent, for ever.
async fn watch<S>(server: Arc<Server<S>>) {
    let mut tick = tokio::time::interval(server.look_every());
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        server.cut_stalled();
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

    async fn connection(
        self: Arc<Self>,
        id: u64,
        stream: TcpStream,
        peer: SocketAddr,
        slot: OwnedSemaphorePermit,
    ) {
        let conn = Arc::new(Conn::default());
        conn.idle_since.store(self.now(), Relaxed);
        self.lock().insert(id, conn.clone());
        let _listed = Listed { server: &self, id };
        let client = peer.ip().to_canonical();
        let service = {
            let (server, conn) = (self.clone(), conn.clone());
            hyper::service::service_fn(move |request| {
                conn.busy.fetch_add(1, Relaxed);
                conn.used.store(true, Relaxed);
                let (conn, server) = (conn.clone(), server.clone());
                let busy = Busy { conn: conn.clone(), server: server.clone() };
                let draining = server.stop.begin.is_cancelled();
                let answer = (server.service)(request, client);
                async move {
                    let mut response = answer.await;
                    let http1 = server.is_http1();
                    if draining && http1 {
                        response
                            .headers_mut()
                            .insert(http::header::CONNECTION, HeaderValue::from_static("close"));
                    }
                    let answering = Answering { conn, server, _busy: http1.then_some(busy) };
                    Ok::<_, Infallible>(response.map(|body| Guarded { body: Box::pin(body), answering }))
                }
            })
        };
        let meter = (!self.is_http1()).then(flood::Meter::default);
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
        let http1 = self.is_http1();
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
