//! The connections of a listener as its accept loop sees them: who is idle, whose output stands still, and
//! who has to go when room is short.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::Limits;
use super::metrics::{Cut, Metrics};
use super::output::{Output, Unsent};

/// How long an answer must have waited before its connection can be cut to make room for others: short
/// enough that readers who stop cannot hold all the room, long enough for everyone who reads.
const UNSENT_PATIENCE: Duration = Duration::from_millis(100);
/// The same where one connection carries the answers of many.
const SHARED_PATIENCE: Duration = Duration::from_secs(1);

/// One connection as the others see it.
#[derive(Debug, Default)]
pub struct Conn {
    /// Requests being answered.
    pub busy: AtomicUsize,
    /// When the last answer was given, ms on the server's clock.
    idle_since: AtomicU64,
    /// True once a request has come.
    pub used: AtomicBool,
    /// True once it was asked to close.
    closing: AtomicBool,
    /// Asks it to close.
    pub close: Notify,
    /// What it has yet to send.
    pub output: Arc<Output>,
    /// The step that the output was last seen at, and at how many looks since: looks and not time, since a
    /// process that stands still must not hold that against its peers.
    seen: AtomicU64,
    seen_again: AtomicU64,
    /// When its answer began to wait, ms on the server's clock.
    unsent_since: AtomicU64,
    /// Ends it at once.
    pub cut: Notify,
}

/// Falls when a request has been answered or given up.
pub struct Busy {
    conn: Arc<Conn>,
    conns: Arc<Conns>,
}

impl Busy {
    /// Notes that a request is being answered.
    pub fn new(conn: &Arc<Conn>, conns: &Arc<Conns>) -> Self {
        conn.busy.fetch_add(1, Relaxed);
        conn.used.store(true, Relaxed);
        Self { conn: conn.clone(), conns: conns.clone() }
    }

    /// Puts a body on its way.
    pub fn guard<B>(self, body: B) -> Guarded<B> {
        let (conn, conns) = (self.conn.clone(), self.conns.clone());
        let busy = conns.is_http1().then_some(self);
        Guarded { body: Box::pin(body), conn, conns, _busy: busy }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.conn.idle_since.store(self.conns.now(), Relaxed);
        self.conn.busy.fetch_sub(1, Relaxed);
    }
}

/// A body that keeps its connection busy and counts what it hands over.
pub struct Guarded<B> {
    body: Pin<Box<B>>,
    conn: Arc<Conn>,
    conns: Arc<Conns>,
    /// Held on HTTP/1 until the body has been handed over, or nobody wants it any more. On HTTP/2 a body
    /// that goes on is a health watch, which must not hold the connection's slot.
    _busy: Option<Busy>,
}

impl<B: http_body::Body<Data = Bytes>> http_body::Body for Guarded<B> {
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

/// Takes a connection off the list however it ends.
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
    http1: bool,
    limits: Limits,
    metrics: Metrics,
    clock: Instant,
    list: Mutex<HashMap<u64, Arc<Conn>>>,
}

impl Conns {
    /// Returns an empty list.
    pub fn new(http1: bool, limits: Limits, metrics: &Metrics) -> Arc<Self> {
        let metrics = metrics.clone();
        Arc::new(Self { http1, limits, metrics, clock: Instant::now(), list: Mutex::default() })
    }

    /// Adds a connection; it leaves the list with what is returned beside it.
    pub fn add(self: &Arc<Self>, id: u64) -> (Arc<Conn>, Listed) {
        let conn = Arc::new(Conn::default());
        conn.idle_since.store(self.now(), Relaxed);
        self.lock().insert(id, conn.clone());
        (conn, Listed { conns: self.clone(), id })
    }

    fn now(&self) -> u64 {
        u64::try_from(self.clock.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Arc<Conn>>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns true if each connection has one answer at a time.
    pub fn is_http1(&self) -> bool {
        self.http1
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

    /// Asks the connection that has been idle longest to close, unless one is closing already: each makes
    /// room for one.
    pub fn close_longest_idle(&self) {
        let conns = self.lock();
        if conns.values().any(|conn| conn.closing.load(Relaxed)) {
            return;
        }
        let idle = |conn: &&Arc<Conn>| conn.busy.load(Relaxed) == 0;
        if let Some(conn) = conns.values().filter(idle).min_by_key(|conn| conn.idle_since.load(Relaxed)) {
            conn.closing.store(true, Relaxed);
            conn.close.notify_one();
        }
    }

    /// Looks after what the connections have unsent, for ever.
    pub async fn watch(self: Arc<Self>) {
        let mut tick = tokio::time::interval(self.look_every());
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
