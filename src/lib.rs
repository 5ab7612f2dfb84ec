//! x
pub mod check;
pub mod cli;
pub mod config;
pub mod context;
pub mod error;
pub mod proto;
pub mod rpc;
pub mod store;
