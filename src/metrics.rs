//! Every metric of every role: name, labels, help, buckets. One set a process.
//!
//! Labels are bounded: route templates, rpc names of [`crate::rpc`], statuses and codes; never a path, a
//! user or an address.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use prometheus::{
    Encoder as _, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry, TextEncoder,
};

use crate::client::{self, Breaker, retry};
use crate::registry::Registered;
use crate::rpc::{self, Rpc};

/// Edges of latency histograms, seconds: from a loopback call that a store answers from memory (under
/// 1 ms) to the default deadline (2 s) and what outlives it.
const LATENCY: [f64; 12] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5];

/// The metrics of a process.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Registry,
    http: HistogramVec,
    grpc: HistogramVec,
    edge: EdgeMetrics,
    attempts: HistogramVec,
    client: ClientFamilies,
    registration: IntGaugeVec,
    view: ViewMetrics,
    view_age: prometheus::Gauge,
    trace: TraceMeters,
}

/// What the limits of the listeners do.
#[derive(Clone, Debug)]
struct EdgeMetrics {
    http_in_flight: IntGauge,
    grpc_in_flight: IntGaugeVec,
    http_refused: IntCounterVec,
    grpc_refused: IntCounterVec,
    cut: IntCounterVec,
}

impl EdgeMetrics {
    fn new(r: &Registry) -> prometheus::Result<Self> {
        let total = |name: &str, help: &str, labels: &[&str]| {
            add(r, IntCounterVec::new(Opts::new(name, help), labels))
        };
        let edge = Self {
            http_in_flight: add(
                r,
                IntGauge::new("http_server_in_flight", "Requests that hold a place under the limit."),
            )?,
            grpc_in_flight: add(
                r,
                IntGaugeVec::new(
                    Opts::new("grpc_server_in_flight", "Calls that hold a place under the limit."),
                    &["service"],
                ),
            )?,
            http_refused: total(
                "http_server_refused_total",
                "Requests refused without work, by the limit that they met.",
                &["reason"],
            )?,
            grpc_refused: total(
                "grpc_server_refused_total",
                "Calls refused without work, by the limit that they met.",
                &["service", "reason"],
            )?,
            cut: total(
                "server_connections_cut_total",
                "Connections ended because of what their peer does.",
                &["reason"],
            )?,
        };
        // there from the start, or the first one would be no increase
        for reason in [Refused::InFlight, Refused::Memory, Refused::Rate] {
            edge.http_refused.with_label_values(&[reason.name()]);
        }
        for reason in [Cut::WriteTimeout, Cut::Unsent, Cut::Flood] {
            edge.cut.with_label_values(&[reason.name()]);
        }
        Ok(edge)
    }
}

/// Why a request or call is refused without work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Too many are in progress.
    InFlight,
    /// Too many bytes are waiting to be sent, or to be complete.
    Memory,
    /// This client sends too many.
    Rate,
    /// Nobody waits for the answer any more.
    Deadline,
}

impl Refused {
    const fn name(self) -> &'static str {
        match self {
            Self::InFlight => "in_flight",
            Self::Memory => "memory",
            Self::Rate => "rate",
            Self::Deadline => "deadline",
        }
    }
}

/// Why a connection is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Its peer stopped reading.
    WriteTimeout,
    /// Its peer reads too slowly while memory is short.
    Unsent,
    /// Its peer floods it with frames.
    Flood,
}

impl Cut {
    const fn name(self) -> &'static str {
        match self {
            Self::WriteTimeout => "write_timeout",
            Self::Unsent => "unsent",
            Self::Flood => "flood",
        }
    }
}

/// What is known of the registry.
#[derive(Clone, Debug)]
struct ViewMetrics {
    revision: IntGauge,
    instances: IntGauge,
    limbo: IntGauge,
    ignored: IntGauge,
    resets: IntCounter,
    differences: IntCounter,
}

/// What callers of services count, see [`ClientMeters`].
#[derive(Clone, Debug)]
struct ClientFamilies {
    granted: IntCounterVec,
    refused: IntCounterVec,
    fallback: IntCounterVec,
    deadline: IntCounterVec,
    endpoints: IntGaugeVec,
    breaker_state: IntGaugeVec,
    breaker_transitions: IntCounterVec,
    breaker_refused: IntCounterVec,
    limit_refused: IntCounterVec,
    connections: IntCounterVec,
}

/// What is counted of spans.
#[derive(Clone, Debug)]
pub struct TraceMeters {
    /// `trace_spans_exported_total`: the collector has taken them.
    pub exported: IntCounter,
    /// `trace_spans_dropped_total{reason="queue"}`: there was no room for them.
    pub dropped_full: IntCounter,
    /// `trace_spans_dropped_total{reason="export"}`: the collector did not take them.
    pub dropped_export: IntCounter,
    /// `trace_spans_queued`: they wait to be sent.
    pub queued: IntGauge,
}

