//! What callers of a service count. Handles are resolved once, for a call must not look up labels.

use std::sync::Arc;

use prometheus::{HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry};

use super::balance::breaker::{PerState, State as Breaker, Transitions};
use super::policy::retry;
use super::transport::pool::{self, Connections};
use crate::api::rpc::{PerRpc, Rpc};
use crate::telemetry::metrics::{HOP_SECONDS, RpcDurations, counters, gauges, histograms};

/// Outcomes of an attempt that are there from the start.
const USUAL: [tonic::Code; 3] = [tonic::Code::Ok, tonic::Code::Unavailable, tonic::Code::DeadlineExceeded];

/// The metrics of the calls to every service.
#[derive(Clone, Debug)]
pub struct Metrics {
    attempts: HistogramVec,
    granted: IntCounterVec,
    refused: IntCounterVec,
    fallback: IntCounterVec,
    deadline: IntCounterVec,
    endpoints: IntGaugeVec,
    breaker_state: IntGaugeVec,
    breaker_transitions: IntCounterVec,
    breaker_refused: IntCounterVec,
    best_effort_state: IntGaugeVec,
    best_effort_transitions: IntCounterVec,
    limit_refused: IntCounterVec,
    connections: IntCounterVec,
}

impl Metrics {
    /// Registers the metrics.
    ///
    /// # Errors
    /// When a name is taken.
    pub fn register(r: &Registry) -> prometheus::Result<Self> {
        Ok(Self {
            attempts: histograms(
                r,
                "grpc_client_attempt_duration_seconds",
                "Time of one attempt at one instance.",
                &["service", "method", "code"],
                &HOP_SECONDS,
            )?,
            granted: counters(
                r,
                "client_retry_granted_total",
                "Attempts after the first one of a call, by the reason for them.",
                &["service", "reason"],
            )?,
            refused: counters(
                r,
                "client_retry_refused_total",
                "Attempts that would have followed a failure but were not made, by what forbade them.",
                &["service", "reason"],
            )?,
            fallback: counters(
                r,
                "client_fallback_total",
                "Earlier answers that stood in for one that could not be had.",
                &["service", "method"],
            )?,
            deadline: counters(
                r,
                "client_deadline_exceeded_total",
                "Calls that ended at their deadline.",
                &["service"],
            )?,
            endpoints: gauges(
                r,
                "client_endpoints",
                "Instances of a service as its callers see them.",
                &["service", "state"],
            )?,
            breaker_state: gauges(
                r,
                "client_breaker_state",
                "Instances whose breaker for a method is in this state.",
                &["service", "method", "state"],
            )?,
            breaker_transitions: counters(
                r,
                "client_breaker_transitions_total",
                "Changes of breakers to a state.",
                &["service", "method", "to"],
            )?,
            breaker_refused: counters(
                r,
                "client_breaker_refused_total",
                "Breakers that stayed closed because half of the service's are open.",
                &["service"],
            )?,
            best_effort_state: gauges(
                r,
                "client_best_effort_state",
                "Callers whose breaker for best-effort calls is in this state.",
                &["service", "method", "state"],
            )?,
            best_effort_transitions: counters(
                r,
                "client_best_effort_transitions_total",
                "Changes of breakers for best-effort calls to a state.",
                &["service", "method", "to"],
            )?,
            limit_refused: counters(
                r,
                "client_limit_refused_total",
                "Attempts that met an instance with as many calls in flight as it may have.",
                &["service"],
            )?,
            connections: counters(
                r,
                "client_connections_total",
                "Connections to instances that were opened, lost, or replaced because of their age or silence.",
                &["service", "event"],
            )?,
        })
    }

    /// Returns the metrics of the calls to one service, each at 0 from the start.
    #[must_use]
    pub fn service(&self, service: &'static str) -> ServiceMetrics {
        ServiceMetrics::new(self, service)
    }
}

