//! Spans that are under way.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use opentelemetry::trace::{SpanContext, SpanId};
use tokio::time::Instant;

use super::queue::Queue;
use super::record::{Endpoint, Kind, Record, Tag};
use super::sampling::Ratio;

/// Tags of a usual span.
const TAGS: usize = 6;

/// What the sampled requests of one role share.
#[derive(Debug)]
pub struct Recorder {
    /// The role.
    pub endpoint: Arc<Endpoint>,
    /// Where its spans go.
    pub queue: Arc<Queue>,
    /// Which requests it samples if their callers have not decided.
    pub ratio: Ratio,
}

/// A span that is under way; empty if the request is not sampled. One that is dropped before its end is recorded as
/// cancelled.
#[must_use]
pub struct Span(Option<Box<Open>>);

struct Open {
    record: Record,
    begun: Instant,
    recorder: Arc<Recorder>,
}

impl Span {
    /// Returns a span of which nothing is recorded.
    pub const fn empty() -> Self {
        Self(None)
    }

    /// Begins the span of `context` at `begun`.
    pub(super) fn begin(
        recorder: Arc<Recorder>,
        context: &SpanContext,
        parent: Option<SpanId>,
        kind: Kind,
        name: Cow<'static, str>,
        begun: Instant,
        remote: Endpoint,
    ) -> Self {
        let record = Record {
            trace_id: context.trace_id(),
            id: context.span_id(),
            parent,
            kind,
            name,
            // only the start is read from the clock, which may be set while the request runs
            start: SystemTime::now().checked_sub(begun.elapsed()).unwrap_or(SystemTime::UNIX_EPOCH),
            duration: Duration::ZERO,
            local: recorder.endpoint.clone(),
            remote,
            tags: Vec::with_capacity(TAGS),
        };
        Self(Some(Box::new(Open { record, begun, recorder })))
    }

    /// Adds a tag. Its value comes from a bounded set or is an id; it is never content and never a secret.
    pub fn tag(&mut self, key: &'static str, value: impl Into<Tag>) {
        if let Some(open) = &mut self.0 {
            open.record.tags.push((key, value.into()));
        }
    }

    /// Notes that the request or attempt failed, and how.
    pub fn fail(&mut self, what: &'static str) {
        self.tag("error", what);
    }

    /// Drops the span without recording it.
    pub fn discard(mut self) {
        self.0 = None;
    }

    /// Ends the span.
    pub fn end(mut self) {
        self.close();
    }

    fn close(&mut self) {
        if let Some(mut open) = self.0.take() {
            open.record.duration = open.begun.elapsed();
            open.recorder.queue.push(open.record);
        }
    }

    /// Returns true if nothing is recorded: then tags need not be made.
    pub const fn is_empty(&self) -> bool {
        self.0.is_none()
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        self.fail("cancelled");
        self.close();
    }
}
