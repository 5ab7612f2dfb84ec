//! The layer of the breakers of one instance: lets a call through or not, and reports its outcome.

use std::sync::Arc;

use tokio::time::Instant;

use crate::api::error::{Code, Error};
use crate::client::balance::breaker::{BreakerPermit, Breakers};
use crate::client::balance::load::Load;
use crate::client::call::{Attempt, Call, CallLayer, Delivery, Failure, Outcome};

/// Puts the breakers of one instance before its other layers.
#[derive(Clone)]
pub struct CircuitBreaker<S> {
    inner: S,
    breakers: Arc<Breakers>,
    load: Arc<Load>,
}

impl<S: CallLayer> CircuitBreaker<S> {
    /// Puts breakers before `inner`. When one closes, what `load` has observed of its rpc is cleared: it is
    /// from before the instance recovered.
    pub const fn new(inner: S, breakers: Arc<Breakers>, load: Arc<Load>) -> Self {
        Self { inner, breakers, load }
    }
}

impl<S: CallLayer> CallLayer for CircuitBreaker<S> {
    async fn send(&self, call: Call) -> Outcome {
        let rpc = call.rpc;
        let Some(admitted) = AdmittedCall::admit(&self.breakers, &call) else {
            let error = Error::unavailable(format!("the circuit breaker of {} is open", rpc.service()));
            return Err(Failure::new(Delivery::NotSent, error));
        };
        let full_time = admitted.full_time;
        let outcome = self.inner.send(call).await;
        let closed = match &outcome {
            Ok(_) => admitted.record(false, None),
            Err(failure) if matches!(failure.delivery, Delivery::NotSent | Delivery::Unprocessed) => {
                // no handler has seen it, so it says nothing about the instance
                admitted.release();
                false
            }
            Err(failure) if failure.error.code == Code::Timeout && !full_time => {
                // it had less time than usual, so it says nothing either
                admitted.release();
                false
            }
            Err(failure) => admitted.record(failure.is_instance_fault(full_time), failure.broken_connection),
        };
        if closed {
            self.load.clear(rpc);
        }
        outcome
    }
}

/// A call that a breaker has let through. If it is dropped before its outcome was recorded, it was given up: at its
/// deadline that is a failure, if it had the usual time; else it says nothing.
pub struct AdmittedCall<'a> {
    breakers: &'a Breakers,
    permit: Option<BreakerPermit>,
    deadline: Instant,
    full_time: bool,
    attempt: Arc<Attempt>,
}

impl<'a> AdmittedCall<'a> {
    /// Asks the breaker of the call's rpc; `None` if it does not let the call through.
    pub fn admit(breakers: &'a Breakers, call: &Call) -> Option<Self> {
        let permit = breakers.admit(call.rpc, call.ignore_breaker)?;
        Some(Self {
            breakers,
            permit: Some(permit),
            deadline: call.context.deadline,
            full_time: call.has_full_time(),
            attempt: call.attempt.clone(),
        })
    }

    /// Reports the outcome to the breaker; returns true if that closed it.
    pub fn record(mut self, failed: bool, broken_connection: Option<u64>) -> bool {
        let permit = self.permit.take();
        permit.is_some_and(|permit| self.breakers.record(&permit, failed, broken_connection))
    }

    /// Reports to the breaker that the call says nothing about the instance.
    pub fn release(mut self) {
        if let Some(permit) = self.permit.take() {
            self.breakers.release(&permit);
        }
    }
}

impl Drop for AdmittedCall<'_> {
    fn drop(&mut self) {
        let Some(permit) = self.permit.take() else {
            return;
        };
        if self.attempt.is_lost() {
            self.breakers.release_later(&permit);
        } else if self.full_time && Instant::now() >= self.deadline {
            self.breakers.record(&permit, true, None);
        } else {
            self.breakers.release(&permit);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use prometheus::IntCounter;

    use super::*;
    use crate::api::rpc::Rpc;
    use crate::client::balance::breaker::BreakerSettings;
    use crate::client::balance::breaker_state::{BreakerState, Transitions};
    use crate::client::balance::ejection::EjectionLimit;
    use crate::client::call::testing::{ScriptedEnd, call, failure};
    use crate::config;
    use crate::limit::Limit;

    const MS: Duration = Duration::from_millis(1);
    const RPC: Rpc = Rpc::GetFeeds;

    fn layer(end: ScriptedEnd) -> CircuitBreaker<ScriptedEnd> {
        let settings = config::Client::default();
        let ejection = EjectionLimit::unbounded(IntCounter::new("x", "x").unwrap());
        let breakers =
            Breakers::new(BreakerSettings::from(&settings), Arc::new(ejection), Transitions::default());
        let load = Arc::new(Load::new(&settings, Limit::new(100, None)));
        CircuitBreaker::new(end, Arc::new(breakers), load)
    }

    fn stalling() -> CircuitBreaker<ScriptedEnd> {
        layer(ScriptedEnd::new(|_, _| std::future::pending()))
    }

    fn state(layer: &CircuitBreaker<ScriptedEnd>) -> BreakerState {
        layer.breakers.state(RPC, Instant::now())
    }

    /// Makes calls until the breaker opens, 20 at most; each is dropped after `time`.
    async fn dropped_after(layer: &CircuitBreaker<ScriptedEnd>, call: impl Fn() -> Call, time: Duration) {
        for _ in 0..20 {
            let _ = tokio::time::timeout(time, layer.send(call())).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn only_what_had_the_usual_time_counts_as_a_failure() {
        let full = || call(RPC, 2000 * MS);
        let shortened = || {
            let mut call = call(RPC, 1000 * MS);
            call.context.shortened = true;
            call
        };
        // a later attempt, whose call has used more than a tenth of its time
        let second = || Call { time_limit: 2000 * MS, ..call(RPC, 1700 * MS) };
        let lost = || {
            let call = full();
            call.attempt.set_lost();
            call
        };
        let cases: [(&str, &dyn Fn() -> Call, u32, bool); 5] = [
            ("its deadline", &full, 2000, true),
            ("its caller hung up", &full, 1999, false),
            ("shortened", &shortened, 1000, false),
            ("not the first attempt", &second, 1700, false),
            ("lost", &lost, 2000, false),
        ];
        for (what, make, time, opens) in cases {
            let layer = stalling();
            dropped_after(&layer, make, time * MS).await;
            assert_eq!(state(&layer) != BreakerState::Closed, opens, "{what}");
        }
        // the same for a server that sees the deadline first
        for (shortened, opens) in [(true, false), (false, true)] {
            let layer = layer(ScriptedEnd::new(|_, _| async { Err(failure(Code::Timeout)) }));
            for _ in 0..20 {
                let mut call = full();
                call.context.shortened = shortened;
                layer.send(call).await.unwrap_err();
            }
            assert_eq!(state(&layer) != BreakerState::Closed, opens, "answered, shortened: {shortened}");
        }
    }

    /// Neither good nor bad: a share of good answers is not diluted by calls that say nothing.
    #[tokio::test(start_paused = true)]
    async fn what_says_nothing_is_no_request_either() {
        let layer = layer(ScriptedEnd::new(|n, _| async move {
            match n % 4 {
                0 => Ok(crate::client::call::Answer::default()),
                1 => Err(failure(Code::Internal)),
                _ => std::future::pending().await,
            }
        }));
        // one in two that count is bad; of all calls it is one in four
        dropped_after(&layer, || call(RPC, 2000 * MS), MS).await;
        assert_eq!(state(&layer), BreakerState::Open);
    }
}
