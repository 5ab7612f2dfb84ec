//! Records in a database of PostgreSQL, which the instances of a service on several hosts share.
//!
//! Each store has two connections: one for reads, which are pipelined, and one for writes, which are group-committed:
//! what has queued during one commit goes into the next. A connection is always to the host that can be written to, so
//! that a read sees what was written. When a connection is lost, its [`keeper`] looks for that host again.
//!
//! The way of a call: [`handle`] takes it; a write goes by [`writer`] and [`batch`], a read straight to the connection,
//! a [`link`] that [`dial`] has opened. [`schema`] brings the tables up to date at each connection.

mod batch;
pub mod bulk;
mod clock;
mod commit;
mod credentials;
mod dial;
#[cfg(test)]
mod distribution;
mod failure;
mod handle;
mod keeper;
mod link;
mod records;
// public for the fuzz targets
#[doc(hidden)]
pub mod rows;
mod schema;
mod service;
mod session;
mod sql;
mod state;
mod timeline;
mod writer;

pub use handle::Postgres;
pub use service::{FEED, PROFILE, Service, TOPIC};
