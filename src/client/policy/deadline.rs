//! The first layer: ends a call at its deadline, whatever the layers below do.
//!
//! The deadline belongs to the whole request: it is set where the request entered the system, and shortened at
//! every hop (`grpc-timeout`). *Cancellation*: at the deadline, or when the caller hangs up, the call below is
//! dropped, which resets its stream and cancels the handler at the other end.
//!
//! If this process itself did not run when the deadline passed, answers that have arrived meanwhile are read first: the
//! instances are not to blame for the pause.

use prometheus::IntCounter;

use crate::client::call::{Call, CallLayer, Failure, Outcome};
use crate::timeout::timeout_at;

/// Ends calls at their deadline.
pub struct Deadline<S> {
    inner: S,
    /// `client_deadline_exceeded_total` of the service.
    exceeded: IntCounter,
}

impl<S: CallLayer> Deadline<S> {
    /// Puts a deadline before `inner`.
    pub const fn new(inner: S, exceeded: IntCounter) -> Self {
        Self { inner, exceeded }
    }
}

impl<S: CallLayer> CallLayer for Deadline<S> {
    async fn send(&self, call: Call) -> Outcome {
        let (rpc, deadline) = (call.rpc, call.context.deadline);
        // a call whose deadline has passed is not sent
        if !call.context.remaining().is_zero() {
            let below = std::pin::pin!(self.inner.send(call));
            if let Ok(outcome) = timeout_at(deadline, below).await {
                return outcome;
            }
        }
        self.exceeded.inc();
        Err(Failure::timeout(rpc))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::*;
    use crate::api::error::Code;
    use crate::api::rpc::Rpc;
    use crate::client::call::testing::{ScriptedEnd, call};

    #[tokio::test(start_paused = true)]
    async fn a_call_ends_at_its_deadline() {
        let exceeded = IntCounter::new("x", "x").unwrap();
        let end = ScriptedEnd::new(|_, _| std::future::pending());
        let layer = Deadline::new(end.clone(), exceeded.clone());
        let begun = Instant::now();
        let limit = Duration::from_millis(200);
        let failure = layer.send(call(Rpc::GetFeeds, limit)).await.unwrap_err();
        assert_eq!(failure.error.code, Code::Timeout);
        assert!(
            (limit..limit + Duration::from_millis(10)).contains(&begun.elapsed()),
            "{:?}",
            begun.elapsed()
        );
        // a call whose deadline has passed is not sent at all
        layer.send(call(Rpc::GetFeeds, Duration::ZERO)).await.unwrap_err();
        assert_eq!((end.calls(), exceeded.get()), (1, 2));
    }
}
