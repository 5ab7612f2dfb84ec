//! How many instances of a service may have their breaker open at once: half of those that can be called,
//! rounded down.
//!
//! They are counted when one asks, among the instances that are there at that moment, so nothing has to be
//! given back when an instance goes; and asked one at a time, so two cannot take the last place.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use prometheus::IntCounter;

use crate::api::rpc::Rpc;

/// Whether a breaker may open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may.
    Open,
    /// It is the only instance.
    Alone,
    /// Too many are open.
    Refused,
}

/// Counts the instances of a service that can be called, and how many of them are not closed for an rpc.
pub type Count = dyn Fn(Rpc) -> (usize, usize) + Send + Sync;

/// The bound of one service.
pub struct Ejection {
    count: Box<Count>,
    turn: Mutex<()>,
    /// `client_breaker_refused_total` of the service.
    refused: IntCounter,
}

impl fmt::Debug for Ejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ejection").finish_non_exhaustive()
    }
}

impl Ejection {
    /// Returns a bound over what `count` finds.
    #[must_use]
    pub fn new(count: Box<Count>, refused: IntCounter) -> Self {
        Self { count, turn: Mutex::new(()), refused }
    }

    /// Returns a bound that is none: for what callers can do without.
    #[must_use]
    pub fn unbounded(refused: IntCounter) -> Self {
        Self::new(Box::new(|_| (2, 0)), refused)
    }

    /// Returns the verdict, after `act` has followed it: before anyone else asks.
    pub fn ask(&self, rpc: Rpc, act: impl FnOnce(Verdict)) -> Verdict {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let (all, open) = (self.count)(rpc);
        let verdict = match all {
            0 | 1 => Verdict::Alone,
            _ if open < all / 2 => Verdict::Open,
            _ => Verdict::Refused,
        };
        if verdict == Verdict::Refused {
            self.refused.inc();
        }
        act(verdict);
        verdict
    }
}
