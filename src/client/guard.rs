//! The layer of the breaker: lets a call to one instance through or not, and tells the breaker how it ended.

use std::sync::Arc;

use tokio::time::Instant;

use super::breaker::{Breakers, Permit};
use super::call::{Call, FAIR, Failure, Outcome, Path, Reach, layer};
use super::load::Load;
use crate::error::Error;

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

    async fn run(mut self, call: Call) -> Outcome {
        let (rpc, begun, patience) = (call.rpc, Instant::now(), call.patience);
        let Some(permit) = self.breakers.admit(rpc.index, call.forced) else {
            let error = Error::unavailable(format!("{} is being spared", rpc.service));
            return Err(Failure::new(Reach::Kept, error));
        };
        let mut held = Held { breakers: self.breakers, permit: Some(permit), begun, patience };
        let outcome = self.inner.call(call).await;
        let Some(permit) = held.permit.take() else {
            return outcome;
        };
        let (failed, broken) = match &outcome {
            Ok(_) => (false, None),
            // says nothing of the instance
            Err(failure) if matches!(failure.reach, Reach::Kept | Reach::Unprocessed) => {
                held.breakers.release(&permit);
                return outcome;
            }
            Err(failure) => (failure.is_instances_fault(begun.elapsed()), failure.broken),
        };
        if held.breakers.record(&permit, failed, broken) {
            self.load.forgive(rpc.index);
        }
        outcome
    }
}
layer!(Guard<S>);

/// A call under way. Dropped before its end it was given up: by the caller, or because it took too long.
struct Held {
    breakers: Arc<Breakers>,
    permit: Option<Permit>,
    begun: Instant,
    patience: Instant,
}

impl Drop for Held {
    fn drop(&mut self) {
        let Some(permit) = self.permit.take() else {
            return;
        };
        let now = Instant::now();
        if now >= self.patience && now.saturating_duration_since(self.begun) >= FAIR {
            self.breakers.record(&permit, true, None);
        } else {
            self.breakers.release(&permit);
        }
    }
}
