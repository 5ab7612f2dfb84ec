//! The clock of the server, as far as its answers tell.

use std::time::{Duration, Instant, SystemTime};

/// Two clocks drift apart by at most this share of the time.
const DRIFT: f64 = 0.0005;

/// Bounds for the server's clock at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    /// The moment, by our clock.
    at: Instant,
    /// The server's clock was not before this.
    earliest: SystemTime,
    /// It was not after `earliest` and this.
    uncertain: Duration,
}

impl Clock {
    /// Returns what an answer tells that said `time`, to a question sent at `asked` and answered at `read`.
    pub fn new(asked: Instant, read: Instant, time: SystemTime) -> Self {
        Self { at: read, earliest: time, uncertain: read.saturating_duration_since(asked) }
    }

    /// Returns what is known after another answer: what both say. A slow answer does not spoil what a quick one has told.
    /// If they contradict each other, the server's clock was set, or it is another server's: the newer one counts.
    pub fn and(self, newer: Self) -> Self {
        let age = newer.at.saturating_duration_since(self.at);
        let drift = age.mul_f64(DRIFT);
        let earliest = (self.earliest + age - drift).max(newer.earliest);
        let latest = (self.earliest + self.uncertain + age + drift).min(newer.earliest + newer.uncertain);
        match latest.duration_since(earliest) {
            Ok(uncertain) => Self { at: newer.at, earliest, uncertain },
            Err(_) => newer,
        }
    }

    /// Returns the time that the server's clock does not pass before this moment.
    pub fn time(&self, moment: Instant) -> SystemTime {
        match moment.checked_duration_since(self.at) {
            Some(after) => self.earliest + after,
            None => self.earliest,
        }
    }

    /// Returns how much earlier than a moment its [`Self::time`] may be.
    pub const fn uncertainty(&self) -> Duration {
        self.uncertain
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// The server's clock shows `SERVER` when ours shows `start`.
    const SERVER: SystemTime = SystemTime::UNIX_EPOCH;

    /// An answer whose question took `took` and was executed right before it came back, `after` the start.
    fn answer(start: Instant, after: Duration, took: Duration) -> Clock {
        let asked = start + after.saturating_sub(took);
        Clock::new(asked, start + after, SERVER + Duration::from_secs(9) + after)
    }

    #[test]
    fn a_slow_answer_does_not_spoil_a_quick_one() {
        let start = Instant::now();
        // the server executes a slow question at once, and the answer is 900 ms on its way
        let slow =
            Clock::new(start + 1000 * MS, start + 1900 * MS, SERVER + Duration::from_secs(9) + 1000 * MS);
        let both = answer(start, 100 * MS, MS).and(slow);
        assert!(both.uncertainty() < 4 * MS, "{both:?}");
        let moment = start + 2000 * MS;
        let true_time = SERVER + Duration::from_secs(9) + 2000 * MS;
        assert!(both.time(moment) <= true_time, "not later than it is");
        assert!(both.time(moment) + 5 * MS > true_time, "{both:?}");
        // nor the other way round
        let both = slow.and(answer(start, 2000 * MS, MS));
        assert!(both.uncertainty() <= MS && both.time(moment) <= true_time, "{both:?}");
    }

    #[test]
    fn what_is_known_gets_older() {
        let start = Instant::now();
        let old = answer(start, MS, MS);
        let later = answer(start, Duration::from_mins(10), 10_000 * MS);
        let both = old.and(later);
        assert!(both.uncertainty() > 100 * MS, "{both:?}");
        assert!(both.uncertainty() < 1000 * MS, "{both:?}");
    }

    #[test]
    fn a_clock_that_was_set_counts_from_the_next_answer_on() {
        let start = Instant::now();
        for set in [SERVER, SERVER + Duration::from_secs(100)] {
            let newer = Clock::new(start + 1000 * MS, start + 1001 * MS, set);
            assert_eq!(answer(start, 100 * MS, MS).and(newer), newer);
        }
    }
}
