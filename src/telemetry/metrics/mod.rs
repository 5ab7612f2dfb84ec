//! Tools for metrics: registration, the buckets of histograms, the text page, and the metrics of the process itself.
//! The metrics of a layer are beside its code; the layer registers them in the registry that it is given.
//!
//! The values of labels are bounded: route templates, rpc names of [`crate::api::rpc`], statuses and codes; never a
//! path, a user or an address.

mod histograms;
mod process;
mod rpc_durations;
mod text;

use prometheus::{HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

use crate::build_info;

pub use histograms::Histograms;
pub use rpc_durations::RpcDurations;

/// Bucket edges for whole requests, seconds: from a loopback request answered from memory (under 1 ms) to the default
/// deadline (2 s) and beyond. 0.25 is the edge of the service level objective.
pub const REQUEST_SECONDS: [f64; 12] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5];

/// Bucket edges for single hops, seconds: as above, and finer below 1 ms. On one host a service answers from memory in
/// about 0.1 ms, and a quantile is only as precise as its bucket.
pub const HOP_SECONDS: [f64; 14] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5];

/// Returns the lower edge of the bucket of answers whose upper edge is `upper`; both in microseconds.
#[must_use]
pub fn lower_edge(upper: u64) -> f64 {
    // the edges of REQUEST_SECONDS are among these, but for two below which it has no finer one
    let edges = HOP_SECONDS.iter().map(|edge| (edge * 1e6).round());
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let upper = upper as f64;
    edges.filter(|edge| *edge < upper).fold(0.0, f64::max)
}

/// Registers a new collector and returns it.
fn register<C: prometheus::core::Collector + Clone + 'static>(
    registry: &Registry,
    made: prometheus::Result<C>,
) -> prometheus::Result<C> {
    let collector = made?;
    registry.register(Box::new(collector.clone()))?;
    Ok(collector)
}

/// Registers a counter.
///
/// # Errors
/// When the name is invalid or taken; this holds for the functions below too.
pub fn counter(registry: &Registry, name: &str, help: &str) -> prometheus::Result<IntCounter> {
    register(registry, IntCounter::new(name, help))
}

/// Registers a counter with labels.
pub fn counters(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> prometheus::Result<IntCounterVec> {
    register(registry, IntCounterVec::new(Opts::new(name, help), labels))
}

/// Registers a gauge of whole numbers.
pub fn gauge(registry: &Registry, name: &str, help: &str) -> prometheus::Result<IntGauge> {
    register(registry, IntGauge::new(name, help))
}

/// Registers a gauge of fractions.
pub fn float_gauge(registry: &Registry, name: &str, help: &str) -> prometheus::Result<prometheus::Gauge> {
    register(registry, prometheus::Gauge::new(name, help))
}

/// Registers a gauge of whole numbers with labels.
pub fn gauges(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> prometheus::Result<IntGaugeVec> {
    register(registry, IntGaugeVec::new(Opts::new(name, help), labels))
}

/// Registers a histogram with labels. `edges` are the upper edges of its buckets, ascending, in seconds.
pub fn histograms(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
    edges: &[f64],
) -> prometheus::Result<Histograms> {
    register(registry, Histograms::new(HistogramOpts::new(name, help).buckets(edges.to_vec()), labels))
}

/// Registers the metrics of the process: build, CPU, memory, file descriptors, start time.
///
/// # Errors
/// When a name is taken.
pub fn register_process(registry: &Registry) -> prometheus::Result<()> {
    let build =
        gauges(registry, "build_info", "1; what was built is in the labels.", &["version", "commit"])?;
    build.with_label_values(&[build_info::PACKAGE_VERSION, build_info::COMMIT]).set(1);
    registry.register(Box::new(process::Process::new()))
}

/// Returns all metrics of a registry in the text format of Prometheus.
#[must_use]
pub fn text(registry: &Registry) -> String {
    text::encode(&registry.gather())
}
