//! Sets the gauges that are not kept up to date all the time: called before each page of metrics is written.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::time::Instant;

use crate::api::rpc::Rpc;
use crate::client::balance::breaker_state::BreakerState;
use crate::client::balance::discover::Snapshot;
use crate::client::transport::state::ConnectionState;
use crate::client::{Client, Service};

impl Client {
    /// Sets these gauges for all clients of a process together.
    pub fn update_gauges(clients: &[Self]) {
        let callers = Self::by_caller(clients);
        let first = callers.iter().filter_map(|clients| clients.first());
        let names: BTreeMap<_, _> = first.flat_map(|client| &client.0.services).collect();
        for (name, service) in names {
            let of = |clients: &Vec<&Self>| -> Vec<_> {
                let services = clients.iter().filter_map(|client| client.0.services.get(name));
                services.map(|service| (service.endpoints.now(), service.best_effort.clone())).collect()
            };
            set(name, service, &callers.iter().map(of).collect::<Vec<_>>());
        }
    }
}

/// Sets the gauges of one service. `callers` are what each thread of each caller sees of it, and its breakers for best-effort
/// calls.
fn set(name: &str, service: &Service, callers: &[Vec<(Arc<Snapshot>, Arc<super::Breakers>)>]) {
    let (now, metrics) = (Instant::now(), &service.metrics);
    // each instance counts once, in the worst state in which a client sees it
    let mut states = BTreeMap::<&str, ConnectionState>::new();
    for endpoint in callers.iter().flatten().flat_map(|(snapshot, _)| &snapshot.all) {
        let state = states.entry(&endpoint.instance.addr).or_insert(ConnectionState::Up);
        *state = state.worse(endpoint.state());
    }
    for state in ConnectionState::ALL {
        metrics.set_endpoints(state, states.values().filter(|known| **known == state).count());
    }
    for rpc in Rpc::of_service(name) {
        let instances = callers.iter().flat_map(|threads| breakers(rpc, now, threads));
        metrics.set_breakers(rpc, instances);
        let best_effort = callers.iter().filter_map(|threads| {
            threads.iter().map(|(_, breakers)| breakers.state(rpc, now)).reduce(BreakerState::worse)
        });
        metrics.set_best_effort(rpc, best_effort);
    }
}

/// Returns the state of the breaker of each instance, as the thread of one caller has it that lets the least through.
fn breakers<T>(rpc: Rpc, now: Instant, threads: &[(Arc<Snapshot>, T)]) -> Vec<BreakerState> {
    if let [(snapshot, _)] = threads {
        return snapshot.all.iter().map(|endpoint| endpoint.breakers.state(rpc, now)).collect();
    }
    let mut states = BTreeMap::<&str, BreakerState>::new();
    for endpoint in threads.iter().flat_map(|(snapshot, _)| &snapshot.all) {
        let state = states.entry(&endpoint.instance.addr).or_insert(BreakerState::Closed);
        *state = state.worse(endpoint.breakers.state(rpc, now));
    }
    states.into_values().collect()
}
