//! The generated messages and services, one module a package, and the one table of rpcs.

#![allow(missing_docs, clippy::all, clippy::pedantic)]

/// Package `feed`.
pub mod feed {
    tonic::include_proto!("feed");
}
/// Package `profile`.
pub mod profile {
    tonic::include_proto!("profile");
}
/// Package `topic`.
pub mod topic {
    tonic::include_proto!("topic");
}

/// The encoded descriptors of the three packages, for reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
