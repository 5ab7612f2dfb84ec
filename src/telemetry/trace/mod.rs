//! Traces: which requests are followed, and what is told of each of their steps.
//!
//! Whether a request is followed is decided where it enters the system, before a span is made, and travels
//! in the headers: a request that is not followed costs its ids, no more. A span is what one process did for
//! it: it served it, or it made one attempt to call somebody. Ended spans go into a bounded queue, from which
//! a task sends them to Zipkin in batches; nothing ever waits for it.

mod export;
mod headers;
pub mod metrics;
mod queue;
mod zipkin;

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderValue};
use opentelemetry::trace::{SpanContext, SpanId, TraceId};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::api::rpc::Rpc;
use crate::config;
use crate::random;
use metrics::Metrics;
use queue::Queue;

/// The traces of a process: its tracers, and the task that sends what they record.
pub struct Traces {
    /// None if no collector is set.
    queue: Option<Arc<Queue>>,
    /// [`Recorder::below`].
    below: u64,
    stop: CancellationToken,
    task: Option<JoinHandle<()>>,
}

impl Traces {
    /// Starts the task, if the settings name a collector. Must be called inside a tokio runtime.
    #[must_use]
    pub fn start(settings: &config::Trace, metrics: &Metrics) -> Self {
        let stop = CancellationToken::new();
        let Some(collector) = &settings.zipkin_addr else {
            return Self { queue: None, below: 0, stop, task: None };
        };
        if collector.was_v1() {
            tracing::warn!(%collector, "the collector is spoken to in version 2 of Zipkin's format");
        }
        let queue = Arc::new(Queue::new(settings.queue, metrics.clone()));
        let task = tokio::spawn(export::run(queue.clone(), collector.uri().clone(), stop.clone()));
        Self { queue: Some(queue), below: bound(settings.sample_ratio), stop, task: Some(task) }
    }

    /// Returns the tracer of one role of this process, which answers at `addr`.
    #[must_use]
    pub fn tracer(&self, service: &'static str, addr: SocketAddr) -> Tracer {
        let endpoint = Endpoint { service, ip: Some(addr.ip()), port: Some(addr.port()) };
        let recorder = |queue: &Arc<Queue>| {
            Arc::new(Recorder { endpoint: Arc::new(endpoint), queue: queue.clone(), below: self.below })
        };
        Tracer(self.queue.as_ref().map(recorder))
    }

    /// Sends what is left and ends the task. Takes at most half a second; what is left then is counted
    /// as dropped.
    pub async fn stop(self) {
        self.stop.cancel();
        if let Some(task) = self.task
            && let Err(error) = task.await
        {
            tracing::error!(%error, "the task that sends spans failed");
        }
    }
}

/// Returns a new trace id of 128 bits.
fn new_trace_id() -> TraceId {
    TraceId::from(u128::from(random::id()) << 64 | u128::from(random::id()))
}

/// Returns the trace ids that a ratio takes: those whose low 63 bits are below this. The same at every hop
/// with the same ratio, and the rule of OpenTelemetry's ratio sampler.
fn bound(ratio: f64) -> u64 {
    const ALL: f64 = 9_223_372_036_854_775_808.0; // 2 to the 63rd
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the ratio is 0 to 1")]
    let bound = (ratio * ALL) as u64;
    bound
}

/// Makes the spans of one role. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Tracer(Option<Arc<Recorder>>);

#[derive(Debug)]
struct Recorder {
    endpoint: Arc<Endpoint>,
    queue: Arc<Queue>,
    below: u64,
}

impl Tracer {
    /// Returns a tracer that records nothing and decides nothing.
    #[must_use]
    pub const fn off() -> Self {
        Self(None)
    }

