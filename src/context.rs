//! What travels with a request through every hop: its deadline and its ids.
//!
//! Over HTTP: `x-request-timeout-ms`, `x-request-id`. Over gRPC: `grpc-timeout`, `x-request-id`,
//! `grpc-previous-rpc-attempts`, `x-msa-written-ms`, `x-msa-subject`. Over both: the headers of its trace, see [`crate::telemetry::trace`].

use std::time::Duration;

use http::{Extensions, HeaderMap, HeaderValue};
use tokio::time::Instant;

use crate::api::headers::{GRPC_TIMEOUT, PREVIOUS_ATTEMPTS, REQUEST_ID, SUBJECT, WRITTEN};
use crate::telemetry::trace::{Id, Trace, Tracer};

/// Longest request id that is accepted from a caller, bytes.
const MAX_REQUEST_ID: usize = 128;
/// Longest time limit that a caller can set, ms.
pub const MAX_DEADLINE_MS: u64 = 600_000;
/// Longest time limit that a caller can set.
pub const MAX_DEADLINE: Duration = Duration::from_millis(MAX_DEADLINE_MS);

/// The context of one request.
#[derive(Clone, Debug)]
pub struct Context {
    /// When the answer is due. Each hop passes on the time that is left.
    pub deadline: Instant,
    /// True if its caller gave it clearly less time than requests have by default. What times out then says nothing
    /// of those who were called.
    pub shortened: bool,
    /// 1 to 128 visible ASCII characters.
    pub request_id: HeaderValue,
    /// The trace of the request, as this process passes it on.
    pub trace: Trace,
    /// Earlier attempts of this call or of one that led to it. If there are any, the calls that follow are not
    /// repeated: three attempts at each of three hops would make 27.
    pub previous_attempts: u32,
    /// When a caller of this read last had a write of the same records acknowledged, if it knows of one. Earlier
    /// answers are out of date.
    pub written: Option<Instant>,
    /// Who asked the gateway, in the form of [`SUBJECT`], if it knows. Not for logs.
    pub subject: Option<HeaderValue>,
}

impl Context {
    /// Returns a context with fresh ids.
    #[must_use]
    pub fn new(deadline: Instant) -> Self {
        Self {
            deadline,
            shortened: false,
            request_id: fresh(),
            trace: Trace::default(),
            previous_attempts: 0,
            written: None,
            subject: None,
        }
    }

    /// Returns the context from a caller's headers. Ids that are missing or malformed are replaced by new ones.
    #[must_use]
    pub fn from_headers(headers: &HeaderMap, deadline: Instant, tracer: &Tracer) -> Self {
        let given = headers.get(REQUEST_ID).filter(|id| is_request_id(id));
        Self {
            deadline,
            shortened: false,
            request_id: given.cloned().unwrap_or_else(fresh),
            trace: tracer.join(headers),
            previous_attempts: 0,
            written: None,
            subject: None,
        }
    }

    /// Returns the context of a gRPC call: as [`Self::from_headers`], with the number of earlier attempts and the
    /// time of the last write, which are trusted only from callers inside the system.
    #[must_use]
    pub fn from_grpc(headers: &HeaderMap, deadline: Instant, tracer: &Tracer) -> Self {
        let number = |name| {
            let text = headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
            // `parse` alone takes a sign
            text.filter(|text| text.bytes().all(|b| b.is_ascii_digit()))?.parse::<u64>().ok()
        };
        let attempts = number(PREVIOUS_ATTEMPTS).and_then(|attempts| u32::try_from(attempts).ok());
        let written = number(WRITTEN).map(Duration::from_millis);
        Self {
            previous_attempts: attempts.unwrap_or(0),
            written: written.and_then(|ago| Instant::now().checked_sub(ago)),
            ..Self::from_headers(headers, deadline, tracer)
        }
    }

    /// Returns the same context with who asked the gateway, as its caller says; for a caller that has shown who it is.
    #[must_use]
    pub fn with_subject(self, headers: &HeaderMap) -> Self {
        let mut given = headers.get_all(SUBJECT).iter();
        let (Some(subject), None) = (given.next(), given.next()) else { return self };
        let mut subject = subject.clone();
        subject.set_sensitive(true);
        Self { subject: Some(subject), ..self }
    }

