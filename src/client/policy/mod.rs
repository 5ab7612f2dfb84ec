//! The layers that decide about a whole call: how long it may take, how often it is tried, and what stands in
//! for an answer that cannot be had.

pub mod best_effort;
pub mod budget;
pub mod cache;
pub mod deadline;
pub mod fallback;
pub mod hedge;
pub mod latency;
mod race;
pub mod retry;
pub mod retry_policy;
mod ticker;
