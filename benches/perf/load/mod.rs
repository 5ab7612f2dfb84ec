//! Load from a process of its own: open-loop at a fixed rate, or closed-loop with so many calls at the same time.
//!
//! The child prints `begin` after the warm-up, `end` after the measured time, then one line of JSON, [`Outcome`]. Its
//! parent reads the clocks of the processes at the first two.

mod callers;
mod driver;
mod timer;

use std::io::{BufRead as _, BufReader, Lines};
use std::net::SocketAddr;
use std::process::{Child, ChildStdout, ExitCode, Stdio};

use serde::{Deserialize, Serialize};

use super::process::{Clock, this};

/// What is asked, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// GET over HTTP/1.1.
    Http,
    /// GetFeeds over one connection of tonic's.
    Tonic,
    /// GetFeeds by our client with all of its layers.
    Client,
}

/// How much.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Amount {
    /// So many calls a second, at random times, whether or not earlier ones were answered.
    Rate(f64),
    /// So many calls at the same time.
    Calls(u32),
}

/// A load.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Load {
    pub kind: Kind,
    pub addr: SocketAddr,
    /// Of a request over HTTP.
    pub path: String,
    pub amount: Amount,
    /// Seconds before what is measured, and of what is measured.
    pub warm_up: f64,
    pub seconds: f64,
}

/// What came of it in the measured time. Latencies count from when a call was due, microseconds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Outcome {
    /// Calls that were due, good answers, and good answers of those calls in the end.
    pub offered: u64,
    pub answered: u64,
    pub failed: u64,
    pub mean: f64,
    pub p50: f64,
    pub p99: f64,
    /// How late calls were sent, the median and 99 of 100, microseconds.
    pub late_p50: f64,
    pub late_p99: f64,
    /// An error, if there was one.
    pub error: String,
}

/// What a load did, with the processor time of processes meanwhile.
#[derive(Clone, Debug)]
pub struct Measured {
    pub outcome: Outcome,
    pub seconds: f64,
    /// Of each process, and at last of the load, seconds.
    pub cpu: Vec<f64>,
}

/// Runs a load and meters `processes`.
pub fn measure(load: &Load, processes: &[u32]) -> Measured {
    let mut child = Guard(
        this()
            .args(["load", &serde_json::to_string(load).expect("JSON")])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this program"),
    );
    let mut lines = BufReader::new(child.0.stdout.take().expect("a pipe")).lines();
    expect(&mut lines, "begin");
    let begun = std::time::Instant::now();
    let all = [processes, &[child.0.id()]].concat();
    let clocks: Vec<_> = all.iter().map(|process| Clock::start(*process)).collect();
    expect(&mut lines, "end");
    let cpu = clocks.iter().map(Clock::seconds).collect();
    let seconds = begun.elapsed().as_secs_f64();
    let outcome = lines.next().and_then(Result::ok).and_then(|line| serde_json::from_str(&line).ok());
    Measured { outcome: outcome.expect("an outcome"), seconds, cpu }
}

fn expect(lines: &mut Lines<BufReader<ChildStdout>>, mark: &str) {
    let line = lines.next().and_then(Result::ok);
    assert_eq!(line.as_deref(), Some(mark), "the load has failed");
}

struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The child.
pub fn run(arguments: &[String]) -> ExitCode {
    let load: Load = serde_json::from_str(&arguments[0]).expect("a load");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let outcome = tokio::task::LocalSet::new().block_on(&runtime, async {
        let caller = callers::open(&load).await;
        driver::drive(&load, caller).await
    });
    println!("{}", serde_json::to_string(&outcome).expect("JSON"));
    ExitCode::SUCCESS
}
