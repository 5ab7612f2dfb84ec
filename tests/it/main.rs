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

mod alerts;
mod bad_requests;
mod callpath;
mod dashboards;
mod discovery;
mod docs;
mod durability;
mod edge;
mod edge_grpc;
mod etcd_access;
mod faults;
mod gateway;
mod grpc;
mod kit;
mod lifecycle;
mod logs;
mod metrics;
mod numbers;
mod parts;
mod pprof;
mod registry_edge;
mod resilience;
mod settings;
mod stack;
mod targets;
mod traces;
mod walkthrough;
