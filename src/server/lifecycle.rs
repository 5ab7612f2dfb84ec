//! What surrounds every request of the gateway and the services: a span, a guard against panics, and, however
//! the request ends, its metrics and its log line.
//!
//! What HTTP and gRPC record differently is behind [`Record`]. Which requests are accepted is decided by
//! [`super::admission`].

use std::borrow::Cow;
use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::time::Instant;

use crate::api::error::{Code, Error};
use crate::context::Context;
use crate::telemetry::trace::{Span, Tag};

/// What a protocol records of one request.
pub trait Record {
    /// How a request ends: an HTTP status or a gRPC code.
    type Status: Copy;

    /// Returns what failed if the server, and not the caller, is the cause.
    fn failure(status: Self::Status) -> Option<&'static str>;

    /// Observes an answered request in the metrics.
    fn observe(&self, status: Self::Status, took: Duration);

    /// Observes a request whose caller hung up before the answer.
    fn observe_hang_up(&self, took: Duration);

    /// Writes the log line of an answered request.
    fn log(&self, outcome: Outcome, status: Self::Status, took: Duration, context: &Context);

    /// Writes the log line of a handler that panicked.
    fn log_panic(&self, context: &Context);
}

/// What is worth a log line about a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The server failed.
    Failed,
    /// The answer took longer than the limit for slow requests.
    Slow,
    /// Nothing. Refusals for overload are among these: they are counted, and logged together.
    Usual,
}

/// A handler panicked. The caller gets an answer all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Panicked;

impl From<Panicked> for Error {
    fn from(_: Panicked) -> Self {
        Self::new(Code::Internal, "the handler failed")
    }
}

/// One request, from its head to its answer.
///
/// *Cancellation*: if this is dropped before [`Self::finish`], the caller has hung up, and that is recorded.
pub struct Lifecycle<R: Record> {
    record: R,
    context: Context,
    span: Option<Span>,
    begun: Instant,
    /// Time from which on the request counts as slow, if it can.
    slow: Option<Duration>,
    finished: bool,
}

impl<R: Record> Lifecycle<R> {
    /// Begins the lifecycle of a request whose head arrived at `begun`.
    pub const fn begin(record: R, context: Context, begun: Instant, slow: Option<Duration>) -> Self {
        Self { record, context, span: None, begun, slow, finished: false }
    }

    /// Begins the span of this request for a caller at `peer`, and returns it.
    pub fn begin_span(&mut self, name: impl FnOnce() -> Cow<'static, str>, peer: IpAddr) -> &mut Span {
        let span = self.context.trace.serve(name, self.begun, peer);
        self.span.insert(span)
    }

    /// Adds a tag to the span, if there is one.
    pub fn tag(&mut self, key: &'static str, value: impl Into<Tag>) {
        if let Some(span) = &mut self.span {
            span.tag(key, value);
        }
    }

    /// Returns the context of the request.
    pub const fn context(&self) -> &Context {
        &self.context
    }

    /// Runs a handler to its end.
    ///
    /// # Errors
    /// [`Panicked`], which has then been logged.
    pub fn run<T>(&self, handler: impl Future<Output = T>) -> impl Future<Output = Result<T, Panicked>> {
        // a handler that panicked is dropped: nothing sees its state any more
        AssertUnwindSafe(handler).catch_unwind().map(|ended| {
            ended.map_err(|_| {
                self.record.log_panic(&self.context);
                Panicked
            })
        })
    }

    /// Records how the request ended. `overloaded` says that it was refused for overload.
    pub fn finish(mut self, status: R::Status, overloaded: bool) {
        self.finished = true;
        let took = self.begun.elapsed();
        self.record.observe(status, took);
        let failure = R::failure(status);
        if let Some(mut span) = self.span.take() {
            if let Some(failure) = failure {
                span.fail(failure);
            }
            span.end();
        }
        let outcome = if failure.is_some() && !overloaded {
            Outcome::Failed
        } else if self.slow.is_some_and(|slow| took >= slow) {
            Outcome::Slow
        } else {
            Outcome::Usual
        };
        self.record.log(outcome, status, took, &self.context);
    }
}

impl<R: Record> Drop for Lifecycle<R> {
    fn drop(&mut self) {
        // a panic around the handler is recorded by `guard`
        if !self.finished && !std::thread::panicking() {
            self.record.observe_hang_up(self.begun.elapsed());
        }
    }
}

