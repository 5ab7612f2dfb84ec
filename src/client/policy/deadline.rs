//! The first layer: a call ends at its deadline, whatever is below.
//!
//! The deadline is the one of the whole request, set where it entered the system and shortened at every
//! hop (`grpc-timeout`). *Cancellation*: at the deadline, or when the caller hangs up, the call below is
//! dropped, which resets its stream and cancels the handler at the other end.

use prometheus::IntCounter;

use crate::client::call::{Call, Failure, Outcome, Path, layer};

/// Ends calls at their deadline.
#[derive(Clone)]
pub struct Deadline<S> {
    inner: S,
    /// `client_deadline_exceeded_total` of the service.
    exceeded: IntCounter,
}

impl<S: Path> Deadline<S> {
    /// Puts a deadline before `inner`.
    pub const fn new(inner: S, exceeded: IntCounter) -> Self {
        Self { inner, exceeded }
    }

    async fn run(&self, call: Call) -> Outcome {
        let (rpc, deadline) = (call.rpc, call.context.deadline);
        // nothing is sent that nobody waits for
        if !call.context.remaining().is_zero() {
            let below = std::pin::pin!(self.inner.send(call));
            if let Ok(outcome) = tokio::time::timeout_at(deadline, below).await {
                return outcome;
            }
        }
        self.exceeded.inc();
        Err(Failure::timeout(rpc))
    }
}
layer!(Deadline<S>);

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;
    use tower::Service as _;

    use super::*;
    use crate::api::error::Code;
    use crate::api::rpc::Rpc;
    use crate::client::call::testing::{End, call};

    #[tokio::test(start_paused = true)]
    async fn a_call_ends_at_its_deadline() {
        let exceeded = IntCounter::new("x", "x").unwrap();
        let end = End::new(|_, _| std::future::pending());
        let mut layer = Deadline::new(end.clone(), exceeded.clone());
        let begun = Instant::now();
        let limit = Duration::from_millis(200);
        let failure = layer.call(call(Rpc::GetFeeds, limit)).await.unwrap_err();
        assert_eq!(failure.error.code, Code::Timeout);
        assert!(
            (limit..limit + Duration::from_millis(10)).contains(&begun.elapsed()),
            "{:?}",
            begun.elapsed()
        );
        // one whose time is over is not sent at all
        layer.call(call(Rpc::GetFeeds, Duration::ZERO)).await.unwrap_err();
        assert_eq!((end.calls(), exceeded.get()), (1, 2));
    }
}
