//! The states of a breaker, values by state, and the counters of changes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use prometheus::IntCounter;

use crate::api::rpc::{PerRpc, Rpc};
use crate::telemetry::events::{Events, Kind};

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
    /// Returns the one of two states that lets less through: for what several threads see of one instance.
    #[must_use]
    pub const fn worse(self, other: Self) -> Self {
        const fn badness(state: BreakerState) -> u8 {
            match state {
                BreakerState::Closed => 0,
                BreakerState::ProbeDue => 1,
                BreakerState::HalfOpen => 2,
                BreakerState::Open => 3,
            }
        }
        if badness(other) > badness(self) { other } else { self }
    }

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
type Counters = PerRpc<Option<PerState<IntCounter>>>;

/// Whoever is told of breakers that changed their state: the counters of the service, and the events of the process.
#[derive(Clone, Debug, Default)]
pub struct Transitions {
    counters: Arc<Counters>,
    events: Events,
    /// Whose breakers these are, for events.
    of: Arc<str>,
    /// A bit for each rpc whose breaker is not closed.
    open: Arc<AtomicU32>,
}

impl Transitions {
    /// Returns them for the breakers of `of`: a service, or one of its instances.
    #[must_use]
    pub fn new(counters: Counters, events: Events, of: &str) -> Self {
        Self { counters: Arc::new(counters), events, of: of.into(), open: Arc::default() }
    }

    /// Returns the same for the breakers of an instance of this service.
    #[must_use]
    pub fn of_instance(&self, addr: &str) -> Self {
        Self { of: format!("{} {addr}", self.of).into(), open: Arc::default(), ..self.clone() }
    }

    /// Counts a change to a state. That a breaker opens or closes is an event; a probe is none, whatever its outcome.
    pub fn count(&self, rpc: Rpc, to: BreakerState) {
        if let Some(counters) = &self.counters[rpc] {
            counters.of(to).inc();
        }
        let bit = 1_u32 << (rpc as u32);
        let what = match to {
            BreakerState::Closed if self.open.fetch_and(!bit, Relaxed) & bit != 0 => "closed",
            BreakerState::Open | BreakerState::ProbeDue if self.open.fetch_or(bit, Relaxed) & bit == 0 => {
                "opened"
            }
            _ => return,
        };
        self.events.note(Kind::Breaker, format!("{}: breaker {what} for {}", self.of, rpc.method()));
    }
}