/// Runs everything that is done for a request, from its head to its answer. A panic in it is logged and recorded as
/// `failure`; [`Lifecycle::run`] does that for a handler, this for what surrounds it.
///
/// # Errors
/// The context of the answer that the caller gets all the same.
#[expect(clippy::result_large_err, reason = "it is moved once, after a panic")]
pub fn guard<R: Record, T>(
    record: R,
    failure: R::Status,
    begun: Instant,
    request: impl Future<Output = T>,
) -> impl Future<Output = Result<T, Context>> {
    // not an async function: it would hold the request's future twice, which is several KiB
    AssertUnwindSafe(request).catch_unwind().map(move |ended| {
        ended.map_err(|_| {
            let context = Context::new(begun);
            record.log_panic(&context);
            record.observe(failure, begun.elapsed());
            context
        })
    })
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    /// What was recorded, as text.
    #[derive(Default)]
    struct Lines(RefCell<Vec<String>>);

    impl Record for &Lines {
        type Status = u16;

        fn failure(status: u16) -> Option<&'static str> {
            (status >= 500).then_some("failed")
        }

        fn observe(&self, status: u16, took: Duration) {
            self.0.borrow_mut().push(format!("{status} in {took:?}"));
        }

        fn observe_hang_up(&self, took: Duration) {
            self.0.borrow_mut().push(format!("hung up in {took:?}"));
        }

        fn log(&self, outcome: Outcome, _: u16, _: Duration, _: &Context) {
            self.0.borrow_mut().push(format!("{outcome:?}"));
        }

        fn log_panic(&self, _: &Context) {
            self.0.borrow_mut().push("panicked".to_owned());
        }
    }

    const SECOND: Duration = Duration::from_secs(1);

    fn begin(lines: &Lines) -> Lifecycle<&Lines> {
        let now = Instant::now();
        Lifecycle::begin(lines, Context::new(now + SECOND), now, Some(SECOND))
    }

    async fn recorded(status: u16, overloaded: bool, took: Duration) -> Vec<String> {
        let lines = Lines::default();
        let lifecycle = begin(&lines);
        tokio::time::advance(took).await;
        lifecycle.finish(status, overloaded);
        lines.0.take()
    }

    #[tokio::test(start_paused = true)]
    async fn what_failed_or_is_slow_is_logged_as_such() {
        let ms = Duration::from_millis;
        assert_eq!(recorded(200, false, ms(999)).await, ["200 in 999ms", "Usual"]);
        assert_eq!(recorded(200, false, SECOND).await, ["200 in 1s", "Slow"]);
        assert_eq!(recorded(500, false, SECOND).await, ["500 in 1s", "Failed"]);
        assert_eq!(recorded(503, true, ms(1)).await, ["503 in 1ms", "Usual"]);
        assert_eq!(recorded(503, true, SECOND).await, ["503 in 1s", "Slow"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_dropped_request_is_a_hang_up() {
        let lines = Lines::default();
        let lifecycle = begin(&lines);
        tokio::time::advance(SECOND).await;
        drop(lifecycle);
        assert_eq!(lines.0.take(), ["hung up in 1s"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_panic_around_the_handler_is_a_failure_and_no_hang_up() {
        let lines = Lines::default();
        let request = async {
            let lifecycle = begin(&lines);
            assert!(lines.0.borrow().len() > 9, "a bug");
            lifecycle.finish(200, false);
        };
        assert!(guard(&lines, 500, Instant::now(), request).await.is_err());
        assert_eq!(lines.0.take(), ["panicked", "500 in 0ns"]);
        assert_eq!(guard(&lines, 500, Instant::now(), async { 7 }).await.ok(), Some(7));
        assert_eq!(lines.0.take(), [""; 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_panic_is_logged_and_the_request_goes_on() {
        let lines = Lines::default();
        let lifecycle = begin(&lines);
        assert_eq!(lifecycle.run(async { 7 }).await, Ok(7));
        let broken = async {
            assert!(lines.0.borrow().len() > 9, "a bug");
            7
        };
        assert_eq!(lifecycle.run(broken).await, Err(Panicked));
        lifecycle.finish(500, false);
        assert_eq!(lines.0.take(), ["panicked", "500 in 0ns", "Failed"]);
    }
}
