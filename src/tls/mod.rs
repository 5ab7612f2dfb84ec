//! TLS with certificates that are replaced while the process runs.
//!
//! [`files`] reads a certificate, its key and the authorities, [`reload`] does so again when the files change. [`mutual`]
//! makes of them both sides of the connections between the parts of the system, where `verify` checks who the peer is by
//! what [`leaf`] and `names` know. [`accept`] is the handshake of a server, and [`validity`] ends connections that have
//! outlived a certificate. [`edge`] is for callers of the gateway, who show no certificate, and [`unverified`] for the question
//! whether a gateway is still there.

pub mod accept;
pub mod edge;
pub mod files;
pub mod leaf;
pub mod metrics;
pub mod mutual;
mod names;
mod outcome;
pub mod reload;
pub mod stream;
pub mod unverified;
pub mod validity;
mod verify;

pub use accept::Acceptor;
pub use mutual::Mutual;
pub use stream::Stream;
pub use validity::Validity;
