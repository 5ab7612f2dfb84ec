//! Trace headers: read in the order `b3`, `x-b3-*`, `traceparent`, written as `x-b3-*` and `traceparent`.
//!
//! OpenTelemetry's propagators parse them. That of B3 is in `opentelemetry-zipkin`, which is deprecated: this
//! is the only file that uses the crate, and its propagator is all that is used of it.

#![expect(deprecated, reason = "the project requires opentelemetry-zipkin; no other released crate has B3")]

use std::borrow::Cow;
use std::ops::Range;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::Context;
use opentelemetry::propagation::{Extractor, TextMapPropagator as _};
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceId, TraceState};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_zipkin::{B3Encoding, Propagator};

use crate::api::headers::TRACE_ID;

const B3: &str = "b3";
const SAMPLED: &str = "x-b3-sampled";
const TRACEPARENT: &str = "traceparent";
const TRACESTATE: &str = "tracestate";
const X_B3_SPANID: HeaderName = HeaderName::from_static("x-b3-spanid");
const X_B3_SAMPLED: HeaderName = HeaderName::from_static(SAMPLED);
const X_B3_FLAGS: HeaderName = HeaderName::from_static("x-b3-flags");
const X_TRACEPARENT: HeaderName = HeaderName::from_static(TRACEPARENT);
const X_TRACESTATE: HeaderName = HeaderName::from_static(TRACESTATE);
/// The headers that are read.
const READ: [&str; 7] = [B3, "x-b3-traceid", "x-b3-spanid", SAMPLED, "x-b3-flags", TRACEPARENT, TRACESTATE];

/// Longest value that is read, bytes: what W3C asks implementations to pass on of `tracestate`. It goes to every service.
const LONGEST: usize = 512;

/// The sampling decision is left to the receiver; the value of opentelemetry-zipkin.
const DEFERRED: TraceFlags = TraceFlags::new(0x02);
/// The trace must be sampled; the value of opentelemetry-zipkin.
const DEBUG: TraceFlags = TraceFlags::new(0x04);

/// The trace that a request's headers describe.
#[derive(Debug, Default)]
pub struct Incoming {
    /// The trace id.
    pub trace_id: Option<TraceId>,
    /// The caller's span.
    pub span_id: Option<SpanId>,
    /// The sampling decision, if the caller has made one.
    pub sampled: Option<bool>,
    /// `tracestate`, which is passed on unchanged.
    pub state: TraceState,
}

/// Returns the flags for a sampling decision.
pub fn flags(sampled: Option<bool>) -> TraceFlags {
    sampled.map_or(DEFERRED, |sampled| TraceFlags::default().with_sampled(sampled))
}

/// Reads the trace from headers. Values that cannot be parsed are ignored.
pub fn read(headers: &HeaderMap) -> Incoming {
    // most requests have few headers, and none of these
    if !headers.keys().any(|name| READ.contains(&name.as_str())) {
        return Incoming::default();
    }
    let carrier = Read(READ.map(|name| {
        let text = headers.get(name)?.to_str().ok().filter(|text| text.len() <= LONGEST)?;
        // ids in upper case are wrong, but some callers send them
        let is_upper = text.bytes().any(|b| b.is_ascii_uppercase()) && name != TRACESTATE;
        Some(if is_upper { Cow::Owned(text.to_ascii_lowercase()) } else { Cow::Borrowed(text) })
    }));
    let b3 = Propagator::with_encoding(B3Encoding::SingleAndMultiHeader);
    let empty = Context::new();
    let mut found = b3.extract_with_context(&empty, &carrier);
    if !found.span().span_context().is_valid() {
        found = TraceContextPropagator::new().extract_with_context(&empty, &carrier);
    }
    let span = found.span();
    let context = span.span_context();
    if !context.is_valid() {
        // the headers hold a trace id without a span, or only a sampling decision
        let trace_id = carrier.get(TRACE_ID.as_str()).and_then(trace_id);
        return Incoming { trace_id, sampled: decision(&carrier), ..Incoming::default() };
    }
    let flags = context.trace_flags();
    let is = |flag: TraceFlags| flags & flag == flag;
    let sampled = is(TraceFlags::SAMPLED) || is(DEBUG);
    Incoming {
        trace_id: Some(context.trace_id()),
        span_id: Some(context.span_id()),
        sampled: (sampled || !is(DEFERRED)).then_some(sampled),
        state: context.trace_state().clone(),
    }
}

fn trace_id(text: &str) -> Option<TraceId> {
    let id = TraceId::from_hex(text).ok().filter(|id| *id != TraceId::INVALID);
    id.filter(|_| matches!(text.len(), 16 | 32) && text.bytes().all(|b| b.is_ascii_hexdigit()))
}

fn decision(carrier: &Read<'_>) -> Option<bool> {
    match carrier.get(B3).or_else(|| carrier.get(SAMPLED))? {
        "0" | "false" => Some(false),
        "1" | "true" | "d" => Some(true),
        _ => None,
    }
}

