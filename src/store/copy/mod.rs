//! Moves records from one store to another: which services a store has, its two ends, and the copy itself.

mod ends;
mod engine;

pub use ends::{From, To};
pub use engine::{Copy, CopyError, Progress, Summary};
