//! The integration tests: our program in process and as processes, against the real etcd and curl.

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::similar_names,
    clippy::unwrap_used,
    reason = "a test fails by panicking, and its helpers are read here only"
)]

mod api;
mod callpath;
mod containers;
mod docs;
mod faults;
mod inputs;
mod interop;
mod kit;
mod limits;
mod operations;
mod perf;
mod registry;
mod store;
mod structure;
mod trust;