/// Writes a trace as B3's several headers and as W3C's. Its span id must be valid.
///
/// This is what the two propagators write, without their copies: it is done for every attempt of every call, and all ids
/// are parts of one buffer here.
pub fn write(context: &SpanContext, headers: &mut HeaderMap) {
    const TRACE: Range<usize> = 3..35;
    const SPAN: Range<usize> = 36..52;
    let sampled = context.is_sampled();
    let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
    for (place, bytes) in [(TRACE, &context.trace_id().to_bytes()[..]), (SPAN, &context.span_id().to_bytes())]
    {
        write_hex(bytes, text.get_mut(place).unwrap_or_default());
    }
    if let Some(flag) = text.last_mut() {
        *flag = if sampled { b'1' } else { b'0' };
    }
    let text = Bytes::copy_from_slice(&text);
    let mut set = |name, value: Bytes| {
        if let Ok(mut value) = HeaderValue::from_maybe_shared(value) {
            // ids never repeat, so HPACK must not put them into its table
            value.set_sensitive(true);
            headers.insert(name, value);
        }
    };
    set(TRACE_ID, text.slice(TRACE));
    set(X_B3_SPANID, text.slice(SPAN));
    set(X_TRACEPARENT, text);
    let state = context.trace_state().header();
    if !state.is_empty() {
        set(X_TRACESTATE, state.into());
    }
    let flags = context.trace_flags();
    if flags & DEBUG == DEBUG {
        headers.insert(X_B3_FLAGS, HeaderValue::from_static("1"));
    } else if flags & DEFERRED != DEFERRED {
        headers.insert(X_B3_SAMPLED, HeaderValue::from_static(if sampled { "1" } else { "0" }));
    }
}

/// Writes bytes as lower-case hex digits.
fn write_hex(bytes: &[u8], out: &mut [u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| DIGITS[usize::from(nibble & 15)];
    for (byte, [high, low]) in bytes.iter().zip(out.as_chunks_mut::<2>().0) {
        (*high, *low) = (digit(byte >> 4), digit(*byte));
    }
}

/// The headers in [`READ`].
struct Read<'a>([Option<Cow<'a, str>>; READ.len()]);

