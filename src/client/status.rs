//! What `/status` tells of the instances that are called, and of the calls of each service.

use std::collections::BTreeMap;
use std::sync::Arc;

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
    let services = caller.iter().flat_map(|client| &client.0.services);
    let states = services.flat_map(|(name, service)| {
        Rpc::of_service(name).map(move |rpc| (*name, rpc, service.best_effort.state(rpc, now)))
    });
    let mut found = BTreeMap::<_, Vec<_>>::new();
    for (name, rpc, state) in states.filter(|(_, _, state)| *state != BreakerState::Closed) {
        found.entry(name.to_owned()).or_default().push((rpc, state));
    }
    found.into_iter().map(|(name, states)| (name, worst_by_method(states))).collect()
}

/// Returns the names of breakers' states by method; of several threads the one counts that lets the least through.
fn worst_by_method(states: impl IntoIterator<Item = (Rpc, BreakerState)>) -> BTreeMap<String, String> {
    let mut worst = BTreeMap::new();
    for (rpc, state) in states {
        let known = worst.entry(rpc.method()).or_insert(state);
        *known = known.worse(state);
    }
    worst.into_iter().map(|(method, state)| (method.to_owned(), state.name().to_owned())).collect()
}

/// What one thread of a caller sees of an instance.
struct Seen {
    endpoint: Arc<Endpoint>,
    /// True if another instance serves.
    others: bool,
}

/// Returns what a caller knows of every instance, by service: all its threads together.
#[must_use]
pub fn instances(caller: &Threads<'_>) -> BTreeMap<String, Vec<Instance>> {
    let mut services = BTreeMap::<_, BTreeMap<String, Vec<Seen>>>::new();
    for (name, snapshot) in caller.iter().flat_map(|client| client.snapshots()) {
        // an instance is not alone if there is another one that serves
        let serving = snapshot.usable.iter().filter(|endpoint| endpoint.serves()).take(2);
        let serving: Vec<_> = serving.map(|endpoint| endpoint.number).collect();
        let known = services.entry(name).or_default();
        for endpoint in &snapshot.all {
            let others = serving.iter().any(|number| *number != endpoint.number);
            let seen = Seen { endpoint: endpoint.clone(), others };
            known.entry(endpoint.instance.addr.clone()).or_default().push(seen);
        }
    }
    let told = |(name, known): (&str, BTreeMap<_, Vec<_>>)| {
        let instances = known.into_iter().map(|(addr, seen)| instance(name, addr, &seen));
        (name.to_owned(), instances.collect())
    };
    services.into_iter().map(told).collect()
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

/// Returns what the threads of a caller see of one instance together: of each value the worst.
fn instance(service: &str, addr: String, seen: &[Seen]) -> Instance {
    let endpoints = || seen.iter().map(|seen| &seen.endpoint);
    let by_method = |value: &dyn Fn(&Endpoint, Rpc) -> Option<f64>| {
        let worst = |rpc| endpoints().filter_map(|endpoint| value(endpoint, rpc)).reduce(f64::max);
        let values = Rpc::of_service(service).filter_map(|rpc| Some((rpc.method().to_owned(), worst(rpc)?)));
        values.collect()
    };
    let breaker_seconds = |rpc| endpoints().filter_map(|endpoint| endpoint.open_for(rpc)).max();
    let breaker_seconds = Rpc::of_service(service)
        .filter_map(|rpc| Some((rpc.method().to_owned(), breaker_seconds(rpc)?.as_secs())))
        .collect();
    let state = endpoints().map(|endpoint| endpoint.state()).reduce(ConnectionState::worse);
    let state = state.unwrap_or(ConnectionState::Down);
    // the reason for this state, else that of any thread
    let (worst, better): (Vec<_>, Vec<_>) = seen.iter().partition(|seen| seen.endpoint.state() == state);
    let why = worst.into_iter().chain(better).find_map(|seen| seen.endpoint.why_avoided(seen.others));
    let text = |text: Arc<String>| (*text).clone();
    Instance {
        addr,
        state: state.name().to_owned(),
        draining: endpoints().any(|endpoint| endpoint.instance.draining),
        // the threads share the count
        in_flight: endpoints().map(|endpoint| endpoint.in_flight()).max().unwrap_or(0),
        connections: endpoints().map(|endpoint| endpoint.open_connections()).sum(),
        ewma_ms: by_method(&|endpoint, rpc| {
            endpoint.load.latency(rpc).map(|latency| round(latency.as_secs_f64() * 1000.0))
        }),
        failures: by_method(&|endpoint, rpc| {
            Some(round(endpoint.load.failures(rpc))).filter(|share| *share > 0.0)
        }),
        breakers: worst_by_method(endpoints().flat_map(|endpoint| endpoint.tripped())),
        breaker_seconds,
        last_error: endpoints().find_map(|endpoint| endpoint.last_error()).map(text),
        adopted_id: endpoints().find_map(|endpoint| endpoint.adopted_id()).map(text),
        why,
    }
}

/// Rounds to three decimals: enough for people.
fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::client::balance::testing::{endpoints, trip};

    /// Returns what two threads see of an instance, and how the instance is told whichever thread comes first.
    fn told(one: &Arc<Endpoint>, other: &Arc<Endpoint>) -> [Instance; 2] {
        let told = |both: [&Arc<Endpoint>; 2]| {
            let seen = both.map(|endpoint| Seen { endpoint: endpoint.clone(), others: true });
            instance("topic", "a:1".to_owned(), &seen)
        };
        [told([one, other]), told([other, one])]
    }

    #[tokio::test]
    async fn of_what_the_threads_of_a_caller_see_the_worst_is_told() {
        let [one, other] = endpoints(2, |_| {}).try_into().expect("two");
        one.load.observe(Rpc::ListTopics, Duration::from_millis(2), false);
        other.load.observe(Rpc::ListTopics, Duration::from_secs(1), true);
        trip(&other);
        let latency = other.load.latency(Rpc::ListTopics).expect("it was observed").as_secs_f64() * 1000.0;
        for told in told(&one, &other) {
            assert_eq!((told.state.as_str(), told.breakers["ListTopics"].as_str()), ("up", "open"));
            assert_eq!(told.why.as_deref(), Some("breaker open for ListTopics"));
            assert!((told.ewma_ms["ListTopics"] - latency).abs() < 1.0, "{told:?}");
            assert!(told.failures["ListTopics"] > 0.5 && told.breaker_seconds["ListTopics"] == 0, "{told:?}");
        }
        one.pretend(ConnectionState::Down);
        for told in told(&one, &other) {
            assert_eq!((told.state.as_str(), told.is_up()), ("down", false));
            assert_eq!(told.why.as_deref(), Some("it cannot be connected to"));
        }
    }

    #[test]
    fn of_two_breakers_the_one_that_lets_less_through_is_told() {
        let (open, half_open) = (BreakerState::Open, BreakerState::HalfOpen);
        for (first, second) in [(open, half_open), (half_open, open)] {
            let told = worst_by_method([first, second].map(|state| (Rpc::GetFeeds, state)));
            assert_eq!(told["GetFeeds"], "open", "{first:?}, then {second:?}");
        }
    }
}
