//! What has arrived on a connection behind a request.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::Notify;

/// Longest wait for a connection on which more and more arrives.
const MAX_WAIT: Duration = Duration::from_millis(100);

/// Whether everything that has arrived on a connection was read.
#[derive(Debug, Default)]
pub struct Drained {
    drained: AtomicBool,
    changed: Notify,
}

impl Drained {
    /// Notes whether an attempt to read found nothing.
    pub fn note(&self, found_nothing: bool) {
        if self.drained.load(Relaxed) != found_nothing {
            self.drained.store(found_nothing, Relaxed);
            if found_nothing {
                self.changed.notify_waiters();
            }
        }
    }

    /// Waits until everything that has arrived was read, but not for ever.
    pub async fn wait(&self) {
        let wait = async {
            loop {
                let changed = self.changed.notified();
                if self.drained.load(Relaxed) {
                    return;
                }
                changed.await;
            }
        };
        let _ = tokio::time::timeout(MAX_WAIT, wait).await;
    }
}

/// Lets the connection of a request read what has arrived meanwhile. A request with an effect does this before it
/// begins: a caller that has given up may have said so right behind the request (a reset, the end of the connection),
/// and nobody has read it yet if the process was stopped or busy. On HTTP/2 the connection runs on a thread of its own,
/// so [`Drained::wait`] comes first: [`Peer::read_pending`](super::Peer::read_pending) does both.
///
/// *Cancellation*: this is where the future of a request is dropped whose caller has given up.
pub async fn read_pending() {
    // hyper looks for the caller's reset only after the handler was pending: the first time the connection reads, the
    // second time hyper has seen what was read
    for _ in 0..2 {
        tokio::task::yield_now().await;
    }
}
