//! The second listener of every process, for operators. Its paths are in `routes.rs`.
//!
//! It takes no part in requests of users. What changes the process or slows it down is for callers on this host only,
//! whatever address the listener is bound to, and not for web pages that a browser there shows.

pub mod health;
mod history;
mod loglevel;
pub mod metrics;
mod observe;
mod origin;
pub mod overview;
mod page;
mod peer;
mod pprof;
#[cfg(feature = "cpu-profile")]
pub mod profile;
#[cfg(feature = "cpu-profile")]
mod profiler;
mod readyz;
mod reply;
mod routes;
mod state;
pub mod status;
pub mod system;
mod targets;
mod token;

pub use history::{Calls, History, Route, Traffic};
pub use observe::observe;
pub use routes::Handler;
pub use state::{Links, Phase, Role, State};
pub use token::Token;
