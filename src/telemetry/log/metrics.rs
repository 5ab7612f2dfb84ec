//! The metrics of the log.

use prometheus::{IntCounter, IntCounterVec, Opts, Registry};

/// The metrics of the log of a process. It is there before the registry is, so they are registered later.
#[derive(Clone, Debug)]
pub struct Metrics {
    dropped: IntCounterVec,
    /// Lines that did not fit into the queue: `log_lines_dropped_total{reason="queue"}`.
    pub dropped_full: IntCounter,
    /// Lines that standard error did not take: `log_lines_dropped_total{reason="write"}`.
    pub dropped_write: IntCounter,
}

impl Metrics {
    /// Returns the metrics, in no registry.
    ///
    /// # Errors
    /// When the name is invalid.
    pub fn new() -> prometheus::Result<Self> {
        let help = "Lines of the log that were lost, by where.";
        let dropped = IntCounterVec::new(Opts::new("log_lines_dropped_total", help), &["reason"])?;
        Ok(Self {
            dropped_full: dropped.with_label_values(&["queue"]),
            dropped_write: dropped.with_label_values(&["write"]),
            dropped,
        })
    }

    /// Registers the metrics.
    ///
    /// # Errors
    /// When a name is taken.
    pub fn register(&self, registry: &Registry) -> prometheus::Result<()> {
        registry.register(Box::new(self.dropped.clone()))
    }
}
