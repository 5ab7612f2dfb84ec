//! The layer of the breakers of one instance: lets a call through or not, and reports its outcome.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::api::error::Error;
use crate::client::balance::breaker::{BreakerPermit, Breakers};
use crate::client::balance::load::Load;
use crate::client::call::{Call, CallLayer, Delivery, Failure, MIN_TIME_TO_ANSWER, Outcome};

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
        let outcome = self.inner.send(call).await;
        let took = admitted.took();
        let closed = match &outcome {
            Ok(_) => admitted.record(false, None),
            Err(failure) if matches!(failure.delivery, Delivery::NotSent | Delivery::Unprocessed) => {
                // no handler has seen it, so it says nothing about the instance
                admitted.release();
                false
            }
            Err(failure) => admitted.record(failure.is_instance_fault(took), failure.broken_connection),
        };
        if closed {
            self.load.clear(rpc);
        }
        outcome
    }
}

/// A call that a breaker has let through. If it is dropped before its outcome was recorded, it was given up:
/// after its attempt deadline that is a failure of the instance, before it says nothing.
pub struct AdmittedCall<'a> {
    breakers: &'a Breakers,
    permit: Option<BreakerPermit>,
    begun: Instant,
    attempt_deadline: Instant,
}

impl<'a> AdmittedCall<'a> {
    /// Asks the breaker of the call's rpc; `None` if it does not let the call through.
    pub fn admit(breakers: &'a Breakers, call: &Call) -> Option<Self> {
        let permit = breakers.admit(call.rpc, call.ignore_breaker)?;
        let attempt_deadline = call.attempt_deadline;
        Some(Self { breakers, permit: Some(permit), begun: Instant::now(), attempt_deadline })
    }

    /// Returns how long the call has been under way.
    pub fn took(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Reports the outcome to the breaker; returns true if that closed it.
    pub fn record(mut self, failed: bool, broken_connection: Option<u64>) -> bool {
        let permit = self.permit.take();
        permit.is_some_and(|permit| self.breakers.record(&permit, failed, broken_connection))
    }

    /// Reports to the breaker that the call says nothing about the instance.
    fn release(mut self) {
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
        if Instant::now() >= self.attempt_deadline && self.took() >= MIN_TIME_TO_ANSWER {
            self.breakers.record(&permit, true, None);
        } else {
            self.breakers.release(&permit);
        }
    }
}
