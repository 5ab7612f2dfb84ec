//! Puts a process together: its members, how they start, and in which order they drain.

mod common;
pub mod copy;
mod drain;
mod gateway;
pub mod health;
mod instance;
pub mod metrics;
mod notify;
pub mod process;
pub mod role;
pub mod run;
mod service;
pub mod shutdown;
pub mod up;
