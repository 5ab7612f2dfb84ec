//! The open connections of a listener: which are idle, which have unsent output that does not move, and which
//! one has to end when slots or memory run short.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::clock::{Clock, ms};
use super::conn::Conn;
use super::metrics::{Cut, Metrics};
use super::output::{Output, Unsent};
use super::unsent::UnsentLimit;

/// Most bytes that the connections of a listener may have unsent, each counted up to its share: 64 of the largest
/// answers. Peers take typical answers (a few KiB) at once, so only large answers to slow readers come near it.
pub const MAX_UNSENT: usize = 128 * 1024 * 1024;
/// Time that an answer on HTTP/1 must have waited before its connection may be cut to free memory: short
/// enough that peers which stop reading cannot hold all of it, long enough for every peer that reads.
const UNSENT_TIME_HTTP1: u64 = 100;
/// Time in which a connection that was asked to close ends, if its peer takes part, ms: then another one is asked.
const ENDING: u64 = 100;
/// Time between two looks for a connection to cut while memory is short.
const SHORT_INTERVAL: Duration = Duration::from_millis(50);

/// What bounds the connections of a listener.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections at the same time. At the limit the connection that has been idle longest is closed.
    pub max_connections: usize,
    /// A connection whose output does not move for this long is cut, at most an eighth of it (or 1 s) later.
    pub write_timeout: Duration,
    /// Bytes of answers that all connections together have unsent. While they are short, connections that do not
    /// read are cut; while they are used up, new requests should be refused.
    pub unsent: Arc<UnsentLimit>,
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
        Self { conn: conn.clone(), conns: conns.clone() }
    }

    /// Returns the body of its answer, counted while it is sent; `http1` is the protocol of the connection.
    pub fn track<B>(self, body: B, http1: bool) -> TrackedBody<B> {
        let (conn, conns) = (self.conn.clone(), self.conns.clone());
        let active = http1.then_some(self);
        TrackedBody { body: Box::pin(body), conn, conns, _active: active }
    }
}

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        self.conn.idle_since.store(self.conns.clock.now(), Relaxed);
        self.conn.active.fetch_sub(1, Relaxed);
        self.conn.input.finish();
    }
}

/// A body whose parts count as unsent until the socket has taken them.
pub struct TrackedBody<B> {
    body: Pin<Box<B>>,
    conn: Arc<Conn>,
    conns: Arc<Conns>,
    /// On HTTP/1 the request ends with its body. On HTTP/2 it has ended already, see [`Conn::is_busy`].
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
    /// True if every connection has one answer at a time.
    http1: bool,
    limits: Limits,
    metrics: Metrics,
    pub clock: Arc<Clock>,
    /// Ordered by age, so that the choice among equals is always the same.
    list: Mutex<BTreeMap<u64, Arc<Conn>>>,
    /// Tells the watch that memory has become short.
    short: Notify,
}

impl Conns {
    /// Returns an empty list.
    pub fn new(http1: bool, limits: Limits, metrics: &Metrics) -> Arc<Self> {
        let (metrics, clock) = (metrics.clone(), Arc::new(Clock::new()));
        Arc::new(Self { http1, limits, metrics, clock, list: Mutex::default(), short: Notify::new() })
    }

