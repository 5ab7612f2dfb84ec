//! The part of `/status` about the instances that are called.
//!
//! Shape, by service: `[{"addr","state","draining","in_flight","connections","ewma_ms":{method: ms},
//! "failures":{method: share},"breakers":{method: "open"|"half_open"},"last_error","adopted_id","why"}]`;
//! `why` says in a few words why an instance gets no calls or fewer than others, `null` if it gets its share.

use serde_json::{Map, Value, json};
use tokio::time::Instant;

use crate::api::rpc::Rpc;
use crate::client::Client;
use crate::client::balance::breaker_state::BreakerState;
use crate::client::balance::discover::Snapshot;
use crate::client::balance::endpoint::Endpoint;

impl Client {
    /// Returns the breakers for best-effort calls that are not closed,
    /// `{service: {method: "open"|"half_open"}}`.
    #[must_use]
    pub fn best_effort(&self) -> Value {
        let now = Instant::now();
        let services = self.services.iter().filter_map(|(name, service)| {
            let methods = Rpc::of_service(name).filter_map(|rpc| {
                let state = service.best_effort.state(rpc, now);
                (state != BreakerState::Closed).then(|| (rpc.method().to_owned(), json!(state.name())))
            });
            let methods: Map<_, _> = methods.collect();
            (!methods.is_empty()).then(|| ((*name).to_owned(), Value::Object(methods)))
        });
        Value::Object(services.collect())
    }

    /// Returns what is known of every instance.
    #[must_use]
    pub fn status(&self) -> Value {
        let services = self.snapshots().into_iter();
        Value::Object(services.map(|(name, snapshot)| (name.to_owned(), service(name, &snapshot))).collect())
    }
}

fn service(name: &str, snapshot: &Snapshot) -> Value {
    snapshot.all.iter().map(|endpoint| instance(name, endpoint, snapshot)).collect()
}

fn instance(service: &str, endpoint: &Endpoint, snapshot: &Snapshot) -> Value {
    let others = snapshot.usable.iter().any(|other| other.number != endpoint.number && other.serves());
    let (mut latencies, mut failures) = (Map::new(), Map::new());
    for rpc in Rpc::of_service(service) {
        if let Some(latency) = endpoint.load.latency(rpc) {
            latencies.insert(rpc.method().to_owned(), json!(round(latency.as_secs_f64() * 1000.0)));
        }
        let share = round(endpoint.load.failures(rpc));
        if share > 0.0 {
            failures.insert(rpc.method().to_owned(), json!(share));
        }
    }
    let breakers = endpoint.tripped().map(|(rpc, state)| (rpc.method().to_owned(), json!(state.name())));
    json!({
        "addr": endpoint.instance.addr,
        "state": endpoint.state().name(),
        "draining": endpoint.instance.draining,
        "in_flight": endpoint.in_flight(),
        "connections": endpoint.open_connections(),
        "ewma_ms": latencies,
        "failures": failures,
        "breakers": breakers.collect::<Map<_, _>>(),
        "last_error": endpoint.last_error().as_deref(),
        "adopted_id": endpoint.adopted_id().as_deref(),
        "why": endpoint.why_avoided(others),
    })
}

/// Rounds to three decimals: enough for people.
fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}
