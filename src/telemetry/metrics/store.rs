//! A histogram of one operation of a store, by how it ended.

use std::time::Instant;

use prometheus::{Histogram, HistogramVec};

/// One operation, each outcome at 0 from the start.
#[derive(Clone, Debug)]
pub struct StoreOperation {
    ok: Histogram,
    error: Histogram,
}

impl StoreOperation {
    pub(super) fn new(family: &HistogramVec, store: &str, operation: &str) -> Self {
        let of = |outcome| family.with_label_values(&[store, operation, outcome]);
        Self { ok: of("ok"), error: of("error") }
    }

    /// Measures an operation.
    ///
    /// # Errors
    /// Those of the operation.
    pub async fn time<T, E>(&self, operation: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        let begun = Instant::now();
        let result = operation.await;
        let outcome = if result.is_ok() { &self.ok } else { &self.error };
        outcome.observe(begun.elapsed().as_secs_f64());
        result
    }
}
