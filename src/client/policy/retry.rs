//! The third layer: makes another attempt if the policy of the rpc ([`crate::api::rpc::Policy`]), the retry
//! budget, the server's pushback and the deadline all allow one.
//!
//! | What happened | Again? |
//! |---|---|
//! | no instance can be called | no |
//! | the call was not sent | yes, at another instance, at once; it does not count as an attempt |
//! | the peer says that it did not process the call | yes, once, at another instance, at once, for every rpc |
//! | a code that the policy names | yes, at another instance, after a short wait or the server's pushback |
//! | an attempt of a read is slower than usual | yes, once a call, beside it: see `race.rs` |
//! | anything else | no |
//!
//! Every attempt after the first one of a call is taken from the service's budget, also if the peer did not
//! process the one before. So in an outage of any kind attempts stay below 1.2 x calls + 10/s. An attempt is never
//! given up for another one: it goes on until the deadline, or until another one has answered.
//!
//! Sources: gRPC proposal A6 (attempts, pushback, `grpc-previous-rpc-attempts`), Finagle (budget).

use std::sync::Arc;

use tokio::time::Instant;

use crate::client::call::{Answer, Call, CallLayer, Failure, Outcome};
use crate::client::policy::race;
use crate::client::policy::retry_policy::RetryPolicy;

/// Makes further attempts after a failed one.
pub struct Retry<S> {
    inner: S,
    policy: RetryPolicy,
}

impl<S: CallLayer> Retry<S> {
    /// Puts retries before `inner`.
    pub const fn new(inner: S, policy: RetryPolicy) -> Self {
        Self { inner, policy }
    }
}

impl<S: CallLayer> CallLayer for Retry<S> {
    async fn send(&self, mut call: Call) -> Outcome {
        let policy = &self.policy;
        let (rpc, begun) = (call.rpc, Instant::now());
        let mut made = policy.begin(&call);
        loop {
            call.context.previous_attempts = made.before_next();
            let outcome = race::attempt(&self.inner, policy, &mut call, &mut made).await;
            if outcome.as_ref().err().is_none_or(Failure::is_answer) {
                let now = Instant::now();
                let took = made.none_failed().then(|| now.saturating_duration_since(begun));
                policy.hedging.record(rpc, now, took);
            }
            let failure = match outcome {
                Ok(answer) => return Ok(Answer { earlier_executions: made.executed, ..answer }),
                Err(failure) => failure,
            };
            let Some(wait) = policy.judge(&call, &failure, &mut made) else {
                return Err(failure);
            };
            call.note_tried();
            call.attempt = Arc::default();
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
            }
        }
    }
}

#[cfg(test)]
#[path = "retry_tests.rs"]
pub mod tests;
