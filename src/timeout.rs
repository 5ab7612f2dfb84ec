//! Time limits that are fair after a pause of the whole process.
//!
//! When a process is stopped for a while (a debugger, a suspended host, an overloaded hypervisor) and goes on, timers
//! that are over fire before what has arrived meanwhile is read from the sockets. Whoever judges by such a timer blames
//! a healthy peer. So after a timer that fires late, input gets a moment to be read.

use std::pin::pin;
use std::time::Duration;

use tokio::time::Instant;

/// A timer that fires this long after its time says that the process did not run.
const LATE: Duration = Duration::from_millis(20);
/// Time in which what has arrived meanwhile is read.
const GRACE: Duration = Duration::from_millis(30);

/// The time is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Elapsed;

/// Waits for a future until a moment; if the process did not run at that moment, a little longer.
///
/// *Cancellation*: the future is dropped, also when the time is over.
///
/// # Errors
/// [`Elapsed`] if the future has not ended by then.
pub async fn timeout_at<F: Future>(deadline: Instant, future: F) -> Result<F::Output, Elapsed> {
    let mut future = pin!(future);
    if let Ok(output) = tokio::time::timeout_at(deadline, future.as_mut()).await {
        return Ok(output);
    }
    if deadline.elapsed() < LATE {
        return Err(Elapsed);
    }
    tokio::time::timeout(GRACE, future).await.map_err(|_| Elapsed)
}

/// As [`timeout_at`], from now on.
///
/// # Errors
/// [`Elapsed`] if the future has not ended after `limit`.
pub fn timeout<F: Future>(limit: Duration, future: F) -> impl Future<Output = Result<F::Output, Elapsed>> {
    timeout_at(Instant::now() + limit, future)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_millis(50);

    #[tokio::test(start_paused = true)]
    async fn without_a_pause_the_limit_is_the_limit() {
        let begun = Instant::now();
        assert_eq!(timeout(LIMIT, std::future::pending::<()>()).await, Err(Elapsed));
        assert!(begun.elapsed() < LIMIT + LATE, "{:?}", begun.elapsed());
        assert_eq!(timeout(LIMIT, async { 7 }).await, Ok(7));
    }

    #[tokio::test]
    async fn after_a_pause_what_has_arrived_counts() {
        let (peer, mut socket) = tokio::net::UnixStream::pair().unwrap();
        let (said, heard) = tokio::sync::oneshot::channel();
        // the way of an answer: another task reads the socket and tells the one that waits
        tokio::spawn(async move {
            let mut byte = [0];
            tokio::io::AsyncReadExt::read_exact(&mut socket, &mut byte).await.unwrap();
            let _ = said.send(byte);
        });
        let waiting = tokio::spawn(timeout(LIMIT, heard));
        tokio::task::yield_now().await;
        // nothing of this thread runs while the answer arrives and the time passes
        peer.try_write(b"7").unwrap();
        std::thread::sleep(LIMIT + 2 * LATE);
        assert_eq!(waiting.await.unwrap(), Ok(Ok([b'7'])));
        // and what has not arrived still ends
        let waiting = tokio::spawn(timeout(LIMIT, std::future::pending::<()>()));
        tokio::task::yield_now().await;
        std::thread::sleep(LIMIT + 2 * LATE);
        assert_eq!(waiting.await.unwrap(), Err(Elapsed));
    }
}
