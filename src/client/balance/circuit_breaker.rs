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
        let (rpc, full_time) = (call.rpc, call.has_full_time());
        let Some(admitted) = AdmittedCall::admit(&self.breakers, &call) else {
            let error = Error::unavailable(format!("the circuit breaker of {} is open", rpc.service()));
            return Err(Failure::new(Delivery::NotSent, error));
        };
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
        if self.attempt.is_lost() {
            self.breakers.release_later(&permit);
        } else if self.full_time && Instant::now() >= self.deadline {
            self.breakers.record(&permit, true, None);
        } else {
            self.breakers.release(&permit);
        }
    }
}
