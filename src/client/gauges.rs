//! Sets the gauges that are not kept up to date all the time: called before each page of metrics is written.

use std::collections::BTreeMap;

use tokio::time::Instant;

use crate::api::rpc::Rpc;
use crate::client::Client;
use crate::client::transport::state::ConnectionState;

impl Client {
    /// Sets these gauges for all clients of a process together.
    pub fn update_gauges(clients: &[Self]) {
        let now = Instant::now();
        let services =
            |name: &'static str| clients.iter().filter_map(move |client| client.services.get(name));
        // all clients of a service count with the same metrics
        for (name, metrics) in clients.iter().flat_map(|client| {
            let each = client.services.iter();
            each.map(|(name, service)| (*name, &service.metrics))
        }) {
            let snapshots: Vec<_> = services(name).map(|service| service.endpoints.now()).collect();
            // each instance counts once, in the worst state in which a client sees it
            let mut states = BTreeMap::<&str, ConnectionState>::new();
            for endpoint in snapshots.iter().flat_map(|snapshot| &snapshot.all) {
                let state = states.entry(&endpoint.instance.addr).or_insert(ConnectionState::Up);
                *state = state.worse(endpoint.state());
            }
            for state in ConnectionState::ALL {
                metrics.set_endpoints(state, states.values().filter(|known| **known == state).count());
            }
            for rpc in Rpc::of_service(name) {
                let all = snapshots.iter().flat_map(|snapshot| &snapshot.all);
                metrics.set_breakers(rpc, all.map(|endpoint| endpoint.breakers.state(rpc, now)));
                let best_effort = services(name).map(|service| service.best_effort.state(rpc, now));
                metrics.set_best_effort(rpc, best_effort);
            }
        }
    }
}
