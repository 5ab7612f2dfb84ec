//! The API: the answers over HTTP and gRPC, byte for byte where callers depend on it.

mod bad_requests;
mod grpc;
mod http;
pub mod walkthrough;
