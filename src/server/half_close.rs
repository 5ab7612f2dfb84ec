//! The end of what a caller sends on HTTP/1. A caller may close only its sending side (`nc -N`) and still wait for the
//! answer, or close the connection and be gone: TCP shows both alike, as a FIN, until something is sent.
//!
//! So the end is held back from hyper, which would drop the request, while a request is answered:
//!
//! - A FIN that came with the request does not end it: nobody asks and leaves at once. Behind a write it may come 20 ms
//!   later, because a write should not take effect and stay unanswered.
//! - A later FIN means that the caller has given up. A write is cancelled at once, because the caller may write something
//!   else next. A read has some 10 ms more: FINs that came with it may look later than they are.
//!
//! Just after a start or a pause of this process even an early FIN ends a write: request and FIN may both have waited for
//! the process, for a time that nobody knows.
//!
//! A body that is cut short can never be read to its end: then the end is passed on at once.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep};

use super::pause;

/// The time from a later FIN until the request is cancelled: this many ticks. Usual requests are answered within it.
/// Ticks and not time, because a pause of this process must not count against its callers.
const TICKS: u8 = 10;
const TICK: Duration = Duration::from_millis(1);
/// A FIN that is found this long after the last bytes did not come with them, even if nobody has looked meanwhile.
const TOGETHER: Duration = Duration::from_millis(20);

/// The receiving side of one connection of HTTP/1.
#[derive(Debug)]
pub struct Input {
    /// When the connection was opened, see [`pause::now`].
    opened: Duration,
    /// True while a request is answered.
    busy: AtomicBool,
    /// True if that request is a write.
    write: AtomicBool,
    /// True if that request may have waited for this process to start or to go on.
    old: AtomicBool,
    /// True once the caller has sent its FIN.
    ended: AtomicBool,
    /// True if a request waits for the rest of its body, which will not come.
    starved: AtomicBool,
    /// Wakes the connection.
    connection: AtomicWaker,
}

impl Default for Input {
    /// Returns that of a connection that is opened now.
    fn default() -> Self {
        Self {
            opened: pause::now(),
            busy: AtomicBool::default(),
            write: AtomicBool::default(),
            old: AtomicBool::default(),
            ended: AtomicBool::default(),
            starved: AtomicBool::default(),
            connection: AtomicWaker::default(),
        }
    }
}

impl Input {
    /// Returns when the connection was opened, see [`pause::now`].
    pub const fn opened(&self) -> Duration {
        self.opened
    }

    /// Notes that a request is answered from now on.
    pub fn begin(&self, write: bool) {
        self.write.store(write, Relaxed);
        self.old.store(false, Relaxed);
        self.busy.store(true, Relaxed);
    }

    /// Notes that the answer has been handed to hyper.
    pub fn finish(&self) {
        self.busy.store(false, Relaxed);
        self.connection.wake();
    }

    /// Notes that the request may have waited for this process: then its caller may have given it up long before a FIN that
    /// is found now.
    pub fn note_old(&self) {
        self.old.store(true, Relaxed);
        self.connection.wake();
    }

    /// Returns true once the caller has sent its FIN.
    pub fn has_ended(&self) -> bool {
        self.ended.load(Relaxed)
    }

    /// Notes that a body has no more bytes now.
    fn wait_for_body(&self) {
        if self.ended.load(Relaxed) {
            self.starved.store(true, Relaxed);
            self.connection.wake();
        }
    }
}

/// How the FIN came.
#[derive(Clone, Copy, Debug)]
struct Fin {
    /// At most [`TOGETHER`] after the last bytes.
    soon: bool,
    /// An attempt to read had found nothing between them.
    apart: bool,
}

/// Decides when hyper learns that the caller sends no more.
pub struct End {
    input: Arc<Input>,
    /// True while nothing has come since the last attempt to read.
    quiet: bool,
    /// When bytes came last.
    heard: Option<Instant>,
    /// Set once the FIN has come.
    seen: Option<Fin>,
    tick: Option<Pin<Box<Sleep>>>,
    ticks: u8,
}

impl End {
    /// Returns the end of a connection that is open.
    pub const fn new(input: Arc<Input>) -> Self {
        Self { input, quiet: false, heard: None, seen: None, tick: None, ticks: 0 }
    }

    /// Returns true once the FIN has come.
    pub const fn is_seen(&self) -> bool {
        self.seen.is_some()
    }

    /// Notes whether an attempt to read found bytes.
    pub fn note(&mut self, found: bool) {
        self.quiet = !found;
        if found {
            self.heard = Some(Instant::now());
        }
    }

    /// Notes the FIN.
    pub fn see(&mut self, cx: &Context<'_>) {
        self.seen =
            Some(Fin { soon: self.heard.is_some_and(|heard| heard.elapsed() < TOGETHER), apart: self.quiet });
        self.input.ended.store(true, Relaxed);
        // whoever waits for a body asks again, and then learns that no more will come
        cx.waker().wake_by_ref();
    }

    /// Returns once hyper is to learn of the FIN.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let input = &self.input;
        input.connection.register(cx.waker());
        if !input.busy.load(Relaxed) || input.starved.load(Relaxed) {
            return Poll::Ready(());
        }
        if let Some(Fin { soon, apart }) = self.seen {
            let write = input.write.load(Relaxed);
            if write && (!soon || input.old.load(Relaxed)) {
                return Poll::Ready(());
            }
            if soon && (write || !apart) {
                return Poll::Pending;
            }
        }
        let tick = self.tick.get_or_insert_with(|| Box::pin(tokio::time::sleep(TICK)));
        while self.ticks < TICKS {
            ready!(tick.as_mut().poll(cx));
            self.ticks += 1;
            tick.as_mut().reset(Instant::now() + TICK);
        }
        Poll::Ready(())
    }
}

/// The body of a request.
pub struct RequestBody {
    body: Incoming,
    input: Arc<Input>,
}

impl RequestBody {
    /// Wraps the body of a request that `input` receives.
    pub const fn new(body: Incoming, input: Arc<Input>) -> Self {
        Self { body, input }
    }

    /// Returns the receiving side of its connection.
    pub fn input(&self) -> Arc<Input> {
        self.input.clone()
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if frame.is_pending() {
            self.input.wait_for_body();
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_told(end: &mut End) -> bool {
        end.poll(&mut Context::from_waker(std::task::Waker::noop())).is_ready()
    }

    #[tokio::test(start_paused = true)]
    async fn an_early_end_of_a_write_that_may_be_old_is_a_hang_up() {
        let input = Arc::new(Input::default());
        let mut end = End::new(input.clone());
        input.begin(true);
        end.note(true);
        tokio::time::advance(TOGETHER / 2).await;
        end.see(&Context::from_waker(std::task::Waker::noop()));
        assert!(!is_told(&mut end), "it came with the request");
        input.note_old();
        assert!(is_told(&mut end));
        input.begin(true);
        assert!(!is_told(&mut end), "the next request is new");
    }
}
