//! The open connections of a listener: which are idle, which have unsent output that does not move, and which
//! one has to end when slots or memory run short.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::half_close::Input;
use super::metrics::{Cut, Metrics};
use super::output::{Output, Unsent};
use crate::limit::Limit;

/// Most bytes that all connections of a listener may have unsent: 64 of the largest answers. Peers take
/// typical answers (a few KiB) at once, so only large answers to slow readers come near it.
pub const MAX_UNSENT: usize = 128 * 1024 * 1024;
/// Time that an answer on HTTP/1 must have waited before its connection may be cut to free memory: short
/// enough that peers which stop reading cannot hold all of it, long enough for every peer that reads.
const UNSENT_TIME_HTTP1: Duration = Duration::from_millis(100);
/// The same on HTTP/2, where one connection carries many answers.
const UNSENT_TIME_HTTP2: Duration = Duration::from_secs(1);

/// What bounds the connections of a listener.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections at the same time. At the limit the connection that has been idle longest is closed.
    pub max_connections: usize,
    /// A connection whose output does not move for this long is cut, at most an eighth of it (or 1 s) later.
    pub write_timeout: Duration,
    /// Bytes of answers that all connections together have unsent. From half of it on, the connection whose
    /// answer has waited longest is cut; while it is full, new requests should be refused.
    pub unsent: Arc<Limit>,
}

/// The state of one connection.
#[derive(Debug, Default)]
pub struct Conn {
    /// Requests that are being answered.
    pub active: AtomicUsize,
    /// When the last request ended, ms on the server's clock.
    idle_since: AtomicU64,
    /// True once a request has arrived.
    pub used: AtomicBool,
    /// True once it was asked to close.
    closing: AtomicBool,
    /// Asks it to close.
    pub close: Notify,
    /// What it receives.
    pub input: Arc<Input>,
    /// What it has yet to send.
    pub output: Arc<Output>,
    /// The progress of the output at the last check, and the number of checks since then without progress. Checks
    /// and not time, because a pause of this process must not count against its peers.
    seen: AtomicU64,
    seen_again: AtomicU64,
    /// When its answer began to wait, ms on the server's clock.
    unsent_since: AtomicU64,
    /// Ends it at once.
    pub cut: Notify,
}

/// A request that is being answered; it ends when this is dropped.
pub struct ActiveRequest {
    conn: Arc<Conn>,
    conns: Arc<Conns>,
}

impl ActiveRequest {
    /// Counts a request on a connection; `write` says that it has an effect.
    pub fn new(conn: &Arc<Conn>, conns: &Arc<Conns>, write: bool) -> Self {
        conn.active.fetch_add(1, Relaxed);
        conn.input.begin(write);
        conn.used.store(true, Relaxed);
        Self { conn: conn.clone(), conns: conns.clone() }
    }

    /// Returns the body of its answer, counted while it is sent.
    pub fn track<B>(self, body: B) -> TrackedBody<B> {
        let (conn, conns) = (self.conn.clone(), self.conns.clone());
        let active = conns.http1.then_some(self);
        TrackedBody { body: Box::pin(body), conn, conns, _active: active }
    }
}

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        self.conn.idle_since.store(self.conns.now(), Relaxed);
        self.conn.active.fetch_sub(1, Relaxed);
        self.conn.input.finish();
    }
}

/// A body whose parts count as unsent until the socket has taken them.
pub struct TrackedBody<B> {
    body: Pin<Box<B>>,
    conn: Arc<Conn>,
    conns: Arc<Conns>,
    /// On HTTP/1 the request ends with its body. On HTTP/2 it has ended already: a body that goes on is a
    /// health watch, which must not keep an idle connection from being closed.
    _active: Option<ActiveRequest>,
}

