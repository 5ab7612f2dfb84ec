//! The layer of the breaker: lets a call to one instance through or not, and tells the breaker how it ended.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::api::error::Error;
use crate::client::balance::breaker::{Breakers, Permit};
use crate::client::balance::load::Load;
use crate::client::call::{Call, FAIR, Failure, Outcome, Path, Reach, layer};

/// Guards one instance.
#[derive(Clone)]
pub struct Guard<S> {
    inner: S,
    breakers: Arc<Breakers>,
    load: Arc<Load>,
}

impl<S: Path> Guard<S> {
    /// Puts breakers before `inner`. When one closes, what `load` knows of the bad time is forgotten.
    pub const fn new(inner: S, breakers: Arc<Breakers>, load: Arc<Load>) -> Self {
        Self { inner, breakers, load }
    }

    async fn run(&self, call: Call) -> Outcome {
        let rpc = call.rpc;
        let Some(held) = Held::admit(&self.breakers, &call) else {
            let error = Error::unavailable(format!("{} is being spared", rpc.service()));
            return Err(Failure::new(Reach::Kept, error));
        };
        let outcome = self.inner.send(call).await;
        let took = held.took();
        let closed = match &outcome {
            Ok(_) => held.record(false, None),
            // says nothing of the instance
            Err(failure) if matches!(failure.reach, Reach::Kept | Reach::Unprocessed) => held.release(),
            Err(failure) => held.record(failure.is_instances_fault(took), failure.broken),
        };
        if closed {
            self.load.forgive(rpc);
        }
        outcome
    }
}
layer!(Guard<S>);

/// A call that a breaker has let through. Dropped before it was recorded it was given up: by the caller,
/// which says nothing, or because it took too long.
pub(in crate::client) struct Held {
    breakers: Arc<Breakers>,
    permit: Option<Permit>,
    begun: Instant,
    patience: Instant,
}

impl Held {
    /// Asks the breakers for leave.
    pub(in crate::client) fn admit(breakers: &Arc<Breakers>, call: &Call) -> Option<Self> {
        let permit = breakers.admit(call.rpc, call.forced)?;
        let breakers = breakers.clone();
        Some(Self { breakers, permit: Some(permit), begun: Instant::now(), patience: call.patience })
    }

    /// Returns how long it has been under way.
    pub(in crate::client) fn took(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Tells the breaker the outcome; returns true if that closed it.
    pub(in crate::client) fn record(mut self, failed: bool, broken: Option<u64>) -> bool {
        self.permit.take().is_some_and(|permit| self.breakers.record(&permit, failed, broken))
    }

    /// Tells the breaker that there is nothing to tell; returns false.
    pub(in crate::client) fn release(mut self) -> bool {
        if let Some(permit) = self.permit.take() {
            self.breakers.release(&permit);
        }
        false
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let Some(permit) = self.permit.take() else {
            return;
        };
        if Instant::now() >= self.patience && self.took() >= FAIR {
            self.breakers.record(&permit, true, None);
        } else {
            self.breakers.release(&permit);
        }
    }
}
