//! The trace of a request: where it comes from, and how its spans are made.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::HeaderMap;
use opentelemetry::trace::{SpanContext, SpanId};
use tokio::time::Instant;

use super::headers;
use super::id::Id;
use super::record::{Endpoint, Kind};
use super::span::{Recorder, Span};
use crate::api::rpc::Rpc;
use crate::random;

/// Makes the spans of one role. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Tracer(pub(super) Option<Arc<Recorder>>);

impl Tracer {
    /// Returns a tracer that records nothing and makes no sampling decision.
    #[must_use]
    pub const fn off() -> Self {
        Self(None)
    }

    /// Returns the trace of a request: the one that its headers name, else a new one. If the headers hold no sampling
    /// decision, it is made here.
    #[must_use]
    pub fn join(&self, headers: &HeaderMap) -> Trace {
        let incoming = headers::read(headers);
        let trace_id = incoming.trace_id.unwrap_or_else(|| Id::random().0);
        let decide = || self.0.as_ref().map(|recorder| recorder.ratio.samples(trace_id));
        let sampled = incoming.sampled.or_else(decide);
        Trace {
            recorder: self.0.clone().filter(|_| sampled == Some(true)),
            context: SpanContext::new(
                trace_id,
                incoming.span_id.unwrap_or(SpanId::INVALID),
                headers::flags(sampled),
                true,
                incoming.state,
            ),
        }
    }
}

/// The trace of a request, as this process passes it on. The headers of a call get the trace id, the id of the current
/// span, and the sampling decision. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Trace {
    context: SpanContext,
    /// `None` if the request is not sampled, or this process exports no spans.
    recorder: Option<Arc<Recorder>>,
}

impl Default for Trace {
    /// Returns a new trace without a sampling decision.
    fn default() -> Self {
        let mut trace = Tracer::off().join(&HeaderMap::new());
        trace.enter_span();
        trace
    }
}

impl Trace {
    /// Returns the trace id.
    #[must_use]
    pub fn id(&self) -> Id {
        Id(self.context.trace_id())
    }

    /// Begins the server span of a request that came at `begun` from `peer`. It becomes the current span.
    pub fn serve(&mut self, name: impl FnOnce() -> Cow<'static, str>, begun: Instant, peer: IpAddr) -> Span {
        let Some(recorder) = self.recorder.clone() else {
            if self.context.span_id() == SpanId::INVALID {
                // a trace cannot be passed on without the id of a span
                self.enter_span();
            }
            return Span::empty();
        };
        let parent = self.enter_span();
        let remote = Endpoint { service: "", ip: Some(peer), port: None };
        Span::begin(recorder, &self.context, parent, Kind::Server, name(), begun, remote)
    }

    /// Begins the client span of one attempt to call `rpc` at the instance `addr`, `host:port`. Returns the trace with
    /// that span as the current one, for the headers of the attempt, and the span.
    pub fn attempt(&self, rpc: Rpc, addr: &str) -> (Self, Span) {
        let mut child = self.clone();
        let Some(recorder) = child.recorder.clone() else {
            return (child, Span::empty());
        };
        let parent = child.enter_span();
        let addr = addr.parse::<SocketAddr>().ok();
        let remote =
            Endpoint { service: rpc.service(), ip: addr.map(|a| a.ip()), port: addr.map(|a| a.port()) };
        let name = Cow::Borrowed(rpc.path().trim_start_matches('/'));
        let span = Span::begin(recorder, &child.context, parent, Kind::Client, name, Instant::now(), remote);
        (child, span)
    }

    /// Writes the trace into the headers of a call.
    pub fn write(&self, headers: &mut HeaderMap) {
        headers::write(&self.context, headers);
    }

    /// Makes a new span the current one. Returns the id of the one before, if there was one.
    fn enter_span(&mut self) -> Option<SpanId> {
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
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;
    use crate::telemetry::trace::metrics::Metrics;
    use crate::telemetry::trace::queue::Queue;
    use crate::telemetry::trace::record::Tag;
    use crate::telemetry::trace::sampling::Ratio;

    fn tracer(ratio: f64) -> (Tracer, Arc<Queue>) {
        let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
        let queue = Arc::new(Queue::new(100_000, metrics.clone()));
        let endpoint = Arc::new(Endpoint { service: "feed", ip: None, port: None });
        let recorder = Recorder { endpoint, queue: queue.clone(), ratio: Ratio::new(ratio) };
        (Tracer(Some(Arc::new(recorder))), queue)
    }

    const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn headers(b3: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(http::HeaderName::from_static("b3"), HeaderValue::from_static(b3))])
    }

    #[test]
    fn the_share_of_sampled_traces_is_the_ratio() {
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
    fn the_callers_decision_is_kept() {
        let (all, none) = (tracer(1.0).0, tracer(0.0).0);
        assert!(all.join(&headers("80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1-0")).recorder.is_none());
        assert!(
            none.join(&headers("80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1-1")).recorder.is_some()
        );
        assert!(all.join(&headers("80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1")).recorder.is_some());
        assert!(none.join(&headers("80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1")).recorder.is_none());
    }

    #[test]
    fn attempts_are_siblings_below_the_server_span() {
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
    fn the_decision_not_to_sample_is_passed_on() {
        for (trace, sampled) in [(tracer(0.0).0.join(&HeaderMap::new()), Some("0")), (Trace::default(), None)]
        {
            let mut trace = trace;
            trace.serve(|| unreachable!("the name is not needed"), Instant::now(), PEER).end();
            let (passed, span) = trace.attempt(crate::api::rpc::Rpc::GetFeeds, "h:1");
            assert!(span.is_empty());
            let mut headers = HeaderMap::new();
            passed.write(&mut headers);
            assert_eq!(headers.get("x-b3-sampled").map(|value| value.to_str().unwrap()), sampled);
            assert_eq!(headers["x-b3-spanid"].len(), 16);
            assert_eq!(headers["x-b3-traceid"], trace.id().to_string());
        }
    }

    #[test]
    fn a_span_that_is_dropped_was_cancelled() {
        let (tracer, queue) = tracer(1.0);
        drop(tracer.join(&HeaderMap::new()).serve(|| "x".into(), Instant::now(), PEER));
        let spans = queue.take();
        assert_eq!(spans[0].tags, [("error", Tag::Word("cancelled"))]);
    }
}
