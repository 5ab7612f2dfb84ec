//! How many instances of a service may have an open breaker for an rpc at once: half of those that can be
//! called, rounded down.
//!
//! The instances are counted on each request, as they are at that moment, so nothing has to be given back when
//! an instance goes away. Requests are handled one at a time, so two of them cannot both be the last one
//! within the limit.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use prometheus::IntCounter;

use crate::api::rpc::Rpc;

/// Whether a breaker may open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may.
    Allowed,
    /// It may only after consecutive failures: it guards the only instance.
    SoleInstance,
    /// It may not: half of the others are open.
    Refused,
}

/// Counts the instances of a service that can be called, and those of them whose breaker for an rpc is not
/// closed.
pub type CountInstances = dyn Fn(Rpc) -> (usize, usize) + Send + Sync;

/// The limit of one service.
pub struct EjectionLimit {
    count: Box<CountInstances>,
    /// Held during a request.
    turn: Mutex<()>,
    /// `client_breaker_refused_total` of the service.
    refused: IntCounter,
}

impl fmt::Debug for EjectionLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EjectionLimit").finish_non_exhaustive()
    }
}

impl EjectionLimit {
    /// Returns a limit over the instances that `count` counts.
    #[must_use]
    pub fn new(count: Box<CountInstances>, refused: IntCounter) -> Self {
        Self { count, turn: Mutex::new(()), refused }
    }

    /// Returns a limit that always allows: for breakers that guard a whole service, not one of its instances.
    #[must_use]
    pub fn unbounded(refused: IntCounter) -> Self {
        Self::new(Box::new(|_| (2, 0)), refused)
    }

    /// Requests that a breaker may open. `act` gets the verdict and opens the breaker, before the next request
    /// counts.
    pub fn request(&self, rpc: Rpc, act: impl FnOnce(Verdict)) -> Verdict {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let (all, open) = (self.count)(rpc);
        let verdict = match all {
            0 | 1 => Verdict::SoleInstance,
            _ if open < all / 2 => Verdict::Allowed,
            _ => Verdict::Refused,
        };
        if verdict == Verdict::Refused {
            self.refused.inc();
        }
        act(verdict);
        verdict
    }
}
