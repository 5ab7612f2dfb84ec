//! Stores against what they stand on: a real PostgreSQL, its failures, and what a store promises whatever it is.

mod contract;
mod postgres;
