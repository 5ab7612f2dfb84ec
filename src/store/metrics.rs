//! The metrics of stores: how long each operation takes, by outcome.

use prometheus::{Histogram, HistogramVec, Registry};
use tokio::time::Instant;

use crate::telemetry::metrics::{HOP_SECONDS, histograms};

/// The metrics of the stores of a process.
#[derive(Clone, Debug)]
pub struct Metrics(HistogramVec);

impl Metrics {
    /// Registers `store_operation_duration_seconds`.
    ///
    /// # Errors
    /// When the name is taken.
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        let family = histograms(
            registry,
            "store_operation_duration_seconds",
            "Time of one operation of a store, by how it ended.",
            &["store", "operation", "outcome"],
            &HOP_SECONDS,
        )?;
        Ok(Self(family))
    }

    /// Returns the histograms of an operation of a service's store.
    #[must_use]
    pub fn operation(&self, store: &str, operation: &str) -> StoreOperation {
        StoreOperation::new(&self.0, store, operation)
    }
}

/// One operation. Each of its outcomes is exported from the start, at 0.
#[derive(Clone, Debug)]
pub struct StoreOperation {
    ok: Histogram,
    error: Histogram,
}

impl StoreOperation {
    fn new(family: &HistogramVec, store: &str, operation: &str) -> Self {
        let of = |outcome| family.with_label_values(&[store, operation, outcome]);
        Self { ok: of("ok"), error: of("error") }
    }

    /// Measures an operation.
    ///
    /// # Errors
    /// Those of the operation.
    pub async fn measure<T, E>(&self, operation: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        let begun = Instant::now();
        let result = operation.await;
        let outcome = if result.is_ok() { &self.ok } else { &self.error };
        outcome.observe(begun.elapsed().as_secs_f64());
        result
    }
}
