//! The server under every listener: HTTP, gRPC and admin.
//!
//! warp's and tonic's own servers lack what an edge needs: a time limit on request heads and on peers that
//! stop reading, a bound on connections and on unsent bytes, protection from floods of frames, and a drain
//! that ends. [`serve`] has them. Each connection is one task, on one of the [`threads`]; their number is
//! bounded. A drain lets each connection finish its requests until the grace period is over.
//!
//! [`strict`] refuses what is not HTTP/1, [`admission`] decides which requests are accepted, and [`lifecycle`] surrounds
//! each accepted one. The gateway and the services use them; what a request means is theirs.

pub mod accept;
pub mod admission;
mod clock;
mod conn;
mod connection;
mod conns;
pub mod entity;
mod flood;
mod half_close;
pub mod input;
pub mod lifecycle;
pub mod listener;
pub mod metrics;
mod output;
pub mod pause;
mod protocol;
mod rate;
pub mod strict;
pub mod threads;
pub mod totals;
mod unsent;

pub use accept::{serve, serve_on};
pub use conn::Peer;
pub use connection::Stop;
pub use conns::{Limits, MAX_UNSENT};
pub use half_close::{Input, RequestBody};
pub use protocol::{MAX_HEADERS, Protocol, TooManyFields};
pub use unsent::UnsentLimit;

/// Returns the size of the future of a handler, bytes.
#[cfg(test)]
pub fn measure_future<A, B, C, F: Future>(_handler: impl Fn(A, B, C) -> F) -> usize {
    size_of::<F>()
}
