//! One open connection: whether it is idle, what it holds, and how it is told to end.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use tokio::sync::Notify;

use super::half_close::Input;
use super::input::{self, Drained};
use super::output::Output;
use crate::config::Identity;

/// The state of one connection.
#[derive(Debug)]
pub struct Conn {
    /// Requests that are being answered.
    pub active: AtomicUsize,
    /// When the last request ended, ms on the server's clock.
    pub idle_since: AtomicU64,
    /// 1 more than when it was asked to close, ms on the server's clock; 0 before.
    closing: AtomicU64,
    /// Asks it to close.
    pub close: Notify,
    /// What it receives.
    pub input: Arc<Input>,
    /// Whether what it has received was read.
    pub drained: Arc<Drained>,
    /// What it has yet to send.
    pub output: Arc<Output>,
    /// The progress of the output at the last check, and the number of checks since then without progress. Checks
    /// and not time, because a pause of this process must not count against its peers.
    pub seen: AtomicU64,
    pub seen_again: AtomicU64,
    /// Ends it at once.
    pub cut: Notify,
    /// Bytes of the bodies that it sends.
    bodies: AtomicUsize,
    /// Who the peer is by its certificate, which was verified; unset where it has shown none.
    pub caller: OnceLock<Identity>,
}

impl Conn {
    /// Returns a connection that was opened at `now`, ms on the server's clock.
    pub fn new(output: Output, now: u64) -> Self {
        Self {
            active: AtomicUsize::new(0),
            idle_since: AtomicU64::new(now),
            closing: AtomicU64::new(0),
            close: Notify::new(),
            input: Arc::default(),
            drained: Arc::default(),
            output: Arc::new(output),
            seen: AtomicU64::new(0),
            seen_again: AtomicU64::new(0),
            cut: Notify::new(),
            bodies: AtomicUsize::new(0),
            caller: OnceLock::new(),
        }
    }

    /// Asks it to close.
    pub fn ask_to_close(&self, now: u64) {
        self.closing.store(now.saturating_add(1), Relaxed);
        self.close.notify_one();
    }

    /// Returns when it was asked to close.
    pub fn asked_to_close(&self) -> Option<u64> {
        self.closing.load(Relaxed).checked_sub(1)
    }

    /// Returns true while a request is being answered or its answer sent. A stream that goes on, such as a health
    /// watch, does not count between its messages: it must not keep an idle connection from being closed.
    pub fn is_busy(&self) -> bool {
        self.active.load(Relaxed) > 0 || self.output.is_pending()
    }

    /// Returns since when it is idle, if it is, ms on the server's clock.
    pub fn idle_since(&self) -> u64 {
        self.idle_since.load(Relaxed).max(self.output.emptied())
    }
}

/// The connection of a request over HTTP/2, where one carries many: what bounds them together. In the extensions
/// of the request.
#[derive(Clone, Debug)]
pub struct Peer(Arc<Conn>);

impl Peer {
    /// Returns the connection as requests see it.
    pub const fn new(conn: Arc<Conn>) -> Self {
        Self(conn)
    }

    /// Returns a connection on which more has arrived than was read.
    #[cfg(test)]
    pub fn unread() -> Self {
        let output = Output::new(&super::UnsentLimit::new(1), &Arc::new(super::clock::Clock::new()));
        Self(Arc::new(Conn::new(output, 0)))
    }

    /// Lets the connection of a request read what has arrived behind it, as [`input::read_pending`] does; `peer` is there
    /// if the request came over HTTP/2. What more and more arrives on is not waited for for ever.
    ///
    /// *Cancellation*: as that of [`input::read_pending`].
    pub async fn read_pending(peer: Option<&Self>) {
        if let Some(peer) = peer {
            peer.0.drained.wait().await;
        }
        input::read_pending().await;
    }

    /// Returns true if it holds as many bytes of unsent answers as one connection may.
    #[must_use]
    pub fn has_share_of_unsent(&self) -> bool {
        self.0.output.parts().has_share()
    }

    /// Returns who the peer is, if it has shown a certificate. It was verified, and the identity may call this service.
    #[must_use]
    pub fn caller(&self) -> Option<&Identity> {
        self.0.caller.get()
    }

    /// Returns the bytes of the bodies that it sends.
    #[must_use]
    pub fn bodies(&self) -> &AtomicUsize {
        &self.0.bodies
    }
}
