//! The metrics of calls to services. The handles of each service are resolved once, because looking up labels
//! for every call would be slow.

use std::sync::Arc;

use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry};

use crate::api::rpc::{PerRpc, Rpc};
use crate::client::balance::breaker_state::{BreakerState, PerState, Transitions};
use crate::client::balance::endpoint::EndpointMetrics;
use crate::client::policy::fallback::FallbackCounters;
use crate::client::policy::retry_policy::{Reason, Refusal, RetryMetrics};
use crate::client::transport::slots::ConnectionMetrics;
use crate::client::transport::state::ConnectionState;
use crate::telemetry::events::Events;
use crate::telemetry::metrics::{HOP_SECONDS, Histograms, RpcDurations, counters, gauges, histograms};

/// Codes whose attempts are counted from the start, at 0; others appear when they occur.
const INITIAL_CODES: [tonic::Code; 3] =
    [tonic::Code::Ok, tonic::Code::Unavailable, tonic::Code::DeadlineExceeded];

/// The metrics of the calls to every service.
#[derive(Clone, Debug)]
pub struct Metrics {
    attempts: Histograms,
    granted: IntCounterVec,
    refused: IntCounterVec,
    hedge_wins: IntCounterVec,
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
    /// Where breakers that open and close are noted.
    events: Events,
}

impl Metrics {
    /// Registers the metrics.
    ///
    /// # Errors
    /// When a name is registered already.
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
                "Attempts after the first one of a call, by reason.",
                &["service", "reason"],
            )?,
            refused: counters(
                r,
                "client_retry_refused_total",
                "Retries that were not made, by reason.",
                &["service", "reason"],
            )?,
            hedge_wins: counters(
                r,
                "client_hedge_wins_total",
                "Calls whose hedge, a second attempt beside a slow one, was answered first.",
                &["service"],
            )?,
            fallback: counters(
                r,
                "client_fallback_total",
                "Reads that failed and were answered with an earlier answer.",
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
                "Instances of a service, by state.",
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
                "Changes of breakers, by the new state.",
                &["service", "method", "to"],
            )?,
            breaker_refused: counters(
                r,
                "client_breaker_refused_total",
                "Breakers that did not open because half of the service's instances have an open one.",
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
                "Changes of breakers for best-effort calls, by the new state.",
                &["service", "method", "to"],
            )?,
            limit_refused: counters(
                r,
                "client_limit_refused_total",
                "Attempts that were refused because the instance had as many calls in flight as it may have.",
                &["service"],
            )?,
            connections: counters(
                r,
                "client_connections_total",
                "Connections to instances that were opened, lost, or replaced because of their age or silence.",
                &["service", "event"],
            )?,
            events: Events::default(),
        })
    }

    /// Returns the same, with events that others share.
    #[must_use]
    pub fn with_events(self, events: Events) -> Self {
        Self { events, ..self }
    }

    /// Returns the same, as the thread with a number has it: it records attempts in a part of its own.
    #[must_use]
    pub fn of_thread(&self, number: usize) -> Self {
        Self { attempts: self.attempts.of_thread(number), ..self.clone() }
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
    /// Retries.
    pub retry: RetryMetrics,
    /// Fallbacks by rpc.
    pub fallback: Arc<FallbackCounters>,
    /// Calls that ended at their deadline.
    pub deadline_exceeded: IntCounter,
    /// Breakers for best-effort calls that changed their state.
    pub best_effort_transitions: Transitions,
    /// What each instance counts.
    pub endpoint: EndpointMetrics,
    endpoints: [IntGauge; ConnectionState::ALL.len()],
    breakers: BreakerGauges,
    best_effort: BreakerGauges,
}

impl ServiceMetrics {
    fn new(families: &Metrics, service: &'static str) -> Self {
        let of = |family: &IntCounterVec, label: &str| family.with_label_values(&[service, label]);
        let single = |family: &IntCounterVec| family.with_label_values(&[service]);
        let states =
            |family: &IntGaugeVec| by_rpc_and_state(service, |labels| family.with_label_values(labels));
        let transitions = |family: &IntCounterVec, of: &str| {
            let counters = by_rpc_and_state(service, |labels| family.with_label_values(labels));
            Transitions::new(counters, families.events.clone(), of)
        };
        Self {
            retry: RetryMetrics {
                granted: Reason::ALL.map(|reason| of(&families.granted, reason.name())),
                refused: Refusal::ALL.map(|refusal| of(&families.refused, refusal.name())),
                hedge_wins: single(&families.hedge_wins),
            },
            fallback: Arc::new(PerRpc::from_fn(|rpc| {
                (rpc.service() == service && rpc.policy().fallback)
                    .then(|| of(&families.fallback, rpc.method()))
            })),
            deadline_exceeded: single(&families.deadline),
            endpoint: EndpointMetrics {
                attempts: Arc::new(RpcDurations::new(families.attempts.clone(), service, &INITIAL_CODES)),
                transitions: transitions(&families.breaker_transitions, service),
                breaker_refused: single(&families.breaker_refused),
                limit_refused: single(&families.limit_refused),
                connections: ConnectionMetrics {
                    opened: of(&families.connections, "opened"),
                    lost: of(&families.connections, "lost"),
                    replaced: of(&families.connections, "replaced"),
                },
            },
            endpoints: ConnectionState::ALL
                .map(|state| families.endpoints.with_label_values(&[service, state.name()])),
            breakers: states(&families.breaker_state),
            best_effort_transitions: transitions(
                &families.best_effort_transitions,
                &format!("{service}, best-effort calls"),
            ),
            best_effort: states(&families.best_effort_state),
        }
    }

    /// Sets how many instances are in a state.
    pub fn set_endpoints(&self, state: ConnectionState, count: usize) {
        let at = ConnectionState::ALL.iter().position(|known| *known == state);
        if let Some(gauge) = at.and_then(|at| self.endpoints.get(at)) {
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// Sets how many instances have a breaker for an rpc in which state.
    pub fn set_breakers(&self, rpc: Rpc, states: impl Iterator<Item = BreakerState>) {
        set(self.breakers[rpc].as_ref(), states);
    }

    /// Sets how many callers have a breaker for best-effort calls of an rpc in which state.
    pub fn set_best_effort(&self, rpc: Rpc, states: impl Iterator<Item = BreakerState>) {
        set(self.best_effort[rpc].as_ref(), states);
    }
}

/// How many breakers of each rpc are in which state.
type BreakerGauges = PerRpc<Option<PerState<IntGauge>>>;

/// Returns what `handle` gives for the labels service, method and state, for each rpc of a service.
fn by_rpc_and_state<T>(
    service: &'static str,
    handle: impl Fn(&[&'static str]) -> T,
) -> PerRpc<Option<PerState<T>>> {
    PerRpc::from_fn(|rpc| {
        let of = |state: BreakerState| handle(&[service, rpc.method(), state.name()]);
        (rpc.service() == service).then(|| PerState::from_fn(of))
    })
}

/// Sets the gauge of each state to how often it occurs.
fn set(gauges: Option<&PerState<IntGauge>>, states: impl Iterator<Item = BreakerState>) {
    let Some(gauges) = gauges else {
        return;
    };
    let mut counts = PerState::<i64>::default();
    for state in states {
        *counts.of_mut(state) += 1;
    }
    for state in [BreakerState::Closed, BreakerState::Open, BreakerState::HalfOpen] {
        gauges.of(state).set(*counts.of(state));
    }
}
