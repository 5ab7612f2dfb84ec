//! The names of the headers that travel between a caller, the gateway and the services.

use std::ops::RangeInclusive;

use http::{HeaderName, HeaderValue};

/// The id of a request, from the caller or else from the gateway.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The id of the trace of a request, 16 or 32 lower-case hex digits.
pub const TRACE_ID: HeaderName = HeaderName::from_static("x-b3-traceid");
/// How an answer is degraded: `stale` (an earlier answer, with its `age`) or `feeds_unavailable`.
pub const DEGRADED: HeaderName = HeaderName::from_static("x-degraded");
/// The service that a call is for, `<key prefix><service>`. The server of another service refuses the call.
pub const SERVICE: HeaderName = HeaderName::from_static("x-msa-service");
/// On the refusal of a call for another service: the service of this server.
pub const WRONG_SERVICE: HeaderName = HeaderName::from_static("x-msa-wrong-service");
/// The id of the instance that answered.
pub const INSTANCE: HeaderName = HeaderName::from_static("x-msa-instance");
/// The number of earlier attempts of a call (gRPC proposal A6).
pub const PREVIOUS_ATTEMPTS: HeaderName = HeaderName::from_static("grpc-previous-rpc-attempts");
/// The time limit of a gRPC call, in gRPC's format: `1500m` is 1.5 s.
pub const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
/// The time limit of a request to the gateway, ms.
pub const REQUEST_TIMEOUT: HeaderName = HeaderName::from_static("x-request-timeout-ms");
/// On a read between services: how long ago the caller last had a write of the same records acknowledged, ms. An answer
/// that was read before that is out of date.
pub const WRITTEN: HeaderName = HeaderName::from_static("x-msa-written-ms");
/// On a call between services: who asked the gateway, the `sub` of the bearer token, with `%xx` for `%`, blanks and what is
/// not visible ASCII. Set by the gateway alone: that of a caller over HTTP counts for nothing.
pub const SUBJECT: HeaderName = HeaderName::from_static("x-msa-subject");
/// On a call that is refused for overload: the time after which it may be repeated, ms; a negative number forbids
/// that (gRPC proposal A6).
pub const PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");
/// Range of [`PUSHBACK`] of a call that is refused for overload, ms: long enough for a few hundred calls to end, short
/// against a deadline, and wide enough that callers which were refused together do not return together.
pub const PUSHBACK_RANGE: RangeInclusive<u16> = 50..=150;

/// Returns the value of [`SERVICE`] for a service whose keys in the registry begin with `prefix`.
#[must_use]
pub fn service_identity(prefix: &str, service: &str) -> HeaderValue {
    // a prefix that no header can carry is the same as none, for callers and servers alike
    HeaderValue::from_str(&format!("{prefix}{service}")).unwrap_or(HeaderValue::from_static("?"))
}
