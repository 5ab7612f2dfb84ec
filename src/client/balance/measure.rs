//! The layer that measures the attempts at one instance, for its load and for
//! `grpc_client_attempt_duration_seconds`.

use std::sync::Arc;

use tokio::time::Instant;

use crate::api::error::Code;
use crate::api::rpc::Rpc;
use crate::client::balance::load::Load;
use crate::client::call::{Call, CallLayer, Delivery, Outcome};
use crate::telemetry::metrics::RpcDurations;

/// Measures attempts, including those that are given up.
#[derive(Clone)]
pub struct Measure<S> {
    inner: S,
    load: Arc<Load>,
    durations: Arc<RpcDurations>,
}

impl<S: CallLayer> Measure<S> {
    /// Measures `inner`.
    pub const fn new(inner: S, load: Arc<Load>, durations: Arc<RpcDurations>) -> Self {
        Self { inner, load, durations }
    }
}

impl<S: CallLayer> CallLayer for Measure<S> {
    async fn send(&self, call: Call) -> Outcome {
        let mut attempt = MeasuredAttempt {
            load: &self.load,
            durations: &self.durations,
            rpc: call.rpc,
            begun: Instant::now(),
            deadline: call.context.deadline,
            full_time: call.has_full_time(),
            ended: false,
        };
        let outcome = self.inner.send(call).await;
        attempt.ended = true;
        let took = attempt.begun.elapsed();
        let (code, failed) = match &outcome {
            Ok(_) => (tonic::Code::Ok, false),
            Err(failure) if failure.delivery == Delivery::NotSent => return outcome, // not an attempt
            Err(failure) => {
                let sheds = failure.pushback.is_some() || failure.delivery == Delivery::Unprocessed;
                (failure.error.code.grpc(), sheds || failure.is_instance_fault(attempt.full_time))
            }
        };
        if !failed && code == Code::Timeout.grpc() {
            self.load.observe_at_least(attempt.rpc, took); // its time was up, there was no answer
        } else {
            self.load.observe(attempt.rpc, took, failed);
        }
        self.durations.observe(attempt.rpc, code, took);
        outcome
    }
}

/// An attempt under way. If it is dropped before it ended, it was given up.
struct MeasuredAttempt<'a> {
    load: &'a Load,
    durations: &'a RpcDurations,
    rpc: Rpc,
    begun: Instant,
    deadline: Instant,
    /// True if it had the time that calls have by default.
    full_time: bool,
    ended: bool,
}

impl Drop for MeasuredAttempt<'_> {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        let (now, rpc) = (Instant::now(), self.rpc);
        let took = now.saturating_duration_since(self.begun);
        let expired = now >= self.deadline;
        if expired && self.full_time {
            self.load.observe(rpc, took, true);
        } else {
            self.load.observe_at_least(rpc, took);
        }
        let code = if expired { tonic::Code::DeadlineExceeded } else { tonic::Code::Cancelled };
        self.durations.observe(rpc, code, took);
    }
}
