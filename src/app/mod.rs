//! Puts a process together: its roles, how they start, and in which order they drain.

pub mod metrics;
pub mod process;
pub mod shutdown;
pub mod up;
