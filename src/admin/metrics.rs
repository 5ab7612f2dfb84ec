//! The metrics of the admin listener.

use prometheus::{IntCounter, Registry};

use crate::telemetry::metrics::counter;

/// The metrics of an admin listener.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Requests without the token.
    pub unauthorized: IntCounter,
}

impl Metrics {
    /// Registers the metrics.
    ///
    /// # Errors
    /// When a name is taken.
    pub fn register(r: &Registry) -> prometheus::Result<Self> {
        let help = "Requests to the admin listener that do not show the token of admin.token_file.";
        Ok(Self { unauthorized: counter(r, "admin_unauthorized_total", help)? })
    }
}
