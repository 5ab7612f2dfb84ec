//! How long the good answers to one rpc took lately, and a percentile of that.
//!
//! It is a histogram with buckets on a logarithmic scale, in two halves of 15 s: the percentile is over the
//! current half and the one before. What it returns is the upper edge of a bucket, at most an eighth above the
//! true value.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// An answer counts for one to two of these.
const HALF: Duration = Duration::from_secs(15);
/// Fewest answers that say something. Of so many the slowest one stands for the 99th percentile, and one in fifty of
/// the next is slower: well within the budget for hedges.
const MIN_ANSWERS: u64 = 50;
/// Least time between two computations of the percentile.
const REFRESH: Duration = Duration::from_millis(100);
/// Width of the first buckets, microseconds.
const UNIT: u64 = 128;
/// Buckets for each doubling, as a power of two: 8.
const STEPS: u32 = 3;
/// Buckets: they reach beyond 10 minutes, the longest deadline.
const BUCKETS: usize = 180;

/// The latency of one rpc.
#[derive(Debug)]
pub struct LatencyWindow {
    /// Per cent of the answers that are not slower than the percentile.
    percent: u64,
    born: Instant,
    /// In a box, because a window is part of the call path of each service.
    answers: Mutex<Box<Answers>>,
}

#[derive(Debug)]
struct Answers {
    /// The number of the current half, from the window's birth.
    half: u64,
    current: [u32; BUCKETS],
    before: [u32; BUCKETS],
    /// The percentile when it was last computed, and when that was.
    percentile: Option<Duration>,
    computed: Option<Instant>,
}

impl LatencyWindow {
    /// Returns an empty window for a percentile, 1 to 100.
    #[must_use]
    pub fn new(percent: u32) -> Self {
        let empty = [0; BUCKETS];
        let answers = Answers { half: 0, current: empty, before: empty, percentile: None, computed: None };
        Self { percent: percent.into(), born: Instant::now(), answers: Mutex::new(Box::new(answers)) }
    }

    /// Records a good answer.
    pub fn record(&self, now: Instant, took: Duration) {
        self.with(now, |answers| {
            if let Some(count) = answers.current.get_mut(bucket(took)) {
                *count = count.saturating_add(1);
            }
        });
    }

    /// Returns the percentile, up to a tenth of a second old; `None` if there were too few answers.
    #[must_use]
    pub fn percentile(&self, now: Instant) -> Option<Duration> {
        self.with(now, |answers| {
            let fresh = |at: Instant| now.saturating_duration_since(at) < REFRESH;
            if !answers.computed.is_some_and(fresh) {
                answers.computed = Some(now);
                answers.percentile = answers.compute(self.percent);
            }
            answers.percentile
        })
    }

    fn with<T>(&self, now: Instant, act: impl FnOnce(&mut Answers) -> T) -> T {
        let half = now.saturating_duration_since(self.born).as_secs() / HALF.as_secs();
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.advance(half);
        act(&mut answers)
    }
}

impl Answers {
    /// Forgets what is too old.
    fn advance(&mut self, half: u64) {
        if half <= self.half {
            return;
        }
        self.before = if half == self.half + 1 { self.current } else { [0; BUCKETS] };
        self.current = [0; BUCKETS];
        self.half = half;
    }

    fn compute(&self, percent: u64) -> Option<Duration> {
        let counts = || self.current.iter().zip(&self.before).map(|(a, b)| u64::from(*a) + u64::from(*b));
        let all: u64 = counts().sum();
        if all < MIN_ANSWERS {
            return None;
        }
        let mut slower = all;
        let at = counts().position(|count| {
            slower -= count;
            slower * 100 <= all * (100 - percent)
        });
        at.map(upper_edge)
    }
}

/// Returns the bucket of a latency: eight of equal width for each doubling.
fn bucket(took: Duration) -> usize {
    let units = u64::try_from(took.as_micros()).unwrap_or(u64::MAX) / UNIT;
    let shift = (u64::BITS - units.leading_zeros()).saturating_sub(STEPS + 1);
    let bucket = (u64::from(shift) << STEPS) + (units >> shift);
    usize::try_from(bucket).unwrap_or(BUCKETS).min(BUCKETS - 1)
}

/// Returns the end of a bucket: every latency in it is shorter.
fn upper_edge(bucket: usize) -> Duration {
    let bucket = bucket as u64;
    let shift = (bucket >> STEPS).saturating_sub(1);
    let units = bucket - (shift << STEPS);
    Duration::from_micros(((units + 1) << shift) * UNIT)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn record(window: &LatencyWindow, count: usize, took: Duration) {
        (0..count).for_each(|_| window.record(Instant::now(), took));
    }

    #[test]
    fn a_latency_is_below_the_end_of_its_bucket_by_at_most_an_eighth() {
        let mut last = 0;
        for micros in (0..100_000).step_by(97).chain((100_000..600_000_000).step_by(333_667)) {
            let took = Duration::from_micros(micros);
            let (at, edge) = (bucket(took), upper_edge(bucket(took)));
            assert!(at >= last && at < BUCKETS - 1, "{took:?} is in bucket {at} after {last}");
            assert!(
                took < edge && edge <= took.mul_f64(1.125) + Duration::from_micros(UNIT),
                "{took:?} {edge:?}"
            );
            last = at;
        }
        assert_eq!(bucket(Duration::MAX), BUCKETS - 1);
    }

    #[tokio::test(start_paused = true)]
    async fn few_answers_say_nothing() {
        let window = LatencyWindow::new(99);
        assert_eq!(window.percentile(Instant::now()), None);
        record(&window, 49, MS);
        tokio::time::advance(REFRESH).await;
        assert_eq!(window.percentile(Instant::now()), None);
        record(&window, 1, MS);
        tokio::time::advance(REFRESH).await;
        assert!(window.percentile(Instant::now()).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn the_percentile_is_that_of_the_answers() {
        for (percent, slow, want) in [(99, 9, 10), (99, 11, 500), (95, 49, 10), (95, 51, 500)] {
            let window = LatencyWindow::new(percent);
            record(&window, 1000 - slow, 10 * MS);
            record(&window, slow, 500 * MS);
            let found = window.percentile(Instant::now()).unwrap();
            assert!(
                (want * MS..want * MS * 9 / 8).contains(&found),
                "{slow} of 1000: {found:?}, want {want} ms"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn answers_are_forgotten_after_one_to_two_halves() {
        let window = LatencyWindow::new(99);
        record(&window, 100, 500 * MS);
        tokio::time::advance(Duration::from_secs(16)).await;
        record(&window, 1000, 10 * MS);
        assert!(window.percentile(Instant::now()).unwrap() >= 500 * MS);
        tokio::time::advance(Duration::from_secs(15)).await;
        assert!(window.percentile(Instant::now()).unwrap() < 12 * MS);
        // after a pause nothing is left
        tokio::time::advance(Duration::from_secs(31)).await;
        assert_eq!(window.percentile(Instant::now()), None);
    }
}