impl Extractor for Read<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        let at = READ.iter().position(|name| *name == key)?;
        self.0.get(at)?.as_deref()
    }

    fn keys(&self) -> Vec<&str> {
        READ.to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(list: &[(&'static str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &str)| {
            (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())
        };
        list.iter().map(pair).collect()
    }

    const LONG: &str = "80f198ee56343ba864fe8b2a57d3eff7";
    const SHORT: &str = "463ac35c9f6413ad";
    const SPAN: &str = "b7ad6b7169203331";

    fn seen(list: &[(&'static str, &str)]) -> (String, String, Option<bool>) {
        let incoming = read(&headers(list));
        let trace_id = incoming.trace_id.map_or(String::new(), |id| super::super::id::Id(id).to_string());
        (trace_id, incoming.span_id.map_or(String::new(), |id| id.to_string()), incoming.sampled)
    }

    #[test]
    fn every_form_is_read_in_order_of_precedence() {
        let w3c = format!("00-0af7651916cd43dd8448eb211c80319c-{SPAN}-01");
        let w3c_not = format!("00-0af7651916cd43dd8448eb211c80319c-{SPAN}-00");
        let single = format!("{LONG}-e457b5a2e4d86bd1-0");
        let all = (LONG.to_owned(), "e457b5a2e4d86bd1".to_owned(), Some(false));
        let of_w3c =
            |sampled| ("0af7651916cd43dd8448eb211c80319c".to_owned(), SPAN.to_owned(), Some(sampled));
        let multi = [("x-b3-traceid", SHORT), ("x-b3-spanid", SPAN), ("x-b3-sampled", "1")];
        let of_multi = (SHORT.to_owned(), SPAN.to_owned(), Some(true));
        assert_eq!(seen(&[("traceparent", &w3c)]), of_w3c(true));
        assert_eq!(seen(&[("traceparent", &w3c_not)]), of_w3c(false));
        assert_eq!(seen(&multi), of_multi);
        assert_eq!(seen(&[&multi[..], &[("traceparent", &w3c)]].concat()), of_multi);
        assert_eq!(seen(&[&multi[..], &[("b3", &single), ("traceparent", &w3c)]].concat()), all);
        // a garbled header does not hide the next one
        assert_eq!(seen(&[&multi[..], &[("b3", "x-y-1")]].concat()), of_multi);
        assert_eq!(seen(&[("b3", "x-y-1"), ("x-b3-traceid", "zz"), ("traceparent", &w3c)]), of_w3c(true));
        assert_eq!(seen(&[("traceparent", "00-xyz"), ("b3", "")]), (String::new(), String::new(), None));
    }

    #[test]
    fn a_missing_decision_stays_missing() {
        let ids = format!("{LONG}-{SPAN}");
        assert_eq!(seen(&[("b3", &ids)]).2, None);
        assert_eq!(seen(&[("b3", &format!("{ids}-d"))]).2, Some(true));
        assert_eq!(seen(&[("x-b3-traceid", LONG), ("x-b3-spanid", SPAN)]).2, None);
        let debug = [("x-b3-traceid", LONG), ("x-b3-spanid", SPAN), ("x-b3-flags", "1")];
        assert_eq!(seen(&debug).2, Some(true));
    }

    #[test]
    fn headers_without_a_span_are_read_as_far_as_possible() {
        assert_eq!(seen(&[("b3", "0")]).2, Some(false));
        assert_eq!(seen(&[("x-b3-sampled", "1")]).2, Some(true));
        assert_eq!(seen(&[("x-b3-traceid", SHORT)]), (SHORT.to_owned(), String::new(), None));
        for wrong in ["", "0", "+63ac35c9f6413ad", "0000000000000000", "463ac35c9f6413ad0"] {
            assert_eq!(seen(&[("x-b3-traceid", wrong)]).0, "", "{wrong:?}");
        }
        let upper = [("x-b3-traceid", "463AC35C9F6413AD"), ("x-b3-spanid", "B7AD6B7169203331")];
        assert_eq!(seen(&upper).1, SPAN);
    }

    #[test]
    fn a_long_tracestate_is_not_passed_on() {
        let parent = format!("00-{LONG}-{SPAN}-01");
        for (members, kept) in [(4, true), (5, false)] {
            let member = |n| format!("v{n}={}", "x".repeat(100));
            let state = (0..members).map(member).collect::<Vec<_>>().join(",");
            let incoming = read(&headers(&[("traceparent", &parent), ("tracestate", &state)]));
            assert_eq!(incoming.trace_id, TraceId::from_hex(LONG).ok());
            assert_eq!(incoming.state.get("v0").is_some(), kept, "{} bytes", state.len());
        }
    }

    /// Collects what a propagator writes.
    #[derive(Default)]
    struct Written(std::collections::BTreeMap<String, String>);

    impl opentelemetry::propagation::Injector for Written {
        fn set(&mut self, key: &str, value: String) {
            if !value.is_empty() {
                self.0.insert(key.to_owned(), value);
            }
        }
    }

    /// The propagators are the judges.
    #[test]
    fn it_writes_what_the_propagators_write() {
        let state = TraceState::from_key_value([("a", "1"), ("b", "2")]).unwrap();
        for flags in [flags(None), flags(Some(false)), flags(Some(true)), DEBUG, DEBUG | TraceFlags::SAMPLED]
        {
            for (trace, state) in [(1_u128, TraceState::NONE), (u128::MAX >> 3, state.clone())] {
                let (trace, span) = (TraceId::from(trace), SpanId::from(0x0123_4567_89ab_cdef));
                let context = SpanContext::new(trace, span, flags, false, state);
                let mut headers = HeaderMap::new();
                write(&context, &mut headers);
                let mut judged = Written::default();
                let context = Context::new().with_remote_span_context(context);
                Propagator::new().inject_context(&context, &mut judged);
                TraceContextPropagator::new().inject_context(&context, &mut judged);
                let text = |value: &HeaderValue| value.to_str().unwrap().to_owned();
                let written = headers.iter().map(|(name, value)| (name.to_string(), text(value)));
                assert_eq!(written.collect::<std::collections::BTreeMap<_, _>>(), judged.0, "{flags:?}");
                let once = headers.iter().filter(|(_, value)| value.len() > 1);
                assert!(once.into_iter().all(|(_, value)| value.is_sensitive()));
            }
        }
    }

    #[test]
    fn headers_survive_the_round_trip() {
        for sampled in [None, Some(false), Some(true)] {
            let state = TraceState::from_key_value([("vendor", "Opaque")]).unwrap();
            let trace_id = TraceId::from_hex(LONG).unwrap();
            let span_id = SpanId::from_hex(SPAN).unwrap();
            let context = SpanContext::new(trace_id, span_id, flags(sampled), false, state);
            let mut headers = HeaderMap::new();
            write(&context, &mut headers);
            assert_eq!(headers["x-b3-traceid"], LONG);
            assert_eq!(headers["x-b3-spanid"], SPAN);
            let bit = if sampled == Some(true) { "01" } else { "00" };
            assert_eq!(headers["traceparent"], format!("00-{LONG}-{SPAN}-{bit}"));
            assert_eq!(headers["tracestate"], "vendor=Opaque");
            assert!(headers["traceparent"].is_sensitive());
            let incoming = read(&headers);
            assert_eq!(
                (incoming.trace_id, incoming.span_id, incoming.sampled),
                (Some(trace_id), Some(span_id), sampled)
            );
            headers.retain_w3c();
            assert_eq!(read(&headers).state.get("vendor"), Some("Opaque"));
        }
    }

    trait RetainW3c {
        fn retain_w3c(&mut self);
    }

    impl RetainW3c for HeaderMap {
        fn retain_w3c(&mut self) {
            for name in ["x-b3-traceid", "x-b3-spanid", "x-b3-sampled"] {
                self.remove(name);
            }
        }
    }
}
