//! A microservice system in one program: an HTTP gateway, three gRPC services, and a client of their registry.
//!
//! A request goes down this list, and discovery feeds it from the side:
//!
//! ```text
//! gateway  ->  client: deadline > fallback > retry > balance > breaker  ->  service  ->  store
//!                                             ^                               |
//!                                         discover  <-  registry  <-----------+ register
//! ```
//!
//! The layers, from top to bottom. Each imports only what is below it.
//!
//! - [`cli`] is the command line, and `main.rs` the program.
//! - [`app`] puts a process together: what it runs, how that starts, and in which order it drains.
//! - [`admin`] is the second listener of every process, for operators.
//! - [`gateway`] turns HTTP requests into calls; [`service`] answers calls. Both call services through [`client`].
//! - [`client`] makes a call: its policies, the choice of an instance, the connections.
//! - [`registry`] knows where instances are: in etcd, or inside the process.
//! - [`store`] keeps the records of a service.
//! - [`server`] accepts connections and serves HTTP over them, whatever the protocol above.
//! - [`tls`] is TLS with certificates that are replaced while the process runs.
//! - [`context`] is what a request carries from hop to hop: deadline, ids, trace.
//! - [`telemetry`] is what a process reports about itself: log, traces, metrics.
//! - [`api`] is the contract: messages, rpcs, errors, limits of input, headers.
//! - [`config`] is what can be set; [`build_info`], [`backoff`], [`coalesce`], [`credentials`], [`limit`],
//!   [`random`] and [`timeout`](mod@timeout) are small tools of all layers.
//!
//! Every layer registers its own metrics; [`app::metrics`] sums them up.

pub mod admin;
pub mod api;
pub mod app;
pub mod backoff;
pub mod build_info;
pub mod cli;
pub mod client;
pub mod coalesce;
pub mod config;
pub mod context;
pub mod credentials;
pub mod gateway;
pub mod limit;
pub mod random;
pub mod registry;
pub mod server;
pub mod service;
pub mod store;
pub mod telemetry;
pub mod timeout;
pub mod tls;