    /// Returns the trace that a request belongs to: the one that its headers name, else a new one. If they
    /// do not say whether it is followed, that is decided here.
    #[must_use]
    pub fn join(&self, headers: &HeaderMap) -> Trace {
        let joined = headers::read(headers);
        let trace_id = joined.trace_id.unwrap_or_else(new_trace_id);
        let followed = joined.sampled.or_else(|| {
            let low = u64::try_from(u128::from_be_bytes(trace_id.to_bytes()) & u128::from(u64::MAX >> 1));
            self.0.as_ref().map(|recorder| low.is_ok_and(|low| low < recorder.below))
        });
        Trace {
            recorder: self.0.clone().filter(|_| followed == Some(true)),
            context: SpanContext::new(
                trace_id,
                joined.span_id.unwrap_or(SpanId::INVALID),
                headers::flags(followed),
                true,
                joined.state,
            ),
        }
    }
}

/// The trace of a request, as this process passes it on: what is written into the headers of a call is its
/// id, the id of the span that the call is part of, and whether it is followed. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Trace {
    context: SpanContext,
    /// None if the request is not followed, or not here.
    recorder: Option<Arc<Recorder>>,
}

impl Default for Trace {
    /// Returns a new trace that nobody follows.
    fn default() -> Self {
        let mut trace = Tracer::off().join(&HeaderMap::new());
        trace.enter();
        trace
    }
}

impl Trace {
    /// Returns its id.
    #[must_use]
    pub fn id(&self) -> Id {
        Id(self.context.trace_id())
    }

    /// Begins the span of a request that this process serves since `begun`, for a caller at `peer`. From
    /// here on this trace speaks for that span.
    pub fn serve(&mut self, name: impl FnOnce() -> Cow<'static, str>, begun: Instant, peer: IpAddr) -> Span {
        let Some(recorder) = self.recorder.clone() else {
            if self.context.span_id() == SpanId::INVALID {
                // a trace cannot be passed on without the id of a span
                self.enter();
            }
            return Span(None);
        };
        let parent = self.enter();
        let remote = Endpoint { service: "", ip: Some(peer), port: None };
        self.span(recorder, parent, Kind::Server, name(), begun, remote)
    }

    /// Begins the span of an attempt to call `rpc` at the instance at `addr`, `host:port`. Returns what the
    /// attempt passes on, and the span.
    pub fn attempt(&self, rpc: Rpc, addr: &str) -> (Self, Span) {
        let mut child = self.clone();
        let Some(recorder) = child.recorder.clone() else {
            return (child, Span(None));
        };
        let parent = child.enter();
        let addr = addr.parse::<SocketAddr>().ok();
        let remote =
            Endpoint { service: rpc.service(), ip: addr.map(|a| a.ip()), port: addr.map(|a| a.port()) };
        let name = Cow::Borrowed(rpc.path().trim_start_matches('/'));
        let span = child.span(recorder, parent, Kind::Client, name, Instant::now(), remote);
        (child, span)
    }

    /// Writes it into the headers of a call.
    pub fn write(&self, headers: &mut HeaderMap) {
        headers::write(&self.context, headers);
    }

    /// Goes on as a new span; returns the id of the one before, if there was one.
    fn enter(&mut self) -> Option<SpanId> {
        let parent = self.context.span_id();
        self.context = SpanContext::new(
            self.context.trace_id(),
            SpanId::from_bytes(random::id().to_be_bytes()),
            self.context.trace_flags(),
            false,
            self.context.trace_state().clone(),
        );
        (parent != SpanId::INVALID).then_some(parent)
    }

    fn span(
        &self,
        recorder: Arc<Recorder>,
        parent: Option<SpanId>,
        kind: Kind,
        name: Cow<'static, str>,
        begun: Instant,
        remote: Endpoint,
    ) -> Span {
        let record = Record {
            trace_id: self.context.trace_id(),
            id: self.context.span_id(),
            parent,
            kind,
            name,
            // the clock may be set while the request runs: how long it took is not its business
            start: SystemTime::now().checked_sub(begun.elapsed()).unwrap_or(SystemTime::UNIX_EPOCH),
            took: Duration::ZERO,
            local: recorder.endpoint.clone(),
            remote,
            tags: Vec::with_capacity(TAGS),
        };
        Span(Some(Box::new(Open { record, begun, recorder })))
    }
}

/// Tags that a usual span has.
const TAGS: usize = 6;

