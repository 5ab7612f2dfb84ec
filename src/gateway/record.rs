//! What is recorded of a request: its metrics and its log line.

use std::time::Duration;

use http::StatusCode;

use crate::context::Context;
use crate::server::lifecycle::{Outcome, Record};
use crate::server::metrics::{Requests, Target};

/// Of log lines: part of the interface.
const TARGET: &str = "microservice_app::gateway";

/// What is recorded of a request over HTTP.
pub struct HttpRecord {
    /// The histogram.
    pub requests: Requests,
    /// Its labels.
    pub target: Target,
}

impl Record for HttpRecord {
    type Status = StatusCode;

    fn failure(status: StatusCode) -> Option<&'static str> {
        status.is_server_error().then(|| status.canonical_reason().unwrap_or("error"))
    }

    fn observe(&self, status: StatusCode, took: Duration) {
        self.requests.observe(self.target, status, took);
    }

    fn observe_hang_up(&self, took: Duration) {
        self.requests.hung_up(self.target, took);
    }

    fn log(&self, outcome: Outcome, status: StatusCode, took: Duration, context: &Context) {
        let Target { route, method, .. } = self.target;
        let (status, ms, (request_id, trace_id)) = (status.as_u16(), took.as_millis(), context.ids());
        match outcome {
            Outcome::Failed | Outcome::Slow => {
                tracing::info!(target: TARGET, route, method, status, duration_ms = ms, request_id, %trace_id, "request");
            }
            Outcome::Usual => {
                tracing::debug!(target: TARGET, route, method, status, duration_ms = ms, request_id, %trace_id, "request");
            }
        }
    }

    fn log_panic(&self, context: &Context) {
        let (route, (request_id, trace_id)) = (self.target.route, context.ids());
        tracing::error!(target: TARGET, route, request_id, %trace_id, "handler panicked");
    }
}