    /// Adds a connection. It stays on the list until the second value is dropped.
    pub fn add(self: &Arc<Self>, id: u64) -> (Arc<Conn>, Listed) {
        let conn = Arc::new(Conn::new(Output::new(&self.limits.unsent, &self.clock), self.clock.now()));
        self.lock().insert(id, conn.clone());
        (conn, Listed { conns: self.clone(), id })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, Arc<Conn>>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a part of an answer until it is sent.
    fn unsent(&self, conn: &Conn, bytes: Bytes) -> Unsent {
        let unsent = Unsent::new(bytes, &conn.output);
        if self.limits.unsent.is_short() {
            if self.http1 {
                self.cut_longest_unsent();
            }
            self.short.notify_one();
        }
        unsent
    }

    /// Cuts connections so that memory is no longer short. It need not be new answers that bring this about: while
    /// all are refused, there are none.
    fn make_room(&self) {
        if self.http1 { self.cut_longest_unsent() } else { self.cut_stalled_answers() }
    }

    /// Cuts the connection whose answer has waited longest, if that is unusually long.
    fn cut_longest_unsent(&self) {
        let (conns, now) = (self.lock(), self.clock.now());
        let waiting = conns.values().filter(|conn| conn.output.has_unsent() && !conn.output.is_cut());
        let waits = waiting.filter_map(|conn| Some((conn.output.parts().longest_wait(now)?, conn)));
        if let Some((_, conn)) =
            waits.max_by_key(|(wait, _)| *wait).filter(|(wait, _)| *wait >= UNSENT_TIME_HTTP1)
        {
            self.cut(conn, Cut::Unsent);
        }
    }

    /// Cuts the connections that hold most of what their peers do not take, until enough is free.
    fn cut_stalled_answers(&self) {
        let (conns, now) = (self.lock(), self.clock.now());
        let holding = conns.values().filter(|conn| conn.output.has_unsent());
        let mut stalled: Vec<_> = holding
            .map(|conn| (conn.output.parts().stalled(now), conn))
            .filter(|(bytes, conn)| *bytes > 0 && !conn.output.is_cut())
            .collect();
        stalled.sort_by_key(|(bytes, _)| std::cmp::Reverse(*bytes));
        for (_, conn) in stalled {
            if !self.limits.unsent.is_short() {
                return;
            }
            self.cut(conn, Cut::Unsent);
            conn.output.parts().discount();
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

    /// Asks the connection that has been idle longest to close. Does nothing while one that was just asked is about to end
    /// already: each of them frees one slot. One that was asked and is busy again may last.
    pub fn close_longest_idle(&self) {
        let (conns, now) = (self.lock(), self.clock.now());
        let idle = || conns.values().filter(|conn| !conn.is_busy());
        if idle().any(|conn| conn.asked_to_close().is_some_and(|at| now.saturating_sub(at) < ENDING)) {
            return;
        }
        let others = idle().filter(|conn| conn.asked_to_close().is_none());
        if let Some(conn) = others.min_by_key(|conn| conn.idle_since()) {
            conn.ask_to_close(now);
        }
    }

    /// Waits until a connection has been idle for so long, from now on.
    pub async fn idle(&self, conn: &Conn, time: Duration) {
        let begun = self.clock.now();
        let mut left = ms(time);
        while left > 0 {
            tokio::time::sleep(Duration::from_millis(left)).await;
            let idle_since = if conn.is_busy() { self.clock.now() } else { conn.idle_since().max(begun) };
            left = ms(time).saturating_sub(self.clock.now().saturating_sub(idle_since));
        }
    }

    /// Cuts connections whose output stalls, for as long as it is polled.
    pub async fn watch(self: Arc<Self>) {
        let interval = self.check_interval();
        let mut checked = Instant::now();
        loop {
            let short = self.limits.unsent.is_short();
            let sleep = self.clock.sleep(if short { interval.min(SHORT_INTERVAL) } else { interval });
            tokio::select! {
                () = sleep => {}
                () = self.short.notified(), if !short => {}
            }
            if checked.elapsed() >= interval {
                checked = Instant::now();
                self.cut_stalled();
            }
            if self.limits.unsent.is_short() {
                self.make_room();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio_util::task::AbortOnDropHandle;

    use super::*;

    fn conns(http1: bool, unsent: usize) -> Arc<Conns> {
        let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
        let unsent = UnsentLimit::new(unsent);
        Conns::new(
            http1,
            Limits { max_connections: 9, write_timeout: Duration::from_mins(1), unsent },
            &metrics,
        )
    }

    #[tokio::test(start_paused = true)]
    async fn of_equally_idle_connections_the_oldest_closes() {
        let conns = conns(true, 9);
        let open: Vec<_> = (1..=9).map(|id| conns.add(id)).collect();
        let active = ActiveRequest::new(&open[0].0, &conns, false);
        let closing = || open.iter().map(|(conn, _)| conn.asked_to_close().is_some()).collect::<Vec<_>>();
        conns.close_longest_idle();
        conns.close_longest_idle();
        let mut expected = [false; 9];
        expected[1] = true; // the first one has a request, and one closes at a time
        assert_eq!(closing(), expected);
        drop(active);
    }

    /// A peer may not take part in the end of its connection.
    #[tokio::test(start_paused = true)]
    async fn another_one_closes_if_the_one_before_takes_its_time() {
        let conns = conns(false, 9);
        let open: Vec<_> = (1..=3).map(|id| conns.add(id)).collect();
        let asked = || open.iter().filter(|(conn, _)| conn.asked_to_close().is_some()).count();
        for (time, expected) in [(0, 1), (ENDING - 1, 1), (1, 2), (ENDING, 3), (ENDING, 3)] {
            tokio::time::advance(Duration::from_millis(time)).await;
            conns.close_longest_idle();
            assert_eq!(asked(), expected);
        }
    }

    /// It ends when its calls do, which may be never: a peer may call again and again and not confirm the GOAWAY.
    #[tokio::test(start_paused = true)]
    async fn one_that_does_not_end_keeps_no_other_from_closing() {
        let conns = conns(false, 9);
        let (stays, idle) = (conns.add(1), conns.add(2));
        conns.close_longest_idle();
        let active = ActiveRequest::new(&stays.0, &conns, false);
        conns.close_longest_idle();
        assert!(stays.0.asked_to_close().is_some() && idle.0.asked_to_close().is_some());
        drop(active);
    }

    /// On HTTP/1 and on HTTP/2 alike, where the request itself has ended with the head of its answer.
    #[tokio::test(start_paused = true)]
    async fn a_connection_that_still_sends_is_not_idle() {
        for http1 in [true, false] {
            let conns = conns(http1, 1000);
            let (sends, idle) = (conns.add(1), conns.add(2));
            let part = Unsent::new(Bytes::from_static(b"abc"), &sends.0.output);
            tokio::time::advance(Duration::from_secs(1)).await;
            conns.close_longest_idle();
            assert!(
                sends.0.is_busy() && sends.0.asked_to_close().is_none() && idle.0.asked_to_close().is_some()
            );
            drop((idle, part));
            // it is idle since then, and this one for longer
            let idle = conns.add(3);
            idle.0.idle_since.store(999, Relaxed);
            assert!(!sends.0.is_busy());
            conns.close_longest_idle();
            assert!(sends.0.asked_to_close().is_none() && idle.0.asked_to_close().is_some());
        }
    }

    /// No answer is made while every request is refused.
    #[tokio::test(start_paused = true)]
    async fn room_is_made_without_any_new_answer() {
        for (http1, patience) in [(true, 100), (false, 1000)] {
            let conns = conns(http1, 400);
            let _watch = AbortOnDropHandle::new(tokio::spawn(conns.clone().watch()));
            let open: Vec<_> = (1..=4).map(|id| conns.add(id)).collect();
            let kept: Vec<_> =
                open.iter().map(|(conn, _)| conns.unsent(conn, Bytes::from_static(&[0; 100]))).collect();
            let cut = || open.iter().filter(|(conn, _)| conn.output.is_cut()).count();
            assert!(conns.limits.unsent.is_full() && cut() == 0);
            tokio::time::sleep(Duration::from_millis(patience + 200)).await;
            assert!(cut() > 0, "http1: {http1}");
            assert!(
                http1 || cut() == 3 && !conns.limits.unsent.is_short(),
                "no more than that needs: {}",
                cut()
            );
            drop(kept);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn idle_is_waited_for_while_it_is_busy() {
        let conns = conns(false, 1000);
        let (conn, _listed) = conns.add(1);
        let active = ActiveRequest::new(&conn, &conns, false);
        let begun = Instant::now();
        let waits = conns.idle(&conn, Duration::from_millis(250));
        let works = async {
            tokio::time::sleep(Duration::from_secs(3)).await;
            drop(active);
        };
        tokio::join!(waits, works);
        assert_eq!(begun.elapsed(), Duration::from_millis(3250));
    }
}