impl TraceMeters {
    fn new(r: &Registry) -> prometheus::Result<Self> {
        let dropped = add(
            r,
            IntCounterVec::new(
                Opts::new("trace_spans_dropped_total", "Spans that were lost, by where."),
                &["reason"],
            ),
        )?;
        Ok(Self {
            exported: add(
                r,
                IntCounter::new("trace_spans_exported_total", "Spans that the collector has taken."),
            )?,
            dropped_full: dropped.with_label_values(&["queue"]),
            dropped_export: dropped.with_label_values(&["export"]),
            queued: add(r, IntGauge::new("trace_spans_queued", "Spans that wait to be sent."))?,
        })
    }
}

/// Registers a collector. It cannot fail: the names below are valid and distinct, and a test makes them.
fn add<C: prometheus::core::Collector + Clone + 'static>(
    registry: &Registry,
    made: prometheus::Result<C>,
) -> prometheus::Result<C> {
    let collector = made?;
    registry.register(Box::new(collector.clone()))?;
    Ok(collector)
}

impl Metrics {
    /// Makes the metrics of a process.
    ///
    /// # Errors
    /// When two metrics have the same name.
    pub fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let r = &registry;
        let latency = |name: &str, help: &str, labels: &[&str]| {
            let options = HistogramOpts::new(name, help).buckets(LATENCY.to_vec());
            add(r, HistogramVec::new(options, labels))
        };
        let gauge =
            |name: &str, help: &str, labels: &[&str]| add(r, IntGaugeVec::new(Opts::new(name, help), labels));
        let single = |name: &str, help: &str| add(r, IntGauge::new(name, help));
        let total = |name: &str, help: &str| add(r, IntCounter::new(name, help));
        let metrics = Self {
            http: latency(
                "http_server_request_duration_seconds",
                "Time from a request's head to its answer, by route template.",
                &["route", "method", "code"],
            )?,
            grpc: latency(
                "grpc_server_handling_seconds",
                "Time from a call's head to its answer.",
                &["service", "method", "code"],
            )?,
            edge: EdgeMetrics::new(r)?,
            attempts: latency(
                "grpc_client_attempt_duration_seconds",
                "Time of one attempt at one instance.",
                &["service", "method", "code"],
            )?,
            client: ClientFamilies::new(r)?,
            registration: gauge(
                "registry_registration_state",
                "Registrations of this process, by state.",
                &["service", "state"],
            )?,
            view: ViewMetrics {
                revision: single(
                    "registry_view_revision",
                    "Revision of the view; grows within an epoch of the registry.",
                )?,
                instances: single("registry_view_instances", "Instances in the view, those in limbo too.")?,
                limbo: single(
                    "registry_view_limbo",
                    "Instances that the registry has lost but that are still believed in.",
                )?,
                ignored: single("registry_view_ignored_keys", "Keys below the prefix that cannot be read.")?,
                resets: total(
                    "registry_view_resets_total",
                    "How often the registry was another one or an older state of itself.",
                )?,
                differences: total(
                    "registry_view_differences_total",
                    "Keys in which a periodic list differed from what the events had said.",
                )?,
            },
            view_age: add(
                r,
                prometheus::Gauge::new(
                    "registry_view_age_seconds",
                    "Time since the registry last confirmed the view; -1 before the first time.",
                ),
            )?,
            trace: TraceMeters::new(r)?,
            registry: registry.clone(),
        };
        let build = gauge("build_info", "1; the version is the label.", &["version"])?;
        build.with_label_values(&[crate::cli::VERSION]).set(1);
        r.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        Ok(metrics)
    }

    /// Notes an answered HTTP request.
    pub fn http(&self, route: &str, method: &str, status: u16, took: Duration) {
        let code = status.to_string();
        self.http.with_label_values(&[route, method, &code]).observe(took.as_secs_f64());
    }

    /// Notes an answered call.
    pub fn grpc(&self, service: &str, method: &str, code: tonic::Code, took: Duration) {
        let code = code_name(code);
        self.grpc.with_label_values(&[service, method, code]).observe(took.as_secs_f64());
    }

    /// Returns the metrics of the calls to one service, each at 0 from the start.
    #[must_use]
    pub fn client(&self, service: &'static str) -> ClientMeters {
        ClientMeters::new(&self.client, &self.attempts, service)
    }

    /// Returns what is counted of spans.
    #[must_use]
    pub fn trace(&self) -> TraceMeters {
        self.trace.clone()
    }

    /// Returns the gauge of requests in progress.
    #[must_use]
    pub fn http_in_flight(&self) -> IntGauge {
        self.edge.http_in_flight.clone()
    }

    /// Returns the gauge of a service's calls in progress. From then on its refusals are there, at 0.
    #[must_use]
    pub fn grpc_in_flight(&self, service: &str) -> IntGauge {
        for reason in [Refused::InFlight, Refused::Memory, Refused::Deadline] {
            self.edge.grpc_refused.with_label_values(&[service, reason.name()]);
        }
        self.edge.grpc_in_flight.with_label_values(&[service])
    }

    /// Notes a request that was refused without work.
    pub fn http_refused(&self, reason: Refused) {
        self.edge.http_refused.with_label_values(&[reason.name()]).inc();
    }

    /// Notes a call that was refused without work.
    pub fn grpc_refused(&self, service: &str, reason: Refused) {
        self.edge.grpc_refused.with_label_values(&[service, reason.name()]).inc();
    }

    /// Notes a connection that was ended because of its peer.
    pub fn cut(&self, reason: Cut) {
        self.edge.cut.with_label_values(&[reason.name()]).inc();
    }

    /// Counts registrations by state.
    pub fn registrations(&self, states: impl Iterator<Item = (&'static str, Registered)>) {
        self.registration.reset();
        for (service, state) in states {
            for known in Registered::ALL {
                let count = self.registration.with_label_values(&[service, known.name()]);
                count.add(i64::from(known == state));
            }
        }
    }

    /// Sets what is known of the registry.
    pub fn view(&self, view: &crate::registry::ViewHandle) {
        let age = view.age();
        self.view_age.set(age.map_or(-1.0, |age| age.as_secs_f64()));
        let differences = view.differences();
        let view = view.get();
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        self.view.revision.set(view.revision);
        self.view.instances.set(count(view.services.values().map(|instances| instances.len()).sum()));
        self.view.limbo.set(count(view.limbo.len()));
        self.view.ignored.set(count(view.ignored));
        // both only grow; what was counted elsewhere is caught up with
        self.view.resets.inc_by(view.epoch.saturating_sub(self.view.resets.get()));
        let differences = u64::try_from(differences).unwrap_or(u64::MAX);
        self.view.differences.inc_by(differences.saturating_sub(self.view.differences.get()));
    }

    /// Returns everything in Prometheus' text format.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut out) {
            tracing::error!(%error, "metrics cannot be encoded");
        }
        String::from_utf8(out).unwrap_or_default()
    }
}

