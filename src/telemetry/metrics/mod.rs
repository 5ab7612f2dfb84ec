//! Every metric of every role: name, labels, help, buckets. One set a process. The modules below resolve
//! their labels once: a request looks none up and allocates nothing to be counted.
//!
//! Labels are bounded: route templates, rpc names of [`crate::api::rpc`], statuses and codes; never a path, a
//! user or an address.

mod calls;
mod client;
mod process;
mod server;
mod store;

use std::sync::{Arc, OnceLock};

use prometheus::{
    Encoder as _, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

use crate::registry::Registered;

pub use calls::Calls;
pub use client::{ClientMeters, Connections, Transitions};
pub use server::{Cut, Refusals, Refused, Requests, Target};
pub use store::StoreOperation;

/// Edges of the histogram of requests, seconds: from a loopback request that a store answers from memory
/// (under 1 ms) to the default deadline (2 s) and what outlives it. 0.25 is the objective's.
const LATENCY: [f64; 12] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5];

/// Edges of the histograms of single hops, seconds: as above, and finer below, for without a network between
/// them a service answers from memory in about 0.1 ms, and a quantile is only as good as its bucket.
const HOP: [f64; 14] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5];

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
    /// There once the registry is followed: who does not knows nothing of it, not even 0.
    view: Arc<OnceLock<ViewMetrics>>,
    store: HistogramVec,
    trace: TraceMeters,
}

/// What the limits of the listeners do.
#[derive(Clone, Debug)]
struct EdgeMetrics {
    http_in_flight: IntGauge,
    grpc_in_flight: IntGaugeVec,
    http_refused: IntCounterVec,
    grpc_refused: IntCounterVec,
    cut: server::Cuts,
}

impl EdgeMetrics {
    fn new(r: &Registry) -> prometheus::Result<Self> {
        let total = |name: &str, help: &str, labels: &[&str]| {
            add(r, IntCounterVec::new(Opts::new(name, help), labels))
        };
        Ok(Self {
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
            cut: server::Cuts::new(&total(
                "server_connections_cut_total",
                "Connections ended because of what their peer does.",
                &["reason"],
            )?),
        })
    }
}

/// What is known of the registry.
#[derive(Clone, Debug)]
struct ViewMetrics {
    age: prometheus::Gauge,
    revision: IntGauge,
    instances: IntGauge,
    limbo: IntGauge,
    ignored: IntGauge,
    resets: IntCounter,
    differences: IntCounter,
}

