//! What callers of a service count. Handles are resolved once, for a call must not look up labels.

use std::sync::Arc;

use prometheus::{HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use super::{Calls, ClientFamilies};
use crate::api::rpc::{self, Rpc};
use crate::client::{self, Breaker, policy::retry};

/// Outcomes of an attempt that are there from the start.
const USUAL: [tonic::Code; 3] = [tonic::Code::Ok, tonic::Code::Unavailable, tonic::Code::DeadlineExceeded];

/// The metrics of the calls to one service; handles are resolved here, once.
#[derive(Debug)]
pub struct ClientMeters {
    /// Attempts by rpc and code.
    pub attempts: Arc<Calls>,
    /// Retries.
    pub retry: retry::Meters,
    /// Fallbacks by rpc.
    pub fallback: Arc<[Option<IntCounter>; rpc::ALL.len()]>,
    /// Calls that ended at their deadline.
    pub deadline_exceeded: IntCounter,
    /// Breakers that changed.
    pub transitions: Arc<Transitions>,
    /// Breakers that were not allowed to open.
    pub breaker_refused: IntCounter,
    /// Attempts that met a full instance.
    pub limit_refused: IntCounter,
    /// What became of connections.
    pub connections: Connections,
    endpoints: [IntGauge; client::State::ALL.len()],
    /// Breakers by rpc: closed, open, half-open.
    breakers: [Option<[IntGauge; 3]>; rpc::ALL.len()],
    /// Breakers for calls that can be done without, which changed.
    pub spared_transitions: Arc<Transitions>,
    spared: [Option<[IntGauge; 3]>; rpc::ALL.len()],
}

const BREAKERS: [Breaker; 3] = [Breaker::Closed, Breaker::Open, Breaker::HalfOpen];

impl ClientMeters {
    pub(super) fn new(families: &ClientFamilies, attempts: &HistogramVec, service: &'static str) -> Self {
        let of = |family: &IntCounterVec, label: &str| family.with_label_values(&[service, label]);
        let single = |family: &IntCounterVec| family.with_label_values(&[service]);
        let mut meters = Self {
            attempts: Arc::new(Calls::new(attempts.clone(), service, &USUAL)),
            retry: retry::Meters {
                granted: retry::Reason::ALL.map(|reason| of(&families.granted, reason.name())),
                refused: retry::Refusal::ALL.map(|refusal| of(&families.refused, refusal.name())),
            },
            fallback: Arc::new(rpc::ALL.each_ref().map(|rpc| {
                (rpc.service == service && rpc.policy.fallback).then(|| of(&families.fallback, rpc.method))
            })),
            deadline_exceeded: single(&families.deadline),
            transitions: Arc::default(),
            breaker_refused: single(&families.breaker_refused),
            limit_refused: single(&families.limit_refused),
            connections: Connections {
                opened: of(&families.connections, "opened"),
                lost: of(&families.connections, "lost"),
                replaced: of(&families.connections, "replaced"),
            },
            endpoints: client::State::ALL
                .map(|state| families.endpoints.with_label_values(&[service, state.name()])),
            breakers: Default::default(),
            spared_transitions: Arc::default(),
            spared: Default::default(),
        };
        let (transitions, breakers) = by_rpc(service, &families.breaker_state, &families.breaker_transitions);
        (meters.transitions, meters.breakers) = (Arc::new(transitions), breakers);
        let (transitions, breakers) = by_rpc(service, &families.spared_state, &families.spared_transitions);
        (meters.spared_transitions, meters.spared) = (Arc::new(transitions), breakers);
        meters
    }

    /// Sets how many instances are in a state.
    pub fn endpoints(&self, state: client::State, count: usize) {
        let at = client::State::ALL.iter().position(|known| *known == state);
        if let Some(gauge) = at.and_then(|at| self.endpoints.get(at)) {
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// Sets how many instances' breakers for an rpc are in which state.
    pub fn breakers(&self, rpc: &Rpc, states: impl Iterator<Item = Breaker>) {
        set(self.breakers.get(rpc.index), states);
    }

    /// Sets how many callers' breakers for an rpc that they can do without are in which state.
    pub fn spared(&self, rpc: &Rpc, states: impl Iterator<Item = Breaker>) {
        set(self.spared.get(rpc.index), states);
    }
}

type Gauges = [Option<[IntGauge; 3]>; rpc::ALL.len()];

/// Returns the handles of two families with the labels service, method and state.
fn by_rpc(service: &str, state: &IntGaugeVec, to: &IntCounterVec) -> (Transitions, Gauges) {
    let (mut transitions, mut gauges) = (Transitions::default(), Gauges::default());
    for rpc in rpc::of_service(service) {
        let labels = |breaker: Breaker| [service, rpc.method, breaker.name()];
        if let (Some(gauges), Some(counters)) = (gauges.get_mut(rpc.index), transitions.0.get_mut(rpc.index))
        {
            *gauges = Some(BREAKERS.map(|breaker| state.with_label_values(&labels(breaker))));
            *counters = Some(BREAKERS.map(|breaker| to.with_label_values(&labels(breaker))));
        }
    }
    (transitions, gauges)
}

fn set(gauges: Option<&Option<[IntGauge; 3]>>, states: impl Iterator<Item = Breaker>) {
    let Some(Some(gauges)) = gauges else {
        return;
    };
    let mut counts = [0; 3];
    for state in states {
        if let Some(count) = place(state).and_then(|at| counts.get_mut(at)) {
            *count += 1;
        }
    }
    for (gauge, count) in gauges.iter().zip(counts) {
        gauge.set(count);
    }
}

/// Returns a breaker state's place in [`BREAKERS`].
fn place(state: Breaker) -> Option<usize> {
    BREAKERS.iter().position(|known| known.name() == state.name())
}

/// `client_connections_total` of one service.
#[derive(Clone, Debug)]
pub struct Connections {
    /// Opened.
    pub opened: IntCounter,
    /// Lost: broken, or closed by the peer.
    pub lost: IntCounter,
    /// Replaced because of their age.
    pub replaced: IntCounter,
}

/// `client_breaker_transitions_total` of one service.
#[derive(Debug, Default)]
pub struct Transitions([Option<[IntCounter; 3]>; rpc::ALL.len()]);

impl Transitions {
    /// Counts a change to a state.
    pub fn note(&self, rpc: usize, to: Breaker) {
        if let Some(Some(counters)) = self.0.get(rpc)
            && let Some(counter) = place(to).and_then(|at| counters.get(at))
        {
            counter.inc();
        }
    }
}
