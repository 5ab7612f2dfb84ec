//! Which instance gets the next call. Outside of this file nobody knows how it is chosen.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use super::endpoint::Endpoint;
use crate::config::Balancer;
use crate::rpc::{self, Rpc};

/// Chooses among the usable instances of one service.
pub trait Balance: Send + Sync {
    /// Returns one of `usable`, which is sorted by address; `None` only if it is empty.
    fn pick<'a>(&self, rpc: &Rpc, usable: &'a [Arc<Endpoint>]) -> Option<&'a Arc<Endpoint>>;
}

/// Makes the balancer that the settings name.
#[must_use]
pub fn of(kind: Balancer) -> Box<dyn Balance> {
    match kind {
        Balancer::RoundRobin => Box::new(RoundRobin::default()),
    }
}

/// Each instance in turn, the original's promise. Instances that are down are not among the usable ones,
/// so their turns are spread evenly. Each rpc has turns of its own: a caller that writes and reads in
/// step would else send every write to the same one of two instances.
#[derive(Debug, Default)]
pub struct RoundRobin([AtomicUsize; rpc::ALL.len()]);

impl Balance for RoundRobin {
    fn pick<'a>(&self, rpc: &Rpc, usable: &'a [Arc<Endpoint>]) -> Option<&'a Arc<Endpoint>> {
        if usable.is_empty() {
            return None;
        }
        let turn = self.0.get(rpc.index).map_or(0, |turns| turns.fetch_add(1, Relaxed));
        usable.get(turn % usable.len())
    }
}
