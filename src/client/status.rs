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
    /// Calls in flight.
    pub in_flight: usize,
    /// Open connections.
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

impl Client {
    /// Returns the breakers for best-effort calls that are not closed, `open` or `half_open` by service and method.
    #[must_use]
    pub fn best_effort(&self) -> BTreeMap<String, BTreeMap<String, String>> {
        let now = Instant::now();
        let services = self.services.iter().filter_map(|(name, service)| {
            let methods = Rpc::of_service(name).filter_map(|rpc| {
                let state = service.best_effort.state(rpc, now);
                (state != BreakerState::Closed).then(|| (rpc.method().to_owned(), state.name().to_owned()))
            });
            let methods: BTreeMap<_, _> = methods.collect();
            (!methods.is_empty()).then(|| ((*name).to_owned(), methods))
        });
        services.collect()
    }

    /// Returns what is known of every instance, by service.
    #[must_use]
    pub fn status(&self) -> BTreeMap<String, Vec<Instance>> {
        let services = self.snapshots().into_iter();
        services
            .map(|(name, snapshot)| {
                // an instance is not alone if there is another one that serves
                let serving = snapshot.usable.iter().filter(|endpoint| endpoint.serves()).take(2);
                let serving: Vec<_> = serving.map(|endpoint| endpoint.number).collect();
                let all = snapshot.all.iter().map(|endpoint| {
                    let others = serving.iter().any(|number| *number != endpoint.number);
                    instance(name, endpoint, others)
                });
                (name.to_owned(), all.collect())
            })
            .collect()
    }

    /// Returns what the calls of each service have come to.
    pub fn totals(&self) -> impl Iterator<Item = (&'static str, CallTotals)> {
        self.services.iter().map(|(name, service)| (*name, service.totals()))
    }

    /// Returns the retries of the last 10 s and how many there may be, for each service. Every client has a budget of its
    /// own.
    pub fn budgets(&self) -> impl Iterator<Item = (&'static str, (u64, u64))> {
        self.services.iter().map(|(name, service)| (*name, service.budget.usage()))
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