impl<B: http_body::Body<Data = Bytes>> http_body::Body for TrackedBody<B> {
    type Data = Unsent;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Unsent>, B::Error>>> {
        let frame = std::task::ready!(self.body.as_mut().poll_frame(cx));
        let Self { conn, conns, .. } = &*self;
        let counted = |frame: http_body::Frame<Bytes>| frame.map_data(|bytes| conns.unsent(conn, bytes));
        std::task::Poll::Ready(frame.map(|frame| frame.map(counted)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

/// Takes a connection off the list when it is dropped.
pub struct Listed {
    conns: Arc<Conns>,
    id: u64,
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.conns.lock().remove(&self.id);
    }
}

/// The open connections.
pub struct Conns {
    /// True if each connection has one answer at a time.
    http1: bool,
    limits: Limits,
    metrics: Metrics,
    clock: Instant,
    /// Ordered by age, so that the choice among equals is always the same.
    list: Mutex<BTreeMap<u64, Arc<Conn>>>,
}

impl Conns {
    /// Returns an empty list.
    pub fn new(http1: bool, limits: Limits, metrics: &Metrics) -> Arc<Self> {
        let metrics = metrics.clone();
        Arc::new(Self { http1, limits, metrics, clock: Instant::now(), list: Mutex::default() })
    }

    /// Adds a connection. It stays on the list until the second value is dropped.
    pub fn add(self: &Arc<Self>, id: u64) -> (Arc<Conn>, Listed) {
        let conn = Arc::new(Conn::default());
        conn.idle_since.store(self.now(), Relaxed);
        self.lock().insert(id, conn.clone());
        (conn, Listed { conns: self.clone(), id })
    }

    fn now(&self) -> u64 {
        ms(self.clock.elapsed())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, Arc<Conn>>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a part of an answer until it is sent. If all connections together have too much unsent, cuts one.
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

    /// Cuts the connection whose answer has waited longest, if that is unusually long. A connection of HTTP/2
    /// carries many answers: it waits only while none of them moves.
    fn cut_longest_unsent(&self) {
        let conns = self.lock();
        let waiting = conns.values().filter(|conn| conn.output.has_unsent() && !conn.output.is_cut());
        let now = self.now();
        let waited = |conn: &Arc<Conn>| {
            if self.http1 {
                now.saturating_sub(conn.unsent_since.load(Relaxed))
            } else {
                conn.seen_again.load(Relaxed).saturating_mul(ms(self.check_interval()))
            }
        };
        let least = if self.http1 { UNSENT_TIME_HTTP1 } else { UNSENT_TIME_HTTP2 };
        let longest = waiting.max_by_key(|conn| waited(conn));
        if let Some(conn) = longest.filter(|conn| waited(conn) >= ms(least)) {
            self.cut(conn, Cut::Unsent);
        }
    }

    /// Returns the time between two checks of the outputs.
    fn check_interval(&self) -> Duration {
        (self.limits.write_timeout / 8).clamp(Duration::from_millis(5), Duration::from_secs(1))
    }

    /// Cuts the connections whose output has not moved for too long.
    fn cut_stalled(&self) {
        let limit = ms(self.limits.write_timeout).div_ceil(ms(self.check_interval()));
        for conn in self.lock().values() {
            let progress = conn.output.progress();
            if !conn.output.is_pending() || conn.seen.load(Relaxed) != progress {
                conn.seen.store(progress, Relaxed);
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

    /// Asks the connection that has been idle longest to close. Does nothing while one is closing already: each
    /// of them frees one slot.
    pub fn close_longest_idle(&self) {
        let conns = self.lock();
        if conns.values().any(|conn| conn.closing.load(Relaxed)) {
            return;
        }
        let idle = |conn: &&Arc<Conn>| conn.active.load(Relaxed) == 0;
        if let Some(conn) = conns.values().filter(idle).min_by_key(|conn| conn.idle_since.load(Relaxed)) {
            conn.closing.store(true, Relaxed);
            conn.close.notify_one();
        }
    }

    /// Cuts connections whose output stalls, for as long as it is polled.
    pub async fn watch(self: Arc<Self>) {
        let mut tick = tokio::time::interval(self.check_interval());
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            self.cut_stalled();
        }
    }
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn of_equally_idle_connections_the_oldest_closes() {
        let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
        let limits = Limits { max_connections: 9, write_timeout: Duration::MAX, unsent: Limit::new(9, None) };
        let conns = Conns::new(true, limits, &metrics);
        let open: Vec<_> = (1..=9).map(|id| conns.add(id)).collect();
        let active = ActiveRequest::new(&open[0].0, &conns, false);
        let closing = || open.iter().map(|(conn, _)| conn.closing.load(Relaxed)).collect::<Vec<_>>();
        conns.close_longest_idle();
        conns.close_longest_idle();
        let mut expected = [false; 9];
        expected[1] = true; // the first one has a request, and one closes at a time
        assert_eq!(closing(), expected);
        drop(active);
    }
}
