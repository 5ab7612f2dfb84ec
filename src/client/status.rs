//! What `/status` tells of the instances that are called, and of the calls of each service.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::api::rpc::Rpc;
use crate::client::balance::breaker_state::BreakerState;
use crate::client::balance::endpoint::Endpoint;
use crate::client::policy::retry_policy::Refusal;
use crate::client::transport::state::ConnectionState;
use crate::client::{Client, Service};

/// What a client knows of one instance.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Instance {
    /// Where it is called.
    pub addr: String,
    /// `up`, `connecting`, `down`, `not_serving`, `wrong_service` or `unresponsive`.
    pub state: String,
    /// True once it has said that it stops.
    pub draining: bool,
    /// Calls in flight, of all threads.
    pub in_flight: usize,
    /// Open connections, of all threads.
    pub connections: usize,
    /// Expected latency by method, ms.
    pub ewma_ms: BTreeMap<String, f64>,
    /// Share of failures by method, 0 to 1, where there are any.
    pub failures: BTreeMap<String, f64>,
    /// `open` or `half_open` by method; a closed breaker is not listed.
    pub breakers: BTreeMap<String, String>,
    /// For how many seconds these breakers have been open.
    pub breaker_seconds: BTreeMap<String, u64>,
    /// What last went wrong.
    pub last_error: Option<String>,
    /// The id in its last answer, if it is not the registered one.
    pub adopted_id: Option<String>,
    /// Why it gets no calls or fewer than others, in a few words; `None` if it gets its share.
    pub why: Option<String>,
}

impl Instance {
    /// Returns true if it is connected and healthy, as far as its connections tell.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.state == ConnectionState::Up.name()
    }

    /// Returns true if the first connection, or another one after a loss, is being opened.
    #[must_use]
    pub fn is_connecting(&self) -> bool {
        self.state == ConnectionState::Connecting.name()
    }
}

/// What the calls of one service have come to since the start. All clients of a process count together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CallTotals {
    /// Attempts after the first one of a call.
    pub retries: u64,
    /// Retries that were not made because the budget was used up.
    pub refused_by_budget: u64,
    /// Reads that were answered with an earlier answer.
    pub fallbacks: u64,
}

/// The clients of one caller, one for each thread.
type Threads<'a> = [&'a Client];

/// Returns the breakers for best-effort calls that are not closed on some thread of a caller, `open` or `half_open` by
/// service and method.
#[must_use]
pub fn best_effort(caller: &Threads<'_>) -> BTreeMap<String, BTreeMap<String, String>> {
    let now = Instant::now();
    let mut found = BTreeMap::<_, BTreeMap<_, _>>::new();
    for (name, service) in caller.iter().flat_map(|client| &client.0.services) {
        for rpc in Rpc::of_service(name) {
            let state = service.best_effort.state(rpc, now);
            if state != BreakerState::Closed {
                add_breaker(found.entry((*name).to_owned()).or_default(), rpc.method().to_owned(), state);
            }
        }
    }
    found
}

/// Adds the breaker of one thread, by method; of several threads the one counts that lets the least through.
fn add_breaker(breakers: &mut BTreeMap<String, String>, method: String, state: BreakerState) {
    let known = breakers.entry(method).or_insert_with(|| state.name().to_owned());
    let worst = BreakerState::of_name(known).map_or(state, |known| known.worse(state));
    worst.name().clone_into(known);
}

/// Returns what a caller knows of every instance, by service: all its threads together.
#[must_use]
pub fn instances(caller: &Threads<'_>) -> BTreeMap<String, Vec<Instance>> {
    let mut services = BTreeMap::<String, BTreeMap<String, Instance>>::new();
    for (name, snapshot) in caller.iter().flat_map(|client| client.snapshots()) {
        // an instance is not alone if there is another one that serves
        let serving = snapshot.usable.iter().filter(|endpoint| endpoint.serves()).take(2);
        let serving: Vec<_> = serving.map(|endpoint| endpoint.number).collect();
        let known = services.entry(name.to_owned()).or_default();
        for endpoint in &snapshot.all {
            let others = serving.iter().any(|number| *number != endpoint.number);
            let seen = instance(name, endpoint, others);
            match known.get_mut(&seen.addr) {
                Some(known) => known.add(seen, endpoint.state()),
                None => drop(known.insert(seen.addr.clone(), seen)),
            }
        }
    }
    services.into_iter().map(|(name, known)| (name, known.into_values().collect())).collect()
}

