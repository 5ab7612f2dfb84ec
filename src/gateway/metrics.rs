//! The metrics of the gateway beside those of its server.

use std::sync::Arc;

use prometheus::{IntCounter, IntCounterVec, IntGauge, Registry};

use super::auth::refusal::Refusal;
use crate::telemetry::metrics::{counters, gauge};

/// The metrics of a gateway.
#[derive(Clone, Debug)]
pub struct Metrics {
    refused: IntCounterVec,
    keys: IntGauge,
    stale: IntGauge,
}

impl Metrics {
    /// Registers the metrics.
    ///
    /// # Errors
    /// When a name is taken.
    pub fn register(r: &Registry) -> prometheus::Result<Self> {
        Ok(Self {
            refused: counters(
                r,
                "http_auth_refused_total",
                "Requests refused for want of a right, by what was wrong with their token.",
                &["reason"],
            )?,
            keys: gauge(r, "http_auth_keys", "Keys that verify tokens.")?,
            stale: gauge(
                r,
                "http_auth_keys_stale",
                "1 while the file of keys cannot be used, so that earlier keys go on.",
            )?,
        })
    }

    /// Returns what is counted of tokens, each reason at 0 from then on.
    #[must_use]
    pub fn auth(&self) -> Arc<AuthMetrics> {
        let counter = |reason: Refusal| (reason, self.refused.with_label_values(&[reason.name()]));
        let refused = Refusal::ALL.map(counter);
        Arc::new(AuthMetrics { refused, keys: self.keys.clone(), stale: self.stale.clone() })
    }
}

/// What is counted of tokens.
#[derive(Debug)]
pub struct AuthMetrics {
    refused: [(Refusal, IntCounter); Refusal::ALL.len()],
    keys: IntGauge,
    stale: IntGauge,
}

impl AuthMetrics {
    /// Counts a request that is refused.
    pub fn refused(&self, reason: Refusal) {
        if let Some((_, counter)) = self.refused.iter().find(|(known, _)| *known == reason) {
            counter.inc();
        }
    }

    /// Sets how many keys are in use.
    pub fn set_keys(&self, keys: usize) {
        self.keys.set(i64::try_from(keys).unwrap_or(i64::MAX));
    }

    /// Sets whether the file of keys cannot be used.
    pub fn set_stale(&self, stale: bool) {
        self.stale.set(i64::from(stale));
    }
}
