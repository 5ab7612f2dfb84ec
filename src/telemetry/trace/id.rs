//! Trace ids.

use std::fmt;

use http::HeaderValue;
use opentelemetry::trace::TraceId;

use crate::random;

/// The id of a trace: 32 lower-case hex digits, or 16 for an id of 64 bits, as Zipkin writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Id(pub(super) TraceId);

impl Id {
    /// Returns a new random id of 128 bits.
    pub(super) fn random() -> Self {
        Self(TraceId::from(u128::from(random::id()) << 64 | u128::from(random::id())))
    }
}

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
