//! Ended spans on their way out: bounded, and never in anybody's way.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use super::Record;
use super::metrics::Metrics;

/// Most spans in a batch, about 300 kB of JSON.
pub const BATCH: usize = 500;
/// Longest time that a span waits for others.
const DELAY: Duration = Duration::from_secs(1);

/// The queue.
#[derive(Debug)]
pub struct Queue {
    spans: Mutex<VecDeque<Record>>,
    capacity: usize,
    /// Notified at the first span, and when there are enough for a batch.
    filled: Notify,
    /// What is counted.
    pub meters: Metrics,
}

impl Queue {
    /// Returns an empty one that holds at most `capacity` spans.
    pub fn new(capacity: usize, meters: Metrics) -> Self {
        Self { spans: Mutex::default(), capacity, filled: Notify::new(), meters }
    }

    /// Adds a span; if there is no room for it, it is counted and dropped.
    pub fn push(&self, span: Record) {
        let mut spans = self.lock();
        if spans.len() >= self.capacity {
            drop(spans);
            self.meters.dropped_full.inc();
            return;
        }
        spans.push_back(span);
        let length = spans.len();
        drop(spans);
        self.meters.queued.inc();
        if length == 1 || length == BATCH.min(self.capacity) {
            self.filled.notify_one();
        }
    }

    /// Waits until there are spans, and then, but not for long, until they make a batch.
    pub async fn wait(&self) {
        self.has(1).await;
        // the time being over is as good
        let _ = tokio::time::timeout(DELAY, self.has(BATCH)).await;
    }

    async fn has(&self, spans: usize) {
        while self.lock().len() < spans.min(self.capacity) {
            self.filled.notified().await;
        }
    }

    /// Takes the oldest spans, at most a batch.
    pub fn take(&self) -> Vec<Record> {
        let mut spans = self.lock();
        let length = spans.len().min(BATCH);
        let batch: Vec<_> = spans.drain(..length).collect();
        drop(spans);
        self.meters.queued.sub(i64::try_from(batch.len()).unwrap_or(0));
        batch
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Record>> {
        self.spans.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::trace::tests::record;
    use tokio::time::{Instant, timeout};

    fn queue(capacity: usize) -> Queue {
        Queue::new(capacity, Metrics::register(&prometheus::Registry::new()).unwrap())
    }

    #[test]
    fn what_does_not_fit_is_counted_and_dropped() {
        let queue = queue(3);
        for n in 0..5 {
            queue.push(record(n));
        }
        assert_eq!((queue.meters.dropped_full.get(), queue.meters.queued.get()), (2, 3));
        let kept: Vec<_> = queue.take().iter().map(|span| span.took.as_millis()).collect();
        assert_eq!(kept, [0, 1, 2], "the oldest are kept, in order");
        assert_eq!(queue.meters.queued.get(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_is_taken_when_it_is_full_or_old() {
        let queue = queue(2 * BATCH);
        assert!(timeout(Duration::from_hours(1), queue.wait()).await.is_err(), "nothing to send");
        queue.push(record(0));
        let begun = Instant::now();
        queue.wait().await;
        assert_eq!(begun.elapsed(), DELAY);
        for n in 0..BATCH as u64 + 10 {
            queue.push(record(n));
        }
        let begun = Instant::now();
        queue.wait().await;
        assert_eq!(begun.elapsed(), Duration::ZERO);
        assert_eq!(queue.take().len(), BATCH);
        assert_eq!(queue.take().len(), 11);
    }

    #[tokio::test(start_paused = true)]
    async fn a_queue_smaller_than_a_batch_is_a_batch() {
        let queue = queue(2);
        queue.push(record(0));
        queue.push(record(1));
        let begun = Instant::now();
        queue.wait().await;
        assert_eq!(begun.elapsed(), Duration::ZERO);
    }
}
