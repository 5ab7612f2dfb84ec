//! Sets the gauges of calls that are not kept up to date all the time: before each page of metrics.

use std::collections::BTreeMap;

use tokio::time::Instant;

use super::Client;
use super::transport::pool::State;
use crate::api::rpc::Rpc;

impl Client {
    /// Sets the gauges that are not kept up all the time, for all clients of a process together.
    pub fn update_gauges(clients: &[Self]) {
        let now = Instant::now();
        let services =
            |name: &'static str| clients.iter().filter_map(move |client| client.services.get(name));
        // the meters of all clients of a service are the same ones
        for (name, meters) in clients.iter().flat_map(|client| {
            let each = client.services.iter();
            each.map(|(name, service)| (*name, &service.meters))
        }) {
            let snapshots: Vec<_> = services(name).map(|service| service.set.now()).collect();
            // each instance counts once, as the caller sees it that has the most trouble with it
            let mut states = BTreeMap::<&str, State>::new();
            for endpoint in snapshots.iter().flat_map(|snapshot| &snapshot.all) {
                let state = states.entry(&endpoint.instance.addr).or_insert(State::Up);
                *state = state.worse(endpoint.state());
            }
            for state in State::ALL {
                meters.endpoints(state, states.values().filter(|known| **known == state).count());
            }
            for rpc in Rpc::of_service(name) {
                let all = snapshots.iter().flat_map(|snapshot| &snapshot.all);
                meters.breakers(rpc, all.map(|endpoint| endpoint.breakers.state(rpc, now)));
                let best_effort = services(name).map(|service| service.best_effort.state(rpc, now));
                meters.best_effort(rpc, best_effort);
            }
        }
    }
}