/// Returns the retries of the last 10 s and how many there may be, for each service: all threads of a caller together.
/// Every caller has a budget of its own.
#[must_use]
pub fn budgets(caller: &Threads<'_>) -> BTreeMap<&'static str, (u64, u64)> {
    let mut budgets = BTreeMap::new();
    let reserves = caller.first().into_iter().flat_map(|client| &client.0.shared.limits);
    let reserves = reserves.map(|(name, limits)| (*name, limits.reserves.retries.usage()));
    let earned = caller.iter().flat_map(|client| &client.0.services);
    let earned = earned.map(|(name, service)| (*name, service.budget.usage()));
    for (name, (used, size)) in reserves.chain(earned) {
        let sum = budgets.entry(name).or_insert((0, 0));
        *sum = (sum.0 + used, sum.1 + size);
    }
    budgets
}

impl Instance {
    /// Adds what another thread sees of the same instance, to which its connections are in a state.
    fn add(&mut self, other: Self, state: ConnectionState) {
        let worse = ConnectionState::ALL.into_iter().find(|known| known.name() == self.state);
        if worse.is_some_and(|known| known.worse(state) != known) {
            (self.state, self.why) = (other.state, other.why);
        } else if self.why.is_none() {
            self.why = other.why;
        }
        self.draining |= other.draining;
        self.in_flight = self.in_flight.max(other.in_flight); // the threads share the count
        self.connections += other.connections;
        for (method, ms) in other.ewma_ms {
            let known = self.ewma_ms.entry(method).or_default();
            *known = known.max(ms);
        }
        for (method, share) in other.failures {
            let known = self.failures.entry(method).or_default();
            *known = known.max(share);
        }
        for (method, name) in other.breakers {
            if let Some(state) = BreakerState::of_name(&name) {
                add_breaker(&mut self.breakers, method, state);
            }
        }
        for (method, seconds) in other.breaker_seconds {
            let known = self.breaker_seconds.entry(method).or_default();
            *known = (*known).max(seconds);
        }
        self.last_error = self.last_error.take().or(other.last_error);
        self.adopted_id = self.adopted_id.take().or(other.adopted_id);
    }
}

impl Client {
    /// Returns what the calls of each service have come to.
    pub fn totals(&self) -> impl Iterator<Item = (&'static str, CallTotals)> {
        self.0.services.iter().map(|(name, service)| (*name, service.totals()))
    }
}

impl Service {
    fn totals(&self) -> CallTotals {
        let retry = &self.metrics.retry;
        CallTotals {
            retries: retry.granted.iter().map(prometheus::IntCounter::get).sum(),
            refused_by_budget: retry.refused[Refusal::Budget as usize].get(),
            fallbacks: self
                .metrics
                .fallback
                .iter()
                .filter_map(|(_, counter)| Some(counter.as_ref()?.get()))
                .sum(),
        }
    }
}

fn instance(service: &str, endpoint: &Endpoint, others: bool) -> Instance {
    let (mut ewma_ms, mut failures) = (BTreeMap::new(), BTreeMap::new());
    for rpc in Rpc::of_service(service) {
        if let Some(latency) = endpoint.load.latency(rpc) {
            ewma_ms.insert(rpc.method().to_owned(), round(latency.as_secs_f64() * 1000.0));
        }
        let share = round(endpoint.load.failures(rpc));
        if share > 0.0 {
            failures.insert(rpc.method().to_owned(), share);
        }
    }
    let (mut breakers, mut breaker_seconds) = (BTreeMap::new(), BTreeMap::new());
    for (rpc, state) in endpoint.tripped() {
        breakers.insert(rpc.method().to_owned(), state.name().to_owned());
        let since = endpoint.open_for(rpc).unwrap_or_default();
        breaker_seconds.insert(rpc.method().to_owned(), since.as_secs());
    }
    let text = |text: std::sync::Arc<String>| (*text).clone();
    Instance {
        addr: endpoint.instance.addr.clone(),
        state: endpoint.state().name().to_owned(),
        draining: endpoint.instance.draining,
        in_flight: endpoint.in_flight(),
        connections: endpoint.open_connections(),
        ewma_ms,
        failures,
        breakers,
        breaker_seconds,
        last_error: endpoint.last_error().map(text),
        adopted_id: endpoint.adopted_id().map(text),
        why: endpoint.why_avoided(others),
    }
}

/// Rounds to three decimals: enough for people.
fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_threads_of_a_caller_see_one_instance() {
        let of = |name: &str, value: f64| BTreeMap::from([(name.to_owned(), value)]);
        let all = |maps: [BTreeMap<String, f64>; 2]| maps.into_iter().flatten().collect::<BTreeMap<_, _>>();
        let mut known = Instance {
            addr: "a:1".to_owned(),
            state: "up".to_owned(),
            in_flight: 3,
            connections: 1,
            ewma_ms: of("GetFeeds", 2.0),
            ..Instance::default()
        };
        let other = Instance {
            state: "down".to_owned(),
            in_flight: 3,
            connections: 2,
            ewma_ms: all([of("GetFeeds", 1.0), of("CreateFeed", 4.0)]),
            failures: of("GetFeeds", 0.5),
            breakers: BTreeMap::from([("GetFeeds".to_owned(), "open".to_owned())]),
            why: Some("it cannot be connected to".to_owned()),
            last_error: Some("refused".to_owned()),
            ..known.clone()
        };
        let better = known.clone();
        known.add(other.clone(), ConnectionState::Down);
        let merged = Instance {
            connections: 3,
            ewma_ms: all([of("GetFeeds", 2.0), of("CreateFeed", 4.0)]),
            ..other.clone()
        };
        assert_eq!(known, merged);
        // whichever thread comes first
        let mut known = other;
        known.add(better, ConnectionState::Up);
        assert_eq!(known, merged);
    }

    #[test]
    fn of_two_breakers_the_one_that_lets_less_through_is_told() {
        let seen = |state: BreakerState| Instance {
            state: "up".to_owned(),
            breakers: BTreeMap::from([("GetFeeds".to_owned(), state.name().to_owned())]),
            ..Instance::default()
        };
        let (open, half_open) = (BreakerState::Open, BreakerState::HalfOpen);
        for (first, second) in [(open, half_open), (half_open, open)] {
            let mut known = seen(first);
            known.add(seen(second), ConnectionState::Up);
            assert_eq!(known.breakers["GetFeeds"], "open", "{first:?}, then {second:?}");
        }
    }
}
