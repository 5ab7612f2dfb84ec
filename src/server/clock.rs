//! The clock of a listener. It stands still while this process does, as far as its own watch can tell: what it was
//! too busy or too frozen to see must not count against its peers. The watch runs on the first thread, so a pause of
//! another thread alone counts as time.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::Instant;

/// A clock in ms.
#[derive(Debug)]
pub struct Clock {
    begun: Instant,
    /// Time that does not count, ms.
    skipped: AtomicU64,
}

impl Clock {
    /// Returns a clock at 0.
    pub fn new() -> Self {
        Self { begun: Instant::now(), skipped: AtomicU64::new(0) }
    }

    /// Returns the time, ms.
    pub fn now(&self) -> u64 {
        ms(self.begun.elapsed()).saturating_sub(self.skipped.load(Relaxed))
    }

    /// Sleeps. What the sleep takes longer does not count.
    pub async fn sleep(&self, time: Duration) {
        let begun = Instant::now();
        tokio::time::sleep(time).await;
        self.skipped.fetch_add(ms(begun.elapsed().saturating_sub(time)), Relaxed);
    }
}

/// Returns a time in ms.
pub fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