/// The metrics of the calls to one service; handles are resolved here, once.
#[derive(Debug)]
pub struct ServiceMetrics {
    /// Attempts by rpc and code.
    pub attempts: Arc<RpcDurations>,
    /// Retries.
    pub retry: retry::Meters,
    /// Fallbacks by rpc.
    pub fallback: Arc<PerRpc<Option<IntCounter>>>,
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
    endpoints: [IntGauge; pool::State::ALL.len()],
    /// Breakers by rpc: closed, open, half-open.
    breakers: Gauges,
    /// Breakers for calls that can be done without, which changed.
    pub best_effort_transitions: Arc<Transitions>,
    best_effort: Gauges,
}

impl ServiceMetrics {
    fn new(families: &Metrics, service: &'static str) -> Self {
        let of = |family: &IntCounterVec, label: &str| family.with_label_values(&[service, label]);
        let single = |family: &IntCounterVec| family.with_label_values(&[service]);
        let states = |family: &IntGaugeVec| -> Gauges {
            PerRpc::from_fn(|rpc| {
                let labels = |state: Breaker| [service, rpc.method(), state.name()];
                let of = |state| family.with_label_values(&labels(state));
                (rpc.service() == service).then(|| PerState::from_fn(of))
            })
        };
        let transitions = |family: &IntCounterVec| {
            Arc::new(Transitions::new(PerRpc::from_fn(|rpc| {
                let labels = |state: Breaker| [service, rpc.method(), state.name()];
                let of = |state| family.with_label_values(&labels(state));
                (rpc.service() == service).then(|| PerState::from_fn(of))
            })))
        };
        Self {
            attempts: Arc::new(RpcDurations::new(families.attempts.clone(), service, &USUAL)),
            retry: retry::Meters {
                granted: retry::Reason::ALL.map(|reason| of(&families.granted, reason.name())),
                refused: retry::Refusal::ALL.map(|refusal| of(&families.refused, refusal.name())),
            },
            fallback: Arc::new(PerRpc::from_fn(|rpc| {
                (rpc.service() == service && rpc.policy().fallback)
                    .then(|| of(&families.fallback, rpc.method()))
            })),
            deadline_exceeded: single(&families.deadline),
            transitions: transitions(&families.breaker_transitions),
            breaker_refused: single(&families.breaker_refused),
            limit_refused: single(&families.limit_refused),
            connections: Connections {
                opened: of(&families.connections, "opened"),
                lost: of(&families.connections, "lost"),
                replaced: of(&families.connections, "replaced"),
            },
            endpoints: pool::State::ALL
                .map(|state| families.endpoints.with_label_values(&[service, state.name()])),
            breakers: states(&families.breaker_state),
            best_effort_transitions: transitions(&families.best_effort_transitions),
            best_effort: states(&families.best_effort_state),
        }
    }

    /// Sets how many instances are in a state.
    pub fn endpoints(&self, state: pool::State, count: usize) {
        let at = pool::State::ALL.iter().position(|known| *known == state);
        if let Some(gauge) = at.and_then(|at| self.endpoints.get(at)) {
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// Sets how many instances' breakers for an rpc are in which state.
    pub fn breakers(&self, rpc: Rpc, states: impl Iterator<Item = Breaker>) {
        set(self.breakers[rpc].as_ref(), states);
    }

    /// Sets how many callers' breakers for an rpc that they can do without are in which state.
    pub fn best_effort(&self, rpc: Rpc, states: impl Iterator<Item = Breaker>) {
        set(self.best_effort[rpc].as_ref(), states);
    }
}

type Gauges = PerRpc<Option<PerState<IntGauge>>>;

/// Sets the gauge of each state to how often it occurs.
fn set(gauges: Option<&PerState<IntGauge>>, states: impl Iterator<Item = Breaker>) {
    let Some(gauges) = gauges else {
        return;
    };
    let mut counts = PerState::<i64>::default();
    for state in states {
        *counts.of_mut(state) += 1;
    }
    for state in [Breaker::Closed, Breaker::Open, Breaker::HalfOpen] {
        gauges.of(state).set(*counts.of(state));
    }
}
