//! The metrics of spans.

use prometheus::{IntCounter, IntGauge, Registry};

use crate::telemetry::metrics::{counter, counters, gauge};

/// The metrics of the spans of a process.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Spans that the collector has accepted: `trace_spans_exported_total`.
    pub exported: IntCounter,
    /// Spans that did not fit into the queue: `trace_spans_dropped_total{reason="queue"}`.
    pub dropped_full: IntCounter,
    /// Spans that the collector did not accept: `trace_spans_dropped_total{reason="export"}`.
    pub dropped_export: IntCounter,
    /// Spans that wait to be sent: `trace_spans_queued`.
    pub queued: IntGauge,
}

impl Metrics {
    /// Registers the metrics.
    ///
    /// # Errors
    /// When a name is taken.
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        let dropped =
            counters(registry, "trace_spans_dropped_total", "Spans that were lost, by where.", &["reason"])?;
        Ok(Self {
            exported: counter(registry, "trace_spans_exported_total", "Spans that the collector has taken.")?,
            dropped_full: dropped.with_label_values(&["queue"]),
            dropped_export: dropped.with_label_values(&["export"]),
            queued: gauge(registry, "trace_spans_queued", "Spans that wait to be sent.")?,
        })
    }
}
