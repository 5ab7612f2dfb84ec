//! The states of a breaker, values by state, and the counters of changes.

use prometheus::IntCounter;

use crate::api::rpc::{PerRpc, Rpc};

/// What a breaker does with the next call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerState {
    /// Lets it through.
    Closed,
    /// Lets nothing through.
    Open,
    /// Is still open, but lets the next call through as the probe.
    ProbeDue,
    /// Waits for the outcome of the probe and lets nothing else through.
    HalfOpen,
}

impl BreakerState {
    /// Returns the word for it in `/status` and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open | Self::ProbeDue => "open",
            Self::HalfOpen => "half_open",
        }
    }
}

/// One value for each state that is reported: [`BreakerState::ProbeDue`] is reported as open.
#[derive(Clone, Debug, Default)]
pub struct PerState<T> {
    closed: T,
    open: T,
    half_open: T,
}

impl<T> PerState<T> {
    /// Returns the values that `value` gives.
    pub fn from_fn(mut value: impl FnMut(BreakerState) -> T) -> Self {
        Self {
            closed: value(BreakerState::Closed),
            open: value(BreakerState::Open),
            half_open: value(BreakerState::HalfOpen),
        }
    }

    /// Returns the value of a state.
    pub const fn of(&self, state: BreakerState) -> &T {
        match state {
            BreakerState::Closed => &self.closed,
            BreakerState::Open | BreakerState::ProbeDue => &self.open,
            BreakerState::HalfOpen => &self.half_open,
        }
    }

    /// Returns the value of a state, to be changed.
    pub const fn of_mut(&mut self, state: BreakerState) -> &mut T {
        match state {
            BreakerState::Closed => &mut self.closed,
            BreakerState::Open | BreakerState::ProbeDue => &mut self.open,
            BreakerState::HalfOpen => &mut self.half_open,
        }
    }
}

/// Counters of a service's breakers that changed to a state. An rpc of another service has none.
#[derive(Debug, Default)]
pub struct Transitions(PerRpc<Option<PerState<IntCounter>>>);

impl Transitions {
    /// Returns these counters.
    #[must_use]
    pub const fn new(counters: PerRpc<Option<PerState<IntCounter>>>) -> Self {
        Self(counters)
    }

    /// Counts a change to a state.
    pub fn count(&self, rpc: Rpc, to: BreakerState) {
        if let Some(counters) = &self.0[rpc] {
            counters.of(to).inc();
        }
    }
}
