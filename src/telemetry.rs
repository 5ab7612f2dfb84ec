//! What the trace settings do.

use crate::config::Trace;

/// Says what the trace settings do: for now nothing but carry ids.
pub fn note_tracing(settings: &Trace) {
    if let Some(addr) = &settings.zipkin_addr {
        tracing::warn!(zipkin_addr = addr, "spans are not exported yet, requests carry trace ids only");
    }
}