/// A trace's id, 32 lower-case hex digits; 16 for one of 64 bits, as Zipkin writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Id(TraceId);

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = u128::from_be_bytes(self.0.to_bytes());
        if id <= u128::from(u64::MAX) { write!(f, "{id:016x}") } else { write!(f, "{id:032x}") }
    }
}

impl From<Id> for HeaderValue {
    fn from(id: Id) -> Self {
        Self::from_str(&id.to_string()).unwrap_or(Self::from_static("0"))
    }
}

/// A step that is under way; nothing if the request is not followed. Dropped before its end it was
/// cancelled.
#[must_use]
pub struct Span(Option<Box<Open>>);

struct Open {
    record: Record,
    begun: Instant,
    recorder: Arc<Recorder>,
}

impl Span {
    /// Adds a tag. Its value is of a bounded set, or an id; never content, never a secret.
    pub fn tag(&mut self, key: &'static str, value: impl Into<Tag>) {
        if let Some(open) = &mut self.0 {
            open.record.tags.push((key, value.into()));
        }
    }

    /// Says that the step failed, and with what.
    pub fn fail(&mut self, what: &'static str) {
        self.tag("error", what);
    }

    /// Forgets it: it was no step after all.
    pub fn discard(mut self) {
        self.0 = None;
    }

    /// Ends it.
    pub fn end(mut self) {
        self.close();
    }

    fn close(&mut self) {
        if let Some(mut open) = self.0.take() {
            open.record.took = open.begun.elapsed();
            open.recorder.queue.push(open.record);
        }
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        self.fail("cancelled");
        self.close();
    }
}

/// The value of a tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tag {
    /// A word of ours.
    Word(&'static str),
    /// A number.
    Number(u64),
    /// An id.
    Id(HeaderValue),
}

impl From<&'static str> for Tag {
    fn from(word: &'static str) -> Self {
        Self::Word(word)
    }
}

impl From<u64> for Tag {
    fn from(number: u64) -> Self {
        Self::Number(number)
    }
}

impl From<Duration> for Tag {
    /// Whole milliseconds.
    fn from(time: Duration) -> Self {
        Self::Number(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
    }
}

impl From<&HeaderValue> for Tag {
    fn from(id: &HeaderValue) -> Self {
        Self::Id(id.clone())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Server,
    Client,
}

/// Who took part in a step.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Endpoint {
    /// Its role; empty if that is not known.
    service: &'static str,
    ip: Option<IpAddr>,
    port: Option<u16>,
}

/// A step that has ended.
#[derive(Clone, Debug)]
struct Record {
    trace_id: TraceId,
    id: SpanId,
    parent: Option<SpanId>,
    kind: Kind,
    name: Cow<'static, str>,
    start: SystemTime,
    took: Duration,
    local: Arc<Endpoint>,
    remote: Endpoint,
    tags: Vec<(&'static str, Tag)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a span that took so many milliseconds.
    pub fn record(took: u64) -> Record {
        Record {
            trace_id: TraceId::from(0x463a_c35c_9f64_13ad_u128),
            id: SpanId::from(0xff),
            parent: Some(SpanId::from(0xfe)),
            kind: Kind::Client,
            name: Cow::Borrowed("feed.Feed/GetFeeds"),
            start: SystemTime::UNIX_EPOCH + Duration::from_secs(1),
            took: Duration::from_millis(took),
            local: Arc::new(Endpoint {
                service: "apigateway",
                ip: Some(IpAddr::from([0, 0, 0, 0])),
                port: Some(8080),
            }),
            remote: Endpoint { service: "feed", ip: Some(IpAddr::from([192, 0, 2, 1])), port: Some(1) },
            tags: Vec::new(),
        }
    }

    fn tracer(ratio: f64) -> (Tracer, Arc<Queue>) {
        let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
        let queue = Arc::new(Queue::new(100_000, metrics.clone()));
        let endpoint = Arc::new(Endpoint { service: "feed", ip: None, port: None });
        let recorder = Recorder { endpoint, queue: queue.clone(), below: bound(ratio) };
        (Tracer(Some(Arc::new(recorder))), queue)
    }

    const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn headers(b3: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(http::HeaderName::from_static("b3"), HeaderValue::from_static(b3))])
    }

