//! The metrics of stores: how long each operation takes, by outcome; of a shared database its connections, the queue, and
//! the transactions in which queued writes are made.

use prometheus::{Histogram, IntCounterVec, IntGaugeVec, Registry};
use tokio::time::Instant;

use crate::telemetry::events::Events;
use crate::telemetry::metrics::{HOP_SECONDS, Histograms, counters, gauges, histograms};

/// Bucket edges for the writes of one transaction. A lone writer has 1; the last edge is above the largest transaction.
const BATCH_WRITES: [f64; 10] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];

/// The metrics of the stores of a process.
#[derive(Clone, Debug)]
pub struct Metrics {
    operations: Histograms,
    pub(super) database: DatabaseFamilies,
    /// Where connections to databases that are lost and come back are noted.
    pub events: Events,
}

impl Metrics {
    /// Registers the metrics.
    ///
    /// # Errors
    /// When a name is taken.
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        let operations = histograms(
            registry,
            "store_operation_duration_seconds",
            "Time of one operation of a store, by how it ended.",
            &["store", "operation", "outcome"],
            &HOP_SECONDS,
        )?;
        let database = DatabaseFamilies::register(registry)?;
        Ok(Self { operations, database, events: Events::default() })
    }

    /// Returns the same, with events that others share.
    #[must_use]
    pub fn with_events(self, events: Events) -> Self {
        Self { events, ..self }
    }

    /// Returns the histograms of an operation of a service's store.
    #[must_use]
    pub fn operation(&self, store: &str, operation: &str) -> StoreOperation {
        StoreOperation::new(&self.operations, store, operation)
    }
}

/// One operation. Each of its outcomes is exported from the start, at 0.
#[derive(Clone, Debug)]
pub struct StoreOperation {
    ok: Histogram,
    error: Histogram,
}

impl StoreOperation {
    fn new(family: &Histograms, store: &str, operation: &str) -> Self {
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

/// The metrics of shared databases; [`super::database::Database`] has those of one store.
#[derive(Clone, Debug)]
pub(super) struct DatabaseFamilies {
    /// By store, connection and host.
    pub connected: IntGaugeVec,
    /// By store, connection and outcome.
    pub connects: IntCounterVec,
    /// By store.
    pub failovers: IntCounterVec,
    /// By store.
    pub queued: IntGaugeVec,
    /// By store.
    pub batches: Histograms,
    /// By store and outcome.
    pub commits: Histograms,
    /// By store.
    pub unknown: IntCounterVec,
    /// By store.
    pub late: IntCounterVec,
    /// By store.
    pub schema: IntGaugeVec,
}

impl DatabaseFamilies {
    fn register(r: &Registry) -> prometheus::Result<Self> {
        Ok(Self {
            connected: gauges(
                r,
                "store_database_connections",
                "Open connections to the shared database, by host.",
                &["store", "connection", "host"],
            )?,
            connects: counters(
                r,
                "store_database_connects_total",
                "Tries to connect to the shared database, by how they ended.",
                &["store", "connection", "outcome"],
            )?,
            failovers: counters(
                r,
                "store_database_failovers_total",
                "How often writes have gone to another server of the shared database than before.",
                &["store"],
            )?,
            queued: gauges(
                r,
                "store_writes_queued",
                "Writes that wait for the next transaction of the shared database.",
                &["store"],
            )?,
            batches: histograms(
                r,
                "store_batch_writes",
                "Writes in one transaction of the shared database.",
                &["store"],
                &BATCH_WRITES,
            )?,
            commits: histograms(
                r,
                "store_commit_duration_seconds",
                "Time of one transaction of the shared database, from its beginning to the answer to its commit.",
                &["store", "outcome"],
                &HOP_SECONDS,
            )?,
            unknown: counters(
                r,
                "store_unknown_outcomes_total",
                "Writes of which it is not known whether the shared database has made them.",
                &["store"],
            )?,
            late: counters(
                r,
                "store_late_writes_total",
                "Writes that reached the shared database too late to be made, and were sent again or refused.",
                &["store"],
            )?,
            schema: gauges(
                r,
                "store_schema_version",
                "Version of the schema in the shared database; 0 before it is known.",
                &["store"],
            )?,
        })
    }
}
