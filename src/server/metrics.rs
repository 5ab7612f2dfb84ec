//! The metrics of the servers. Labels are resolved once, not for each request.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::{Method, StatusCode};
use prometheus::{Histogram, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry};

use crate::telemetry::metrics::{
    HOP_SECONDS, Histograms, REQUEST_SECONDS, RpcDurations, counters, gauge, gauges, histograms,
};

/// The metrics of the servers of a process.
#[derive(Clone, Debug)]
pub struct Metrics {
    pub(super) http: Histograms,
    pub(super) grpc: Histograms,
    http_in_flight: IntGauge,
    grpc_in_flight: IntGaugeVec,
    pub(super) http_refused: IntCounterVec,
    pub(super) grpc_refused: IntCounterVec,
    cut: Cuts,
    threads: IntGaugeVec,
}

impl Metrics {
    /// Registers the metrics.
    ///
    /// # Errors
    /// When a name is taken.
    pub fn register(r: &Registry) -> prometheus::Result<Self> {
        Ok(Self {
            http: histograms(
                r,
                "http_server_request_duration_seconds",
                "Time from a request's head to its answer, by route template.",
                &["route", "method", "code"],
                &REQUEST_SECONDS,
            )?,
            grpc: histograms(
                r,
                "grpc_server_handling_seconds",
                "Time from a call's head to its answer.",
                &["service", "method", "code"],
                &HOP_SECONDS,
            )?,
            http_in_flight: gauge(
                r,
                "http_server_in_flight",
                "Requests in progress, which the limit counts.",
            )?,
            grpc_in_flight: gauges(
                r,
                "grpc_server_in_flight",
                "Calls in progress, which the limit counts.",
                &["service"],
            )?,
            http_refused: counters(
                r,
                "http_server_refused_total",
                "Requests refused before any work, by limit.",
                &["reason"],
            )?,
            grpc_refused: counters(
                r,
                "grpc_server_refused_total",
                "Calls refused before any work, by limit.",
                &["service", "reason"],
            )?,
            cut: Cuts::new(&counters(
                r,
                "server_connections_cut_total",
                "Connections ended because the peer stopped reading, reads too slowly or floods.",
                &["reason"],
            )?),
            threads: gauges(
                r,
                "server_thread_connections",
                "Open connections of callers, by the thread that serves them.",
                &["thread"],
            )?,
        })
    }

    /// Returns the same, as the thread with a number has it: it records requests in parts of its own.
    #[must_use]
    pub fn of_thread(&self, number: usize) -> Self {
        Self { http: self.http.of_thread(number), grpc: self.grpc.of_thread(number), ..self.clone() }
    }

