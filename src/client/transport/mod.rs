//! One attempt at one instance: the connections to it, and the exchange on one of them.

pub mod connection;
pub mod exchange;
pub mod health;
pub mod outcome;
pub mod pool;
