//! Records in a SQLite file: WAL, `synchronous=FULL`, one thread that writes and one that reads.
//!
//! Writes are group-committed: the writer takes what has queued during the last commit as one
//! transaction, so 64 callers cost one sync to disk and not 64. No timer is needed. Several processes of
//! one host may share the file.

pub mod bulk;
mod file;
mod handle;
mod open;
mod records;
mod schema;
mod writer;

pub use handle::Sqlite;
pub use schema::{FEED, PROFILE, Schema, TOPIC};

#[cfg(test)]
mod record_tests;
#[cfg(test)]
mod tests;
