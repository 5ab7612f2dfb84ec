//! Which instance gets the next attempt, and the layer that sends it there.
//!
//! Only instances that can be called take part ([`crate::client::balance::discover`] keeps that set, outside of the request
//! path). Among them, in this order: those that the call has not tried and whose breaker lets it through;
//! those that it has tried; with every breaker open the least bad one (Envoy's and Finagle's panic mode).
//! Nobody there is an answer too, at once.
//!
//! A pick looks at a few instances, however many there are; only when those are all unfit it looks at
//! everyone.

pub mod breaker;
pub mod discover;
pub mod ejection;
pub mod endpoint;
pub mod guard;
pub mod in_flight;
pub mod load;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::Instant;

use crate::api::error::Error;
use crate::api::rpc::{PerRpc, Rpc};
use crate::client::balance::discover::Set;
use crate::client::balance::endpoint::Endpoint;
use crate::client::call::{Call, Failure, Outcome, Reach, layer};
use crate::client::transport::pool::State;
use crate::config::Balancer;
use crate::random;

/// How long after its start a client waits for the registry's first word before it says that nobody is
/// there.
const FIRST_VIEW: Duration = Duration::from_secs(1);
/// Pairs that are drawn before everyone is looked at.
const DRAWS: usize = 4;

/// How an instance fits a call; the smaller the better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fit {
    /// Its breaker waits for a probe, and this call would be it.
    Probe,
    Fresh,
    Tried,
    Open,
}

/// Chooses among the usable instances of one service.
#[derive(Debug)]
pub enum Balance {
    /// Each in turn, the original's promise. Each rpc has turns of its own: a caller that writes and reads
    /// in step would else send every write to the same one of two instances.
    RoundRobin(PerRpc<AtomicUsize>),
    /// Of two at random the one with the smaller [`crate::client::balance::load::Load::cost`] (power of two choices).
    PeakEwma,
}

impl From<Balancer> for Balance {
    fn from(kind: Balancer) -> Self {
        match kind {
            Balancer::RoundRobin => Self::RoundRobin(PerRpc::default()),
            Balancer::PeakEwma => Self::PeakEwma,
        }
    }
}

