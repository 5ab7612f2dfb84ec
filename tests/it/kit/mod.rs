//! What every test stands on: guards for processes, an in-process app, an HTTP client, and waiting for
//! conditions. A guard ends its process when it is dropped; every wait has a deadline.

pub mod app;
pub mod etcd;
pub mod http;
pub mod peer;
pub mod process;

use std::fmt::Debug;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use tokio::time::Instant;

/// Longest wait for a condition that should hold soon.
pub const SOON: Duration = Duration::from_secs(20);

/// Waits until `probe` returns something, asking every 10 ms; panics after [`SOON`] with what was waited
/// for.
pub async fn wait_for<T, F: Future<Output = Option<T>>>(what: &str, mut probe: impl FnMut() -> F) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = probe().await {
            return found;
        }
        assert!(begun.elapsed() < SOON, "waited {SOON:?} in vain: {what}");
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

/// Returns an address that was free a moment ago. Where a listener can take port 0 itself, let it.
pub fn free_addr() -> SocketAddr {
    let socket = TcpListener::bind("127.0.0.1:0").expect("a free port");
    socket.local_addr().expect("its address")
}
