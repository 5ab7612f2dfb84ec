//! Limits log lines about events that may happen thousands of times a second.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use tokio::time::Instant;

/// Least time between two log lines of [`LogThrottle`], ms.
const INTERVAL_MS: u64 = 10_000;

/// Lets one log line through at the first event and then one every 10 s, with the number of events since the
/// last line.
#[derive(Debug)]
pub struct LogThrottle {
    created: Instant,
    /// When the next line is due, ms after `created`.
    due: AtomicU64,
    suppressed: AtomicU64,
}

impl Default for LogThrottle {
    fn default() -> Self {
        Self { created: Instant::now(), due: AtomicU64::new(0), suppressed: AtomicU64::new(0) }
    }
}

impl LogThrottle {
    /// Counts one event. Returns the number of events since the last line if a line is due.
    pub fn note(&self) -> Option<u64> {
        self.note_at(u64::try_from(self.created.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    fn note_at(&self, now: u64) -> Option<u64> {
        let suppressed = self.suppressed.fetch_add(1, Relaxed) + 1;
        let due = self.due.load(Relaxed);
        if now < due || self.due.compare_exchange(due, now + INTERVAL_MS, Relaxed, Relaxed).is_err() {
            return None;
        }
        self.suppressed.fetch_sub(suppressed, Relaxed);
        Some(suppressed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_one_line_every_ten_seconds() {
        let throttle = LogThrottle::default();
        assert_eq!(throttle.note_at(5), Some(1));
        for _ in 0..1000 {
            assert_eq!(throttle.note_at(INTERVAL_MS), None);
        }
        assert_eq!(throttle.note_at(INTERVAL_MS + 5), Some(1001));
        assert_eq!(throttle.note_at(INTERVAL_MS + 6), None);
    }
}
