//! The API: the answers over HTTP and gRPC, byte for byte where callers depend on it.

mod admin;
mod admin_token;
mod auth;
mod bad_requests;
mod cors;
mod fronts;
mod grpc;
mod half_close;
mod http;
mod https;
mod openapi;
mod pages;
mod rfc9112;
pub mod walkthrough;
