//! Traces: which requests are sampled, and one span for each that a process serves and for each attempt to call
//! another service.
//!
//! The sampling decision is made where a request enters the system, before a span is made, and travels in the headers.
//! A request that is not sampled costs its ids and nothing else. Spans that have ended wait in a bounded queue, from
//! which a task sends them to Zipkin in batches; no request ever waits for that.

mod export;
// public for the fuzz targets
#[doc(hidden)]
pub mod headers;
mod id;
pub mod metrics;
mod queue;
mod record;
mod sampling;
mod span;
mod tracer;
mod zipkin;

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::config;
use metrics::Metrics;
use queue::Queue;
use record::Endpoint;
use sampling::Ratio;
use span::Recorder;

pub use id::Id;
pub use record::Tag;
pub use span::Span;
pub use tracer::{Trace, Tracer};

/// The traces of a process: it makes the tracers of its roles, and owns the task that exports their spans.
pub struct Traces {
    /// `None` if no collector is configured.
    exporter: Option<Exporter>,
}

struct Exporter {
    queue: Arc<Queue>,
    ratio: Ratio,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Traces {
    /// Starts the export, if the settings name a collector. Must be called inside a tokio runtime.
    #[must_use]
    pub fn start(settings: &config::Trace, metrics: &Metrics) -> Self {
        let start = |collector: &config::Collector| {
            if collector.was_v1() {
                tracing::warn!(%collector, "the collector's address is for version 1 of Zipkin's format; version 2 is sent");
            }
            let queue = Arc::new(Queue::new(settings.queue, metrics.clone()));
            let stop = CancellationToken::new();
            let task = tokio::spawn(export::run(queue.clone(), collector.uri().clone(), stop.clone()));
            Exporter { queue, ratio: Ratio::new(settings.sample_ratio), stop, task }
        };
        Self { exporter: settings.zipkin_addr.as_ref().map(start) }
    }

    /// Returns the tracer of one role of this process, which answers at `addr`.
    #[must_use]
    pub fn tracer(&self, service: &'static str, addr: SocketAddr) -> Tracer {
        let endpoint = Endpoint { service, ip: Some(addr.ip()), port: Some(addr.port()) };
        let recorder = |exporter: &Exporter| {
            let (queue, ratio) = (exporter.queue.clone(), exporter.ratio);
            Arc::new(Recorder { endpoint: Arc::new(endpoint), queue, ratio })
        };
        Tracer(self.exporter.as_ref().map(recorder))
    }

    /// Sends the spans that are still queued and ends the export. Takes at most half a second; spans that are left
    /// then are counted as dropped.
    pub async fn stop(self) {
        let Some(exporter) = self.exporter else { return };
        exporter.stop.cancel();
        if let Err(error) = exporter.task.await {
            tracing::error!(%error, "the task that sends spans failed");
        }
    }
}
