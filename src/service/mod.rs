//! The three gRPC services. [`Service`] is one of them over its store, [`Handler`] answers the calls of its
//! listener.
//!
//! Connections, overload and what is recorded of a call are in [`crate::server`].

mod failure;
mod feed;
mod form;
mod handler;
mod health;
mod kind;
mod profile;
mod receive;
mod reflection;
mod topic;

pub use handler::Handler;
pub use kind::Service;