    /// Returns the context that the server put into the extensions of a request; a new one if there is none.
    #[must_use]
    pub fn of(extensions: &Extensions) -> Self {
        let given = extensions.get::<Self>();
        given.cloned().unwrap_or_else(|| Self::new(Instant::now() + MAX_DEADLINE))
    }

    /// Returns the same context of a request that was given the time `limit`, where `default` is usual.
    #[must_use]
    pub fn with_limit(self, limit: Duration, default: Duration) -> Self {
        // a hop takes a little
        Self { shortened: limit * 10 < default * 9, ..self }
    }

    /// Returns the time that is left; zero once the deadline has passed.
    #[must_use]
    pub fn remaining(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// Returns the ids of the request and of its trace, for log lines.
    #[must_use]
    pub fn ids(&self) -> (&str, Id) {
        // a request id is ASCII
        (self.request_id.to_str().unwrap_or_default(), self.trace.id())
    }

    /// Writes this context into the headers of a gRPC request, except the trace: each attempt writes its own span.
    pub fn write(&self, headers: &mut HeaderMap) {
        // "sensitive" keeps these values, which never repeat, out of HPACK's tables at both ends, where they would
        // push out others
        let mut once = |name, mut value: HeaderValue| {
            value.set_sensitive(true);
            headers.insert(name, value);
        };
        once(GRPC_TIMEOUT, format_timeout(self.remaining()));
        once(REQUEST_ID, self.request_id.clone());
        if let Some(subject) = &self.subject {
            once(SUBJECT, subject.clone());
        }
        if self.previous_attempts > 0 {
            headers.insert(PREVIOUS_ATTEMPTS, HeaderValue::from(self.previous_attempts));
        }
        if let Some(written) = self.written {
            let ago = u64::try_from(written.elapsed().as_millis()).unwrap_or(u64::MAX);
            let mut value = HeaderValue::from(ago);
            value.set_sensitive(true);
            headers.insert(WRITTEN, value);
        }
    }

    /// Returns the same context with an earlier deadline.
    #[must_use]
    pub fn with_deadline(&self, deadline: Instant) -> Self {
        Self { deadline: deadline.min(self.deadline), ..self.clone() }
    }
}

/// Returns the time limit of a gRPC request, if it has a valid one.
#[must_use]
pub fn grpc_timeout(headers: &HeaderMap) -> Option<Duration> {
    let mut given = headers.get_all(GRPC_TIMEOUT).iter();
    let (Some(value), None) = (given.next(), given.next()) else { return None };
    let text = value.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let amount: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(amount * 3600)),
        "M" => Some(Duration::from_secs(amount * 60)),
        "S" => Some(Duration::from_secs(amount)),
        "m" => Some(Duration::from_millis(amount)),
        "u" => Some(Duration::from_micros(amount)),
        "n" => Some(Duration::from_nanos(amount)),
        _ => None,
    }
}

/// Formats a time limit for gRPC: at most eight digits and a unit, rounded down so that a hop never gets more time
/// than its caller has.
fn format_timeout(left: Duration) -> HeaderValue {
    let text = match left.as_micros() {
        us if us < 100_000_000 => format!("{us}u"),
        us => format!("{}m", (us / 1000).min(99_999_999)),
    };
    HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static("0u"))
}

fn is_request_id(value: &HeaderValue) -> bool {
    let bytes = value.as_bytes();
    (1..=MAX_REQUEST_ID).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic)
}

