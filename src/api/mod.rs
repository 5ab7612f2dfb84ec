//! The interface between the parts of the system: messages, rpcs, errors, header names, limits of input.

pub mod error;
pub mod headers;
pub mod proto;
pub mod received;
pub mod rpc;
pub mod subject;
pub mod validate;
