//! Waits between tries: they double up to a cap, with jitter so that many clients do not try again at the same time.

use std::time::Duration;

/// A sequence of waits: each a random time between half of a step and the step, where the step doubles
/// from `first` to `cap`. With 100 ms and 5 s: 50-100 ms, 100-200 ms, ... 2.5-5 s.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    cap: Duration,
    step: Duration,
}

impl Backoff {
    /// Returns a sequence at its start.
    #[must_use]
    pub const fn new(first: Duration, cap: Duration) -> Self {
        Self { first, cap, step: first }
    }

    /// Returns the next wait.
    pub fn next_wait(&mut self) -> Duration {
        let step = self.step.min(self.cap);
        self.step = step.saturating_mul(2).min(self.cap);
        step.mul_f64(crate::random::range(0.5..=1.0))
    }

    /// Starts over with the first wait.
    pub const fn reset(&mut self) {
        self.step = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_cap() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(500));
        for want in [100, 200, 400, 500, 500] {
            let wait = backoff.next_wait().as_millis();
            assert!((want / 2..=want).contains(&wait), "{wait} for {want}");
        }
        backoff.reset();
        assert!(backoff.next_wait().as_millis() <= 100);
    }
}
