//! The headers that travel with a request.

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use microservice_app::api::headers::{GRPC_TIMEOUT, REQUEST_ID};
use microservice_app::config::{Role, Settings};
use microservice_app::context::{self, Context, MAX_DEADLINE};
use microservice_app::server::UnsentLimit;
use microservice_app::server::admission::Admission;
use microservice_app::server::metrics::Metrics;
use microservice_app::telemetry::trace::{Tracer, headers};
use opentelemetry::trace::{SpanContext, SpanId, TraceId};
use tokio::time::Instant;

/// Returns the headers of some lines `name: value`. Lines that no HTTP server would pass on are left out.
fn map_of(data: &[u8]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for line in data.split(|byte| *byte == b'\n').take(64) {
        let colon = line.iter().position(|byte| *byte == b':').unwrap_or(line.len());
        let (name, value) = (&line[..colon], line.get(colon + 1..).unwrap_or_default());
        if let (Ok(name), Ok(value)) =
            (HeaderName::from_bytes(name), HeaderValue::from_bytes(value.trim_ascii()))
        {
            headers.append(name, value);
        }
    }
    headers
}

/// The headers of a request: what travels on is well formed, and says the same at the next hop.
pub fn header_set(data: &[u8]) {
    let headers = map_of(data);
    check_rate(&headers);
    let tracer = Tracer::off();
    let due = Instant::now() + Duration::from_secs(1);
    for context in [Context::from_headers(&headers, due, &tracer), Context::from_grpc(&headers, due, &tracer)]
    {
        let id = context.request_id.as_bytes();
        assert!((1..=128).contains(&id.len()) && id.iter().all(u8::is_ascii_graphic), "{id:?}");
        assert!(context.written.is_none_or(|written| written <= Instant::now()));
        let mut sent = HeaderMap::new();
        context.write(&mut sent);
        assert!(context::grpc_timeout(&sent).is_some_and(|left| left <= Duration::from_secs(1)), "{sent:?}");
        let next = Context::from_grpc(&sent, due, &tracer);
        assert_eq!(next.request_id, context.request_id);
        assert_eq!(next.previous_attempts, context.previous_attempts);
        assert_eq!(next.written.is_some(), context.written.is_some());
    }
    let given = headers
        .get(REQUEST_ID)
        .filter(|id| (1..=128).contains(&id.len()) && id.as_bytes().iter().all(u8::is_ascii_graphic));
    if let Some(given) = given {
        assert_eq!(Context::from_headers(&headers, due, &tracer).request_id, given);
    }
}

/// Counts a request against a limit, once for a proxy that is trusted and once for a caller that is not.
fn check_rate(headers: &HeaderMap) {
    static ADMISSION: OnceLock<Arc<Admission>> = OnceLock::new();
    let admission = ADMISSION.get_or_init(|| {
        let metrics = Metrics::register(&prometheus::Registry::new()).expect("metrics");
        let mut settings = Settings::for_role(Role::Apigateway);
        (settings.http.rate_limit, settings.http.rate_burst) = (1_000_000, 1_000_000);
        settings.http.trusted_proxies = vec!["10.0.0.0/8".parse().expect("a network")];
        Admission::http("apigateway", &settings.http, UnsentLimit::new(1 << 20), &metrics)
    });
    for peer in [IpAddr::from([10, 0, 0, 1]), IpAddr::from([192, 0, 2, 1])] {
        let _ = admission.check_rate(peer, headers);
    }
}

/// The time limit of a gRPC call: gRPC's grammar and nothing else, and no hop gets more time than its caller has.
pub fn grpc_timeout(data: &[u8]) {
    let Ok(value) = HeaderValue::from_bytes(data) else { return };
    let headers = HeaderMap::from_iter([(GRPC_TIMEOUT, value)]);
    let read = context::grpc_timeout(&headers);
    assert_eq!(read, meant(data), "{data:?}");
    let Some(limit) = read else { return };
    let context = Context::new(Instant::now() + limit.min(MAX_DEADLINE)).with_limit(limit, MAX_DEADLINE);
    let mut sent = HeaderMap::new();
    context.write(&mut sent);
    assert!(context::grpc_timeout(&sent).is_some_and(|left| left <= limit), "{sent:?}");
}

/// `TimeoutValue TimeoutUnit` of gRPC's description: at most eight digits, and one of six letters.
fn meant(data: &[u8]) -> Option<Duration> {
    let (unit, digits) = data.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let amount = digits.iter().fold(0_u64, |sum, digit| sum * 10 + u64::from(digit - b'0'));
    let nanos: u64 = match unit {
        b'n' => 1,
        b'u' => 1000,
        b'm' => 1_000_000,
        b'S' => 1_000_000_000,
        b'M' => 60_000_000_000,
        b'H' => 3_600_000_000_000,
        _ => return None,
    };
    let nanos = u128::from(amount) * u128::from(nanos);
    Some(Duration::new((nanos / 1_000_000_000) as u64, (nanos % 1_000_000_000) as u32))
}

/// The headers of a trace, in B3's forms and W3C's: what is read is passed on as it was.
pub fn trace_headers(data: &[u8]) {
    let read = headers::read(&map_of(data));
    assert_ne!(read.trace_id, Some(TraceId::INVALID));
    assert_ne!(read.span_id, Some(SpanId::INVALID));
    assert!(read.span_id.is_none() || read.trace_id.is_some());
    assert!(read.state.header().len() <= 512);
    let (Some(trace_id), Some(span_id)) = (read.trace_id, read.span_id) else { return };
    let context = SpanContext::new(trace_id, span_id, headers::flags(read.sampled), true, read.state.clone());
    let mut sent = HeaderMap::new();
    headers::write(&context, &mut sent);
    let next = headers::read(&sent);
    assert_eq!((next.trace_id, next.span_id), (read.trace_id, read.span_id), "{sent:?}");
    assert_eq!(next.sampled, read.sampled, "{sent:?}");
    assert!(sent.values().all(|value| value.len() <= 512), "{sent:?}");
}
