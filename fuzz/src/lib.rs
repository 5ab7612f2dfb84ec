//! The inputs that nobody meant: one function for each kind. It takes any bytes, makes an input of them, and panics if the
//! program does not treat it as it should. The fuzzers in `fuzz_targets` call these functions, and so do the tests in
//! `tests/it/inputs`, which include this file.
//!
//! Every function checks at least that nothing panics, that what is accepted is within its limits and survives a round trip,
//! and that a refusal says what is wrong.

// The tests have lints that the fuzzers do not need: here, a failed check is a panic.
#![allow(missing_docs, clippy::panic, clippy::expect_used, clippy::unwrap_used)]

mod app;
mod client;
mod edge;
mod headers;
mod postgres;
mod registry;
mod server;
mod settings;
mod tokens;

/// A kind of input: its name, which is that of its fuzzer and of its folder in `corpus`, and its function.
pub type Target = (&'static str, fn(&[u8]));

/// Every kind of input.
pub const TARGETS: [Target; 15] = [
    ("json_body", edge::json_body),
    ("query", edge::query),
    ("header_set", headers::header_set),
    ("grpc_timeout", headers::grpc_timeout),
    ("trace_headers", headers::trace_headers),
    ("registry_entry", registry::entry),
    ("registry_list", registry::list),
    ("view_on_disk", registry::view_on_disk),
    ("settings", settings::settings),
    ("http1_gateway", server::http1_gateway),
    ("http2_service", server::http2_service),
    ("service_answer", client::service_answer),
    ("postgres_rows", postgres::rows),
    ("bearer_token", tokens::bearer_token),
    ("key_set", tokens::key_set),
];

/// Feeds an input to the target of this name.
pub fn run(name: &str, data: &[u8]) {
    let target = TARGETS.iter().find(|(known, _)| *known == name);
    let (_, run) = target.unwrap_or_else(|| panic!("no target {name}"));
    run(data);
}
