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
//! [`app`] puts the roles together, [`server`] is the accept loop under each of them, [`admin`] the
//! second listener beside them, [`config`] what can be set.

pub mod admin;
pub mod api;
pub mod app;
pub mod backoff;
pub mod build_info;
pub mod cli;
pub mod client;
pub mod config;
pub mod context;
pub mod gateway;
pub mod limit;
pub mod random;
pub mod registry;
pub mod server;
pub mod service;
pub mod store;
pub mod telemetry;
