//! What the parts of the system say to each other: messages, rpcs, failures, limits of input.

pub mod error;
pub mod headers;
pub mod proto;
pub mod rpc;
pub mod validate;