/// Returns a new request id.
fn fresh() -> HeaderValue {
    let text = format!("{:016x}", crate::random::id());
    HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static("0000000000000001"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from_headers(headers: &HeaderMap) -> Context {
        Context::from_headers(headers, Instant::now(), &Tracer::off())
    }

    fn from_grpc(headers: &HeaderMap) -> Context {
        Context::from_grpc(headers, Instant::now(), &Tracer::off())
    }

    #[test]
    fn a_timeout_survives_the_wire_and_never_grows() {
        for left in [0, 1, 999, 1_000_000, 99_999_999, 100_000_001, 10_u64.pow(12)] {
            let left = Duration::from_micros(left);
            let mut headers = HeaderMap::new();
            headers.insert(GRPC_TIMEOUT, format_timeout(left));
            let read = grpc_timeout(&headers).unwrap();
            assert!(read <= left, "{left:?} became {read:?}");
        }
        for wrong in ["", "5", "m", "-1m", "123456789m", "5x", "1.5S", "+5m"] {
            let mut headers = HeaderMap::new();
            headers.insert(GRPC_TIMEOUT, HeaderValue::from_str(wrong).unwrap());
            assert_eq!(grpc_timeout(&headers), None, "{wrong:?}");
        }
    }

    #[test]
    fn earlier_attempts_are_passed_on_and_trusted_over_grpc_only() {
        let mut headers = HeaderMap::new();
        let mut context = Context::new(Instant::now());
        context.write(&mut headers);
        assert!(headers.get(PREVIOUS_ATTEMPTS).is_none());
        context.previous_attempts = 2;
        context.write(&mut headers);
        assert_eq!(headers[PREVIOUS_ATTEMPTS], "2");
        assert_eq!(from_grpc(&headers).previous_attempts, 2);
        assert_eq!(from_headers(&headers).previous_attempts, 0);
        headers.insert(PREVIOUS_ATTEMPTS, HeaderValue::from_static("-1"));
        assert_eq!(from_grpc(&headers).previous_attempts, 0);
    }

    #[test]
    fn who_asked_is_passed_on_and_trusted_from_known_callers_only() {
        let mut headers = HeaderMap::new();
        let mut context = Context::new(Instant::now());
        context.write(&mut headers);
        assert!(headers.get(SUBJECT).is_none());
        context.subject = Some(HeaderValue::from_static("123"));
        context.write(&mut headers);
        assert!(headers[SUBJECT].is_sensitive());
        let received = from_grpc(&headers);
        assert_eq!(received.subject, None);
        let received = received.with_subject(&headers);
        assert_eq!(received.subject, context.subject);
        // what profile passes on
        assert_eq!(received.with_deadline(Instant::now()).subject, context.subject);
        headers.append(SUBJECT, HeaderValue::from_static("124"));
        assert_eq!(from_grpc(&headers).with_subject(&headers).subject, None);
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_of_the_last_write_is_passed_on_and_trusted_over_grpc_only() {
        tokio::time::advance(Duration::from_mins(1)).await;
        let mut headers = HeaderMap::new();
        let mut context = Context::new(Instant::now());
        context.write(&mut headers);
        assert!(headers.get(WRITTEN).is_none());
        context.written = Some(Instant::now());
        tokio::time::advance(Duration::from_millis(1500)).await;
        context.write(&mut headers);
        assert_eq!(headers[WRITTEN], "1500");
        assert_eq!(from_grpc(&headers).written, context.written);
        assert_eq!(from_headers(&headers).written, None);
        for wrong in ["-1", "+1", "x", "99999999999999999999"] {
            headers.insert(WRITTEN, HeaderValue::from_static(wrong));
            assert_eq!(from_grpc(&headers).written, None, "{wrong}");
        }
    }

    #[test]
    fn a_limit_well_below_the_default_is_a_shortened_one() {
        let shortened = |ms| {
            let (limit, default) = (Duration::from_millis(ms), Duration::from_secs(2));
            let context = Context::new(Instant::now() + limit).with_limit(limit, default);
            context.with_deadline(Instant::now()).shortened
        };
        assert!(shortened(1) && shortened(1799));
        assert!(!shortened(1800) && !shortened(2000) && !shortened(9000));
    }

    #[test]
    fn a_malformed_request_id_is_replaced() {
        let mut headers = HeaderMap::new();
        headers.insert(REQUEST_ID, HeaderValue::from_static("abc-1"));
        assert_eq!(from_headers(&headers).request_id, "abc-1");
        for wrong in ["", "a b", &"x".repeat(129)] {
            headers.insert(REQUEST_ID, HeaderValue::from_str(wrong).unwrap());
            assert_eq!(from_headers(&headers).request_id.len(), 16);
        }
    }
}
