//! x
pub mod backoff;
pub mod check;
pub mod cli;
pub mod client;
pub mod config;
pub mod context;
pub mod error;
pub mod http;
pub mod metrics;
pub mod proto;
pub mod registry;
pub mod rpc;
pub mod server;
pub mod service;
pub mod shutdown;
pub mod store;
pub mod telemetry;