    #[test]
    fn the_share_that_is_followed_is_the_ratio() {
        for (ratio, low, high) in [(0.0, 0, 0), (0.01, 60, 140), (0.5, 4800, 5200), (1.0, 10_000, 10_000)] {
            let (tracer, queue) = tracer(ratio);
            for _ in 0..10_000 {
                tracer.join(&HeaderMap::new()).serve(|| "x".into(), Instant::now(), PEER).end();
            }
            let mut found = 0;
            while let count @ 1.. = queue.take().len() {
                found += count;
            }
            assert!((low..=high).contains(&found), "{found} of 10000 at {ratio}");
        }
    }

    #[test]
    fn two_hops_with_one_ratio_decide_alike() {
        let (one, other) = (tracer(0.3).0, tracer(0.3).0);
        for _ in 0..1000 {
            let first = one.join(&HeaderMap::new());
            let id = HeaderValue::from(first.id());
            let headers = HeaderMap::from_iter([(crate::api::headers::TRACE_ID, id)]);
            assert_eq!(first.recorder.is_some(), other.join(&headers).recorder.is_some());
        }
    }

    #[test]
    fn the_callers_decision_counts() {
        let (all, none) = (tracer(1.0).0, tracer(0.0).0);
        assert!(all.join(&headers("80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1-0")).recorder.is_none());
        assert!(
            none.join(&headers("80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1-1")).recorder.is_some()
        );
        assert!(all.join(&headers("80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1")).recorder.is_some());
        assert!(none.join(&headers("80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1")).recorder.is_none());
    }

    #[test]
    fn attempts_are_siblings_below_the_span_that_serves() {
        let (tracer, queue) = tracer(1.0);
        let mut trace = tracer.join(&headers("463ac35c9f6413ad-e457b5a2e4d86bd1-1"));
        let serving = trace.serve(|| "GET /x".into(), Instant::now(), PEER);
        let attempts = [1, 2].map(|port| {
            let (passed, span) = trace.attempt(crate::api::rpc::Rpc::GetFeeds, &format!("192.0.2.1:{port}"));
            let mut headers = HeaderMap::new();
            passed.write(&mut headers);
            span.end();
            headers
        });
        serving.end();
        let spans = queue.take();
        let [first, second, served] = &spans[..] else { panic!("{spans:?}") };
        assert_eq!(served.parent, Some(SpanId::from(0xe457_b5a2_e4d8_6bd1)));
        for (attempt, headers) in [(first, &attempts[0]), (second, &attempts[1])] {
            assert_eq!((attempt.parent, attempt.kind), (Some(served.id), Kind::Client));
            assert_eq!(headers["x-b3-spanid"], attempt.id.to_string());
            assert_eq!(headers["x-b3-traceid"], "0000000000000000463ac35c9f6413ad");
            assert_eq!(headers["x-b3-sampled"], "1");
        }
        assert_ne!(first.id, second.id);
        assert_eq!(second.remote.port, Some(2));
    }

    #[test]
    fn a_request_that_is_not_followed_is_passed_on_as_such() {
        for (trace, sampled) in [(tracer(0.0).0.join(&HeaderMap::new()), Some("0")), (Trace::default(), None)]
        {
            let mut trace = trace;
            trace.serve(|| unreachable!("nobody reads it"), Instant::now(), PEER).end();
            let (passed, span) = trace.attempt(crate::api::rpc::Rpc::GetFeeds, "h:1");
            assert!(span.0.is_none());
            let mut headers = HeaderMap::new();
            passed.write(&mut headers);
            assert_eq!(headers.get("x-b3-sampled").map(|value| value.to_str().unwrap()), sampled);
            assert_eq!(headers["x-b3-spanid"].len(), 16);
            assert_eq!(headers["x-b3-traceid"], trace.id().to_string());
        }
    }

    #[test]
    fn a_step_that_is_dropped_was_cancelled() {
        let (tracer, queue) = tracer(1.0);
        drop(tracer.join(&HeaderMap::new()).serve(|| "x".into(), Instant::now(), PEER));
        let spans = queue.take();
        assert_eq!(spans[0].tags, [("error", Tag::Word("cancelled"))]);
    }
}
