//! What a process reports about itself: log lines, traces, metrics, notable events.

pub mod events;
pub mod log;
pub mod metrics;
pub mod trace;