/// Returns the name of a gRPC code as its specification writes it.
#[must_use]
pub const fn code_name(code: tonic::Code) -> &'static str {
    match code {
        tonic::Code::Ok => "OK",
        tonic::Code::Cancelled => "CANCELLED",
        tonic::Code::Unknown => "UNKNOWN",
        tonic::Code::InvalidArgument => "INVALID_ARGUMENT",
        tonic::Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        tonic::Code::NotFound => "NOT_FOUND",
        tonic::Code::AlreadyExists => "ALREADY_EXISTS",
        tonic::Code::PermissionDenied => "PERMISSION_DENIED",
        tonic::Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        tonic::Code::FailedPrecondition => "FAILED_PRECONDITION",
        tonic::Code::Aborted => "ABORTED",
        tonic::Code::OutOfRange => "OUT_OF_RANGE",
        tonic::Code::Unimplemented => "UNIMPLEMENTED",
        tonic::Code::Internal => "INTERNAL",
        tonic::Code::Unavailable => "UNAVAILABLE",
        tonic::Code::DataLoss => "DATA_LOSS",
        tonic::Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

impl ClientFamilies {
    fn new(r: &Registry) -> prometheus::Result<Self> {
        let count = |name: &str, help: &str, labels: &[&str]| {
            add(r, IntCounterVec::new(Opts::new(name, help), labels))
        };
        let gauge =
            |name: &str, help: &str, labels: &[&str]| add(r, IntGaugeVec::new(Opts::new(name, help), labels));
        Ok(Self {
            granted: count(
                "client_retry_granted_total",
                "Attempts after the first one of a call, by the reason for them.",
                &["service", "reason"],
            )?,
            refused: count(
                "client_retry_refused_total",
                "Attempts that would have followed a failure but were not made, by what forbade them.",
                &["service", "reason"],
            )?,
            fallback: count(
                "client_fallback_total",
                "Earlier answers that stood in for one that could not be had.",
                &["service", "method"],
            )?,
            deadline: count(
                "client_deadline_exceeded_total",
                "Calls that ended at their deadline.",
                &["service"],
            )?,
            endpoints: gauge(
                "client_endpoints",
                "Instances of a service as its callers see them.",
                &["service", "state"],
            )?,
            breaker_state: gauge(
                "client_breaker_state",
                "Instances whose breaker for a method is in this state.",
                &["service", "method", "state"],
            )?,
            breaker_transitions: count(
                "client_breaker_transitions_total",
                "Changes of breakers to a state.",
                &["service", "method", "to"],
            )?,
            breaker_refused: count(
                "client_breaker_refused_total",
                "Breakers that stayed closed because half of the service's are open.",
                &["service"],
            )?,
            limit_refused: count(
                "client_limit_refused_total",
                "Attempts that met an instance with as many calls in flight as it may have.",
                &["service"],
            )?,
            connections: count(
                "client_connections_total",
                "Connections to instances that were opened, lost, or replaced because of their age or silence.",
                &["service", "event"],
            )?,
        })
    }
}

/// The metrics of the calls to one service; handles are resolved here, once.
#[derive(Debug)]
pub struct ClientMeters {
    /// Attempts by rpc and code.
    pub attempts: Arc<Attempts>,
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
}

const BREAKERS: [Breaker; 3] = [Breaker::Closed, Breaker::Open, Breaker::HalfOpen];

impl ClientMeters {
    fn new(families: &ClientFamilies, attempts: &HistogramVec, service: &'static str) -> Self {
        let of = |family: &IntCounterVec, label: &str| family.with_label_values(&[service, label]);
        let single = |family: &IntCounterVec| family.with_label_values(&[service]);
        let mut meters = Self {
            attempts: Arc::new(Attempts::new(attempts.clone())),
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
        };
        let mut transitions = Transitions::default();
        for rpc in rpc::of_service(service) {
            let state = |family: &IntGaugeVec| {
                BREAKERS.map(|state| family.with_label_values(&[service, rpc.method, state.name()]))
            };
            let to = BREAKERS.map(|state| {
                families.breaker_transitions.with_label_values(&[service, rpc.method, state.name()])
            });
            if let (Some(gauges), Some(counters)) =
                (meters.breakers.get_mut(rpc.index), transitions.0.get_mut(rpc.index))
            {
                (*gauges, *counters) = (Some(state(&families.breaker_state)), Some(to));
            }
        }
        meters.transitions = Arc::new(transitions);
        meters
    }

    /// Sets how many instances are in a state.
    pub fn endpoints(&self, state: client::State, count: usize) {
        let at = client::State::ALL.iter().position(|known| *known == state);
        if let Some(gauge) = at.and_then(|at| self.endpoints.get(at)) {
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// Sets how many breakers of an rpc are in which state.
    pub fn breakers(&self, rpc: &Rpc, states: impl Iterator<Item = Breaker>) {
        let Some(Some(gauges)) = self.breakers.get(rpc.index) else {
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

/// gRPC codes, 0 to 16.
const CODES: usize = 17;

/// `grpc_client_attempt_duration_seconds` of one service.
#[derive(Debug)]
pub struct Attempts {
    family: HistogramVec,
    /// By rpc and code. Resolved when it first happens: not every code does for every rpc.
    cells: Box<[[OnceLock<Histogram>; CODES]; rpc::ALL.len()]>,
}

impl Attempts {
    fn new(family: HistogramVec) -> Self {
        Self { family, cells: Box::default() }
    }

    /// Notes one attempt at an instance.
    pub fn observe(&self, rpc: &Rpc, code: tonic::Code, took: Duration) {
        let cell = self.cells.get(rpc.index).and_then(|codes| codes.get(code as usize));
        if let Some(cell) = cell {
            let resolve = || self.family.with_label_values(&[rpc.grpc_service, rpc.method, code_name(code)]);
            cell.get_or_init(resolve).observe(took.as_secs_f64());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_can_be_made_and_read() {
        let metrics = Metrics::new().unwrap();
        metrics.http("/api/x", "GET", 200, Duration::from_millis(3));
        metrics.grpc("feed.Feed", "GetFeeds", tonic::Code::Ok, Duration::ZERO);
        metrics.registrations([("feed", Registered::Up), ("feed", Registered::Up)].into_iter());
        let text = metrics.text();
        for line in [
            "http_server_request_duration_seconds_bucket{code=\"200\",method=\"GET\",route=\"/api/x\",le=\"0.005\"} 1",
            "grpc_server_handling_seconds_count{code=\"OK\",method=\"GetFeeds\",service=\"feed.Feed\"} 1",
            "registry_registration_state{service=\"feed\",state=\"up\"} 2",
            "build_info{version=",
            "process_resident_memory_bytes ",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
