//! A microservice system: three gRPC services, a gateway, a registry client, in one binary.
//!
//! A request goes down this list, and discovery feeds it from the side:
//!
//! ```text
//! http  ->  client: fallback > retry > balance > breaker  ->  service  ->  store
//!                                         ^                      |
//!                                     discover  <-  registry  <--+ register
//! ```
//!
//! [`process`] puts the roles together, [`server`] is the accept loop under each of them, [`admin`] the
//! second listener beside them, [`config`] what can be set.

pub mod admin;
pub mod backoff;
pub mod check;
pub mod cli;
pub mod client;
pub mod config;
pub mod context;
pub mod error;
pub mod http;
pub mod limit;
pub mod listener;
pub mod log;
pub mod metrics;
pub mod process;
pub mod proto;
pub mod registry;
pub mod rpc;
pub mod server;
pub mod service;
pub mod shutdown;
pub mod store;
pub mod targets;
pub mod trace;
mod unanswered;
pub mod up;
