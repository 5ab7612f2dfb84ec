//! What every test stands on: guards for processes, an in-process app, an HTTP client, and waiting for
//! conditions. A guard ends its process when it is dropped; every wait has a deadline.

pub mod ab;
pub mod alertmanager;
pub mod app;
pub mod authority;
pub mod browser;
pub mod cluster;
pub mod collector;
pub mod cpu;
pub mod disk;
pub mod etcd;
pub mod exporter;
pub mod fake;
pub mod frames;
pub mod grpc;
pub mod guarantees;
pub mod http;
pub mod lane;
pub mod ledger;
pub mod load;
pub mod mesh;
pub mod metrics;
pub mod parts;
pub mod patroni;
pub mod peer;
pub mod podman;
pub mod postgres;
pub mod process;
pub mod prometheus;
pub mod relay;
pub mod secure;
pub mod stderr;
pub mod system;
pub mod token;
pub mod writers;
pub mod yaml;
pub mod zipkin;

use std::fmt::Debug;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

/// Longest wait for a condition that should hold soon.
pub const SOON: Duration = Duration::from_secs(20);

/// Waits until `probe` returns something, asking every 10 ms; panics after [`SOON`] with what was waited
/// for.
pub async fn wait_for<T, F: Future<Output = Option<T>>>(what: &str, probe: impl FnMut() -> F) -> T {
    wait_at_most(SOON, what, probe).await
}

/// As [`wait_for`], for the start of a program that may take a minute on a busy machine.
pub async fn wait_long_for<T, F: Future<Output = Option<T>>>(what: &str, probe: impl FnMut() -> F) -> T {
    wait_at_most(Duration::from_mins(2), what, probe).await
}

async fn wait_at_most<T, F: Future<Output = Option<T>>>(
    limit: Duration,
    what: &str,
    mut probe: impl FnMut() -> F,
) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = probe().await {
            return found;
        }
        assert!(begun.elapsed() < limit, "waited {limit:?} in vain: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Runs a measurement that other processes can spoil up to three times; passes if one run does.
pub async fn measured<F: Future<Output = Result<T, E>>, T, E: Debug>(
    what: &str,
    mut run: impl FnMut() -> F,
) -> T {
    let mut tries = Vec::new();
    for _ in 0..3 {
        match run().await {
            Ok(value) => return value,
            Err(error) => tries.push(error),
        }
    }
    panic!("{what}: {tries:?}");
}

/// Returns an address that is free, for a program that cannot take port 0 itself. Each call has a port of
/// its own, below those that the kernel gives out by itself, so that nobody takes it before it is used.
pub fn free_addr() -> SocketAddr {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let step = std::process::id().wrapping_mul(7919).wrapping_add(NEXT.fetch_add(1, Relaxed));
        let port = u16::try_from(10_000 + step % 20_000).expect("below 30000");
        if let Ok(socket) = TcpListener::bind(("127.0.0.1", port)) {
            return socket.local_addr().expect("its address");
        }
    }
}

/// Returns a quantile, 0 to 1, of times; sorts them. Panics if there are none: of nothing, every bound holds.
pub fn quantile(times: &mut [Duration], quantile: f64) -> Duration {
    assert!(!times.is_empty(), "no times to take a quantile of");
    times.sort_unstable();
    times[((times.len() - 1) as f64 * quantile).ceil() as usize]
}

/// Says that a check is skipped, and why. What is said here is shown among the last lines of `make test`: cargo
/// hides what a passing test prints, so it goes to the file that the variable `SKIPPED` names as well.
pub fn skip(check: &str, why: &str) {
    use std::io::Write as _;
    eprintln!("skipped: {check}: {why}");
    if let Some(path) = std::env::var_os("SKIPPED") {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(&path);
        // one write, so that lines of two tests do not mix
        let written = file.and_then(|mut file| file.write_all(format!("{check}: {why}\n").as_bytes()));
        written.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}

/// Returns a member of a JSON object; panics if it is not there. Indexing reads a member that is gone as null.
pub fn member<'a>(object: &'a Value, name: &str) -> &'a Value {
    object.get(name).unwrap_or_else(|| panic!("no {name} in {object:#}"))
}
