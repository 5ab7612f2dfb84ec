//! Chooses the instance for one attempt.
//!
//! In this order: instances that the call has not tried and whose breaker lets it through; those that it has
//! tried; if every breaker is open, the least bad one (the panic mode of Envoy and Finagle). Instances that are
//! not connected or at their in-flight limit are never chosen.
//!
//! A pick looks at a few instances, however many there are. Only if those are all unsuitable it looks at all.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use tokio::time::Instant;

use crate::api::rpc::{PerRpc, Rpc};
use crate::client::balance::breaker_state::BreakerState;
use crate::client::balance::endpoint::Endpoint;
use crate::client::call::Call;
use crate::config::Balancer;
use crate::random;

/// Pairs that are drawn before all instances are looked at.
const MAX_DRAWS: usize = 4;

/// How suitable an instance is for a call, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Suitability {
    /// Its breaker is open and a probe is due: this call would be the probe.
    ProbeDue,
    /// Its breaker is closed, and the call has not tried it.
    Untried,
    /// Its breaker is closed, but the call has tried it.
    Tried,
    /// Its breaker is open.
    BreakerOpen,
}

/// Chooses among the usable instances of one service.
#[derive(Debug)]
pub enum Picker {
    /// Each in turn. Each rpc has its own turn, and only the first attempt of a call takes one: else a caller that
    /// alternates writes and reads would send every write to the same one of two instances, and the attempt after
    /// a failure would turn every next call to the one that fails.
    RoundRobin(PerRpc<AtomicUsize>),
    /// The one of two random instances with the smaller [`cost`](crate::client::balance::load::Load::cost)
    /// (power of two choices).
    PeakEwma,
}

impl From<Balancer> for Picker {
    fn from(kind: Balancer) -> Self {
        match kind {
            Balancer::RoundRobin => Self::RoundRobin(PerRpc::default()),
            Balancer::PeakEwma => Self::PeakEwma,
        }
    }
}

type Candidate<'a> = (&'a Arc<Endpoint>, Suitability);

impl Picker {
    /// Returns one of `usable` and how suitable it is; `None` if none can be called.
    pub fn pick<'a>(&self, call: &Call, usable: &'a [Arc<Endpoint>]) -> Option<Candidate<'a>> {
        let now = Instant::now();
        let good = |at: usize| {
            let endpoint = usable.get(at)?;
            let suitability = suitability(endpoint, call, now)?;
            (suitability <= Suitability::Untried).then_some((endpoint, suitability))
        };
        match self {
            Self::RoundRobin(turns) => {
                let first = call.tried.is_empty();
                let turn = turns[call.rpc].fetch_add(usize::from(first), Relaxed);
                let from = turn.checked_rem(usable.len())?;
                (from..usable.len()).chain(0..from).find_map(good)
            }
            Self::PeakEwma => (0..MAX_DRAWS).find_map(|_| {
                let (one, other) = draw(usable.len())?;
                match (good(one), good(other)) {
                    (Some(one), Some(other)) => Some(better(one, other, call.rpc, now)),
                    (one, other) => one.or(other),
                }
            }),
        }
        .or_else(|| least_bad(call, usable, now))
    }
}

/// Returns true if a hedge of a call can be sent to one of `usable`.
pub fn has_place_for_hedge(call: &Call, usable: &[Arc<Endpoint>]) -> bool {
    let (hedge, now) = (Call { hedge: true, ..call.clone() }, Instant::now());
    usable.iter().any(|endpoint| suitability(endpoint, &hedge, now).is_some())
}

/// Returns how suitable an instance is; `None` if it cannot be called.
fn suitability(endpoint: &Endpoint, call: &Call, now: Instant) -> Option<Suitability> {
    // the connection may have broken since the snapshot was taken
    if !endpoint.state().is_connected() || endpoint.is_full() {
        return None;
    }
    let tried = call.tried.contains(&endpoint.number);
    Some(match endpoint.breakers.state(call.rpc, now) {
        BreakerState::Closed if !tried => Suitability::Untried,
        // the first attempt goes on: a hedge that is likely to fail is of no use
        _ if call.hedge => return None,
        BreakerState::Closed => Suitability::Tried,
        BreakerState::ProbeDue if !tried => Suitability::ProbeDue,
        BreakerState::Open | BreakerState::HalfOpen | BreakerState::ProbeDue => Suitability::BreakerOpen,
    })
}

/// Returns two different random indices below `length`, twice 0 if `length` is 1.
fn draw(length: usize) -> Option<(usize, usize)> {
    if length < 2 {
        return (length == 1).then_some((0, 0));
    }
    let one = random::range(0..length);
    let other = (one + random::range(1..length)) % length;
    Some((one, other))
}

/// Returns the better of two good candidates. They come in random order, so the first may win a tie.
fn better<'a>(one: Candidate<'a>, other: Candidate<'a>, rpc: Rpc, now: Instant) -> Candidate<'a> {
    if one.1 != other.1 {
        // some call has to be the probe, although the load of its instance looks bad
        return if one.1 < other.1 { one } else { other };
    }
    let (winner, loser) =
        if one.0.load.cost(rpc, now) <= other.0.load.cost(rpc, now) { (one, other) } else { (other, one) };
    match winner.0.load.slow_start_share(now) {
        // in slow start an instance gets a growing share, if the other one is past its own
        Some(share) if random::fraction() >= share && loser.0.load.is_past_slow_start(now) => loser,
        _ => winner,
    }
}

/// Returns the most suitable of all instances: the panic mode.
fn least_bad<'a>(call: &Call, usable: &'a [Arc<Endpoint>], now: Instant) -> Option<Candidate<'a>> {
    let rpc = call.rpc;
    // begins at a random one, so that equal instances share the calls
    let from = random::range(0..usable.len().max(1));
    let rotated = usable.iter().cycle().skip(from).take(usable.len());
    let candidates = rotated.filter_map(|endpoint| Some((endpoint, suitability(endpoint, call, now)?)));
    candidates.min_by(|(a, suitability_a), (b, suitability_b)| {
        let tie_break = || match suitability_a {
            Suitability::BreakerOpen => a.breakers.probe_at(rpc).cmp(&b.breakers.probe_at(rpc)),
            _ => a.load.cost(rpc, now).total_cmp(&b.load.cost(rpc, now)),
        };
        suitability_a.cmp(suitability_b).then_with(tie_break)
    })
}

#[cfg(test)]
#[path = "pick_tests.rs"]
mod tests;