impl Balance {
    /// Returns one of `usable` and how it fits; `None` if nobody can be called.
    fn pick<'a>(&self, call: &Call, usable: &'a [Arc<Endpoint>]) -> Option<(&'a Arc<Endpoint>, Fit)> {
        let now = Instant::now();
        let good = |at: usize| {
            let endpoint = usable.get(at)?;
            let fit = fit(endpoint, call, now)?;
            (fit <= Fit::Fresh).then_some((endpoint, fit))
        };
        match self {
            Self::RoundRobin(turns) => {
                let turn = turns[call.rpc].fetch_add(1, Relaxed);
                let from = turn.checked_rem(usable.len())?;
                (from..usable.len()).chain(0..from).find_map(good)
            }
            Self::PeakEwma => (0..DRAWS).find_map(|_| {
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

/// Returns how an instance fits; `None` if it cannot be called.
fn fit(endpoint: &Endpoint, call: &Call, now: Instant) -> Option<Fit> {
    // the connection may have broken since the snapshot
    if !matches!(endpoint.state(), State::Up | State::NotServing) || endpoint.is_full() {
        return None;
    }
    let tried = call.tried.contains(&endpoint.number);
    Some(match endpoint.breakers.state(call.rpc, now) {
        breaker::State::Closed if tried => Fit::Tried,
        breaker::State::Closed => Fit::Fresh,
        breaker::State::Due if !tried => Fit::Probe,
        breaker::State::Open | breaker::State::HalfOpen | breaker::State::Due => Fit::Open,
    })
}

/// Returns two different places below `length`, twice the same if there is only one.
fn draw(length: usize) -> Option<(usize, usize)> {
    if length < 2 {
        return (length == 1).then_some((0, 0));
    }
    let one = random::range(0..length);
    let other = (one + random::range(1..length)) % length;
    Some((one, other))
}

type Candidate<'a> = (&'a Arc<Endpoint>, Fit);

/// Returns the better of two good ones. They come in random order, so that the first wins a tie.
fn better<'a>(one: Candidate<'a>, other: Candidate<'a>, rpc: Rpc, now: Instant) -> Candidate<'a> {
    if one.1 != other.1 {
        // a probe has to be sent by someone, though its instance looks bad
        return if one.1 < other.1 { one } else { other };
    }
    let (winner, loser) =
        if one.0.load.cost(rpc, now) <= other.0.load.cost(rpc, now) { (one, other) } else { (other, one) };
    match winner.0.load.ramp(now) {
        // a newcomer's calls grow to its full share, if there is somebody who is none
        Some(share) if random::fraction() >= share && loser.0.load.is_settled(now) => loser,
        _ => winner,
    }
}

/// Looks at everyone.
fn least_bad<'a>(call: &Call, usable: &'a [Arc<Endpoint>], now: Instant) -> Option<Candidate<'a>> {
    let rpc = call.rpc;
    // from a random place, so that equals share
    let from = random::range(0..usable.len().max(1));
    let turned = usable.iter().cycle().skip(from).take(usable.len());
    let fitting = turned.filter_map(|endpoint| Some((endpoint, fit(endpoint, call, now)?)));
    fitting.min_by(|(a, fit_a), (b, fit_b)| {
        let within = || match fit_a {
            Fit::Open => a.breakers.due(rpc).cmp(&b.breakers.due(rpc)),
            _ => a.load.cost(rpc, now).total_cmp(&b.load.cost(rpc, now)),
        };
        fit_a.cmp(fit_b).then_with(within)
    })
}

/// Sends each attempt to one instance of the service.
#[derive(Clone)]
pub struct Balanced {
    shared: Arc<Shared>,
}

struct Shared {
    started: Instant,
    set: Set,
    balance: Balance,
}

impl Balanced {
    /// Returns the layer over a set of instances.
    #[must_use]
    pub fn new(set: Set, kind: Balancer) -> Self {
        Self { shared: Arc::new(Shared { started: Instant::now(), set, balance: kind.into() }) }
    }

    async fn run(&self, mut call: Call) -> Outcome {
        let endpoint = match self.shared.pick(&mut call) {
            Some(Ok(endpoint)) => endpoint,
            Some(Err(failure)) => return Err(failure),
            None => self.shared.wait(&mut call).await?,
        };
        call.picked.store(endpoint.number, Relaxed);
        endpoint.load.begin(Instant::now());
        endpoint.send(call).await
    }
}
layer!(Balanced);

impl Shared {
    /// Returns the instance for an attempt, or why there is none, or `None` if it is worth waiting for one.
    fn pick(&self, call: &mut Call) -> Option<Result<Arc<Endpoint>, Failure>> {
        let snapshot = self.set.now();
        // a snapshot is a little old: who has come up since is in it, but not among the usable
        let usable = self.balance.pick(call, &snapshot.usable).map(|picked| (picked, snapshot.usable.len()));
        // those that say they stop are for when nobody else is there, not for when everyone is busy
        let rest = || -> Vec<_> {
            let rest = snapshot.all.iter().filter(|e| snapshot.usable.is_empty() || e.serves());
            rest.cloned().collect()
        };
        let rest = if usable.is_none() { rest() } else { Vec::new() };
        let picked = usable.or_else(|| Some((self.balance.pick(call, &rest)?, rest.len())));
        let Some(((endpoint, fit), among)) = picked else {
            // a process that has just started is about to learn who is there, and to connect
            let soon = !snapshot.known && self.started.elapsed() < FIRST_VIEW;
            let full = snapshot.all.iter().any(|endpoint| endpoint.is_full());
            if !full && (snapshot.connecting() || soon) {
                return None;
            }
            return Some(Err(nobody(call)));
        };
        call.forced = false;
        if fit == Fit::Open {
            if among == 1 && endpoint.breakers.opened_by_run(call.rpc) {
                endpoint.breakers.hasten(call.rpc);
                return Some(Err(nobody(call)));
            }
            call.forced = true;
        }
        Some(Ok(endpoint.clone()))
    }

    /// Waits while a first connection is being opened or the registry has not yet said who is there.
    async fn wait(&self, call: &mut Call) -> Result<Arc<Endpoint>, Failure> {
        loop {
            let mut changes = self.set.changes();
            // a change between the last look and this one would be missed
            if let Some(picked) = self.pick(call) {
                return picked;
            }
            let deadline = call.context.deadline;
            let view = (self.started + FIRST_VIEW).min(deadline);
            let until = if self.set.now().connecting() { deadline } else { view };
            match tokio::time::timeout_at(until, changes.changed()).await {
                Ok(Err(_)) => return Err(nobody(call)),
                Err(_) if Instant::now() >= deadline => return Err(nobody(call)),
                Ok(Ok(())) | Err(_) => {}
            }
        }
    }
}

fn nobody(call: &Call) -> Failure {
    let error = Error::unavailable(format!("no instance of {} can be called", call.rpc.service()));
    Failure::new(Reach::Nobody, error)
}

#[cfg(test)]
mod balance_tests;