impl ViewMetrics {
    fn new(r: &Registry) -> prometheus::Result<Self> {
        let single = |name: &str, help: &str| add(r, IntGauge::new(name, help));
        let total = |name: &str, help: &str| add(r, IntCounter::new(name, help));
        Ok(Self {
            age: add(
                r,
                prometheus::Gauge::new(
                    "registry_view_age_seconds",
                    "Time since the registry last confirmed the view; -1 before the first time.",
                ),
            )?,
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
        })
    }
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
    spared_state: IntGaugeVec,
    spared_transitions: IntCounterVec,
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
        let latency = |name: &str, help: &str, labels: &[&str], edges: &[f64]| {
            let options = HistogramOpts::new(name, help).buckets(edges.to_vec());
            add(r, HistogramVec::new(options, labels))
        };
        let gauge =
            |name: &str, help: &str, labels: &[&str]| add(r, IntGaugeVec::new(Opts::new(name, help), labels));
        let metrics = Self {
            http: latency(
                "http_server_request_duration_seconds",
                "Time from a request's head to its answer, by route template.",
                &["route", "method", "code"],
                &LATENCY,
            )?,
            grpc: latency(
                "grpc_server_handling_seconds",
                "Time from a call's head to its answer.",
                &["service", "method", "code"],
                &HOP,
            )?,
            edge: EdgeMetrics::new(r)?,
            attempts: latency(
                "grpc_client_attempt_duration_seconds",
                "Time of one attempt at one instance.",
                &["service", "method", "code"],
                &HOP,
            )?,
            client: ClientFamilies::new(r)?,
            registration: gauge(
                "registry_registration_state",
                "Registrations of this process, by state.",
                &["service", "state"],
            )?,
            view: Arc::default(),
            store: latency(
                "store_operation_duration_seconds",
                "Time of one operation of a store, by how it ended.",
                &["store", "operation", "outcome"],
                &HOP,
            )?,
            trace: TraceMeters::new(r)?,
            registry: registry.clone(),
        };
        let build = gauge("build_info", "1; what was built is in the labels.", &["version", "commit"])?;
        build.with_label_values(&[crate::build_info::PACKAGE_VERSION, crate::build_info::COMMIT]).set(1);
        r.register(Box::new(process::Process::new()))?;
        Ok(metrics)
    }

    /// Returns the histogram of requests. `routes` are the templates, each with its method.
    #[must_use]
    pub fn requests(&self, routes: &'static [(&'static str, http::Method)]) -> Requests {
        Requests::new(self.http.clone(), routes)
    }

    /// Returns the metrics of the calls to one service, each at 0 from the start.
    #[must_use]
    pub fn client(&self, service: &'static str) -> ClientMeters {
        ClientMeters::new(&self.client, &self.attempts, service)
    }

    /// Returns the histogram of calls to a service, by its registry name.
    #[must_use]
    pub fn handled(&self, service: &str) -> Arc<Calls> {
        use tonic::Code;
        let usual = [
            Code::Ok,
            Code::NotFound,
            Code::Unavailable,
            Code::DeadlineExceeded,
            Code::Internal,
            Code::Unknown,
        ];
        Arc::new(Calls::new(self.grpc.clone(), service, &usual))
    }

    /// Returns the histogram of an operation of a service's store.
    #[must_use]
    pub fn store(&self, store: &str, operation: &str) -> StoreOperation {
        StoreOperation::new(&self.store, store, operation)
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

    /// Returns the gauge of a service's calls in progress.
    #[must_use]
    pub fn grpc_in_flight(&self, service: &str) -> IntGauge {
        self.edge.grpc_in_flight.with_label_values(&[service])
    }

    /// Returns the counts of requests that are refused without work.
    #[must_use]
    pub fn http_refused(&self) -> Refusals {
        let reasons = [Refused::InFlight, Refused::Memory, Refused::Rate];
        Refusals::new(&self.edge.http_refused, &[], reasons)
    }

    /// Returns the counts of a service's calls that are refused without work.
    #[must_use]
    pub fn grpc_refused(&self, service: &str) -> Refusals {
        let reasons = [Refused::InFlight, Refused::Memory, Refused::Deadline];
        Refusals::new(&self.edge.grpc_refused, &[service], reasons)
    }

    /// Notes a connection that was ended because of its peer.
    pub fn cut(&self, reason: Cut) {
        self.edge.cut.note(reason);
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
        if self.view.get().is_none() {
            match ViewMetrics::new(&self.registry) {
                Ok(made) => drop(self.view.set(made)),
                Err(error) => tracing::error!(%error, "metrics of the view cannot be made"),
            }
        }
        let Some(metrics) = self.view.get() else { return };
        metrics.age.set(view.age().map_or(-1.0, |age| age.as_secs_f64()));
        let differences = view.differences();
        let view = view.get();
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        metrics.revision.set(view.revision);
        metrics.instances.set(count(view.services.values().map(|instances| instances.len()).sum()));
        metrics.limbo.set(count(view.limbo.len()));
        metrics.ignored.set(count(view.ignored));
        // both only grow; what was counted elsewhere is caught up with
        metrics.resets.inc_by(view.epoch.saturating_sub(metrics.resets.get()));
        let differences = u64::try_from(differences).unwrap_or(u64::MAX);
        metrics.differences.inc_by(differences.saturating_sub(metrics.differences.get()));
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
            spared_state: gauge(
                "client_spared_state",
                "Callers whose breaker for calls that they can do without is in this state.",
                &["service", "method", "state"],
            )?,
            spared_transitions: count(
                "client_spared_transitions_total",
                "Changes of such breakers to a state.",
                &["service", "method", "to"],
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::{Method, StatusCode};

    use super::*;
    use crate::api::rpc;

    static ROUTES: [(&str, Method); 1] = [("/api/x", Method::GET)];

    #[test]
    fn every_metric_can_be_made_and_read() {
        let metrics = Metrics::new().unwrap();
        let requests = metrics.requests(&ROUTES);
        let target = requests.target(&Method::GET, "/api/x");
        requests.observe(target, StatusCode::OK, Duration::from_millis(3));
        requests.observe(requests.target(&Method::TRACE, "/zQ7"), StatusCode::IM_A_TEAPOT, Duration::ZERO);
        metrics.handled("feed").observe(rpc::GET_FEEDS, tonic::Code::Ok, Duration::from_micros(200));
        metrics.registrations([("feed", Registered::Up), ("feed", Registered::Up)].into_iter());
        let text = metrics.text();
        for line in [
            "http_server_request_duration_seconds_bucket{code=\"200\",method=\"GET\",route=\"/api/x\",le=\"0.005\"} 1",
            "http_server_request_duration_seconds_count{code=\"other\",method=\"other\",route=\"unknown\"} 1",
            "http_server_request_duration_seconds_count{code=\"503\",method=\"GET\",route=\"/api/x\"} 0",
            "grpc_server_handling_seconds_bucket{code=\"OK\",method=\"GetFeeds\",service=\"feed.Feed\",le=\"0.0001\"} 0",
            "grpc_server_handling_seconds_bucket{code=\"OK\",method=\"GetFeeds\",service=\"feed.Feed\",le=\"0.00025\"} 1",
            "grpc_server_handling_seconds_count{code=\"UNAVAILABLE\",method=\"CreateFeed\",service=\"feed.Feed\"} 0",
            "server_connections_cut_total{reason=\"flood\"} 0",
            "registry_registration_state{service=\"feed\",state=\"up\"} 2",
            "build_info{commit=",
            "process_resident_memory_bytes ",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("zQ7"), "a path is no label");
    }

    /// A request finds its cell: nothing is looked up by label once it has happened.
    #[test]
    fn a_cell_is_resolved_once() {
        let metrics = Metrics::new().unwrap();
        let (requests, calls) = (metrics.requests(&ROUTES), metrics.handled("feed"));
        let note = || {
            let target = requests.target(&Method::GET, "/api/x");
            requests.observe(target, StatusCode::NOT_FOUND, Duration::ZERO);
            calls.observe(rpc::GET_FEEDS, tonic::Code::Internal, Duration::ZERO);
        };
        note();
        metrics.http.reset(); // whoever looks them up again makes new ones
        metrics.grpc.reset();
        note();
        assert!(!metrics.text().contains("_seconds_count"), "{}", metrics.text());
    }
}