    /// Returns the histogram of requests. `routes` are the route templates, each with its method.
    #[must_use]
    pub fn requests(&self, routes: &[(&'static str, Method)]) -> Requests {
        Requests::new(self.http.clone(), routes)
    }

    /// Returns the histogram of calls to a service, by its registry name.
    #[must_use]
    pub fn handled(&self, service: &str) -> Arc<RpcDurations> {
        use tonic::Code;
        let usual = [
            Code::Ok,
            Code::NotFound,
            Code::Unavailable,
            Code::DeadlineExceeded,
            Code::Internal,
            Code::Unknown,
        ];
        Arc::new(RpcDurations::new(self.grpc.clone(), service, &usual))
    }

    /// Returns the gauge of requests in progress.
    #[must_use]
    pub fn http_in_flight(&self) -> IntGauge {
        self.http_in_flight.clone()
    }

    /// Returns the gauge of a service's calls in progress.
    #[must_use]
    pub fn grpc_in_flight(&self, service: &str) -> IntGauge {
        self.grpc_in_flight.with_label_values(&[service])
    }

    /// Returns the counters of requests that are refused.
    #[must_use]
    pub fn http_refused(&self) -> Refusals {
        let reasons = [Refused::InFlight, Refused::Memory, Refused::Rate];
        Refusals::new(&self.http_refused, &[], reasons)
    }

    /// Returns the counters of a service's calls that are refused.
    #[must_use]
    pub fn grpc_refused(&self, service: &str) -> Refusals {
        let reasons = [Refused::InFlight, Refused::Memory, Refused::Deadline];
        Refusals::new(&self.grpc_refused, &[service], reasons)
    }

    /// Returns the gauge of the connections of a thread.
    #[must_use]
    pub fn thread_connections(&self, number: usize) -> IntGauge {
        self.threads.with_label_values(&[number.to_string()])
    }

    /// Counts a connection that was ended because of what its peer does.
    pub fn cut(&self, reason: Cut) {
        self.cut.note(reason);
    }
}

/// The methods that are labels. Callers can invent others, and labels must be bounded.
const METHODS: [&str; 8] = ["GET", "HEAD", "PUT", "POST", "DELETE", "OPTIONS", "PATCH", "other"];
/// The status of a request whose caller hung up before it was answered, as in nginx.
const HUNG_UP: u16 = 499;
/// The statuses that the gateway gives. Any other one is `other`.
const CODES: [(u16, &str); 16] = [
    (200, "200"),
    (304, "304"),
    (400, "400"),
    (401, "401"),
    (403, "403"),
    (404, "404"),
    (405, "405"),
    (408, "408"),
    (413, "413"),
    (414, "414"),
    (429, "429"),
    (HUNG_UP, "499"),
    (500, "500"),
    (503, "503"),
    (504, "504"),
    (0, "other"),
];
/// The statuses of a route and its method whose series exist from the start. All failures are among them:
/// else the first failure would not show as an increase.
const USUAL: [u16; 4] = [200, 500, 503, 504];
/// The label of a request that no route matches.
const UNKNOWN: &str = "unknown";

/// A route and a method, as labels. Cheap to copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// The template, or `unknown`.
    pub route: &'static str,
    /// The method, or `other`.
    pub method: &'static str,
    /// Its index among all pairs of a route and a method.
    index: usize,
}

/// `http_server_request_duration_seconds`.
#[derive(Clone, Debug)]
pub struct Requests(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    family: Histograms,
    routes: Box<[&'static str]>,
    /// By target and code. Resolved at its first request: most pairs never occur.
    cells: Box<[[OnceLock<Histogram>; CODES.len()]]>,
}

impl Requests {
    /// Returns the histogram for these routes. Each route has the series of its method and the usual statuses
    /// from the start.
    fn new(family: Histograms, routes: &[(&'static str, Method)]) -> Self {
        let cells = std::iter::repeat_with(Default::default).take((routes.len() + 1) * METHODS.len());
        let templates = routes.iter().map(|(route, _)| *route).collect();
        let requests = Self(Arc::new(Inner { family, routes: templates, cells: cells.collect() }));
        for (route, method) in routes {
            for status in USUAL {
                requests.cell(requests.target(method, route), status);
            }
        }
        requests
    }

    /// Returns the labels of a request.
    #[must_use]
    pub fn target(&self, method: &Method, path: &str) -> Target {
        let routes = &self.0.routes;
        let route = routes.iter().position(|known| *known == path).unwrap_or(routes.len());
        let known = METHODS.iter().position(|known| *known == method.as_str()).unwrap_or(METHODS.len() - 1);
        Target {
            route: routes.get(route).copied().unwrap_or(UNKNOWN),
            method: METHODS.get(known).copied().unwrap_or_default(),
            index: route * METHODS.len() + known,
        }
    }

    /// Observes a request that was answered.
    pub fn observe(&self, target: Target, status: StatusCode, took: Duration) {
        self.note(target, status.as_u16(), took);
    }

    /// Observes a request whose caller hung up before the answer.
    pub fn hung_up(&self, target: Target, took: Duration) {
        self.note(target, HUNG_UP, took);
    }

    fn note(&self, target: Target, status: u16, took: Duration) {
        if let Some(cell) = self.cell(target, status) {
            cell.observe(took.as_secs_f64());
        }
    }

    fn cell(&self, target: Target, status: u16) -> Option<&Histogram> {
        let known = CODES.iter().position(|(code, _)| *code == status).unwrap_or(CODES.len() - 1);
        let (_, code) = CODES.get(known)?;
        let cell = self.0.cells.get(target.index)?.get(known)?;
        let resolve = || self.0.family.with_label_values(&[target.route, target.method, code]);
        Some(cell.get_or_init(resolve))
    }
}

/// Why a request or call is refused: the label `reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Too many are in progress.
    InFlight,
    /// Too many bytes are waiting to be sent, or to be complete.
    Memory,
    /// Its client sends too many.
    Rate,
    /// Its deadline had passed before any work.
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

/// The counters of refusals, each at 0 from the start.
#[derive(Clone, Debug)]
pub struct Refusals([(Refused, IntCounter); 3]);

impl Refusals {
    /// Returns the counters of a family for these reasons; `labels` go before the reason.
    fn new(family: &IntCounterVec, labels: &[&str], reasons: [Refused; 3]) -> Self {
        Self(reasons.map(|reason| {
            let labels = [labels, &[reason.name()]].concat();
            (reason, family.with_label_values(&labels))
        }))
    }

    /// Counts a refusal.
    pub fn note(&self, reason: Refused) {
        if let Some((_, counter)) = self.0.iter().find(|(known, _)| *known == reason) {
            counter.inc();
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
    const ALL: [Self; 3] = [Self::WriteTimeout, Self::Unsent, Self::Flood];

    const fn name(self) -> &'static str {
        match self {
            Self::WriteTimeout => "write_timeout",
            Self::Unsent => "unsent",
            Self::Flood => "flood",
        }
    }
}

/// `server_connections_cut_total`, each reason at 0 from the start.
#[derive(Clone, Debug)]
struct Cuts([(Cut, IntCounter); 3]);

impl Cuts {
    fn new(family: &IntCounterVec) -> Self {
        Self(Cut::ALL.map(|reason| (reason, family.with_label_values(&[reason.name()]))))
    }

    fn note(&self, reason: Cut) {
        if let Some((_, counter)) = self.0.iter().find(|(known, _)| *known == reason) {
            counter.inc();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::rpc::Rpc;
    use crate::telemetry::metrics::text;

    static ROUTES: [(&str, Method); 1] = [("/api/x", Method::GET)];

    /// No label is looked up after the first request of a kind.
    #[test]
    fn a_cell_is_resolved_once() {
        let registry = Registry::new();
        let metrics = Metrics::register(&registry).unwrap();
        let (requests, calls) = (metrics.requests(&ROUTES), metrics.handled("feed"));
        let note = || {
            let target = requests.target(&Method::GET, "/api/x");
            requests.observe(target, StatusCode::NOT_FOUND, Duration::ZERO);
            calls.observe(Rpc::GetFeeds, tonic::Code::Internal, Duration::ZERO);
        };
        note();
        assert!(text(&registry).contains("_seconds_count"));
        // another look-up by label would make new series
        metrics.http.reset();
        metrics.grpc.reset();
        note();
        assert!(!text(&registry).contains("_seconds_count"), "{}", text(&registry));
    }
}
