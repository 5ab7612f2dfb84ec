//! What a process reports about itself: log lines, traces, metrics.

pub mod log;
pub mod metrics;
pub mod trace;
