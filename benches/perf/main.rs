//! Our chain side by side with what else answers the same request, in processes of their own, and how its cost grows.
//! `tests/perf` builds and runs it.
//!
//! One measurement of a side is closed-loop load by `wrk` (its peak), then open-loop load at a fixed rate, at which
//! processor time a request is compared. The sides take turns in every round. [`goals`] are what must come out.
//!
//! This program is also every small process that a measurement needs: the servers of [`servers`], and the open-loop
//! load of [`load`]. Why its own: what is kept well elsewhere paces by timers of a millisecond (docs/performance.md).

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a measurement fails by panicking, and prints what it finds"
)]

mod envoy;
mod goals;
mod grow;
mod headline;
mod http;
#[expect(dead_code, unused_imports, reason = "the tests use the rest, and theirs do not run here")]
mod kit;
mod load;
mod options;
mod plot;
mod process;
mod report;
mod servers;
mod sides;
mod stack;
mod wrk;

use std::process::ExitCode;

/// The program's allocator is mimalloc, so the small servers have it too.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    match arguments.first().map(String::as_str) {
        None => ExitCode::SUCCESS, // as `cargo bench` calls it
        Some("serve") => servers::run(&arguments[1..]),
        Some("load") => load::run(&arguments[1..]),
        Some("rows") => grow::rows::child(&arguments[1..]),
        Some("idle") => grow::idle::child(&arguments[1..]),
        Some("grow") => grow::run(&arguments[1..]),
        Some(_) => match options::Options::parse(&arguments) {
            Ok(options) => headline::run(&options),
            Err(wrong) => {
                eprintln!("tests/perf: {wrong}\n{}", options::USAGE);
                ExitCode::from(2)
            }
        },
    }
}
