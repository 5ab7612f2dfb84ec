//! The names of the headers that travel between a caller, the gateway and the services.

use http::{HeaderName, HeaderValue};

/// Id of a request, chosen by the caller or else by the gateway.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Id of the trace that a request belongs to, 16 or 32 lower-case hex digits.
pub const TRACE_ID: HeaderName = HeaderName::from_static("x-b3-traceid");
/// How an answer is degraded: `stale` (an earlier one, with its `age`) or `feeds_unavailable`.
pub const DEGRADED: HeaderName = HeaderName::from_static("x-degraded");
/// Which service a call is meant for, `<key prefix><service>`; a server that is another one refuses it.
pub const SERVICE: HeaderName = HeaderName::from_static("x-msa-service");
/// Set on the refusal of a call that was meant for another service: who this server is.
pub const WRONG_SERVICE: HeaderName = HeaderName::from_static("x-msa-wrong-service");
/// Id of the instance that answered.
pub const INSTANCE: HeaderName = HeaderName::from_static("x-msa-instance");
/// How often a call was tried before (gRPC proposal A6).
pub const PREVIOUS_ATTEMPTS: HeaderName = HeaderName::from_static("grpc-previous-rpc-attempts");
/// Time that a gRPC call may take, in gRPC's own format: `1500m`.
pub const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
/// Time that a caller of the gateway gives its request, ms.
pub const REQUEST_TIMEOUT: HeaderName = HeaderName::from_static("x-request-timeout-ms");
/// Set on a call that is refused for overload: ms after which another attempt makes sense; a negative number
/// asks for none (gRPC proposal A6).
pub const PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");

/// Returns the value of [`SERVICE`] for a service whose keys in the registry begin with `prefix`.
#[must_use]
pub fn service_identity(prefix: &str, service: &str) -> HeaderValue {
    // a prefix that no header can carry is the same as none, for callers and servers alike
    HeaderValue::from_str(&format!("{prefix}{service}")).unwrap_or(HeaderValue::from_static("?"))
}
