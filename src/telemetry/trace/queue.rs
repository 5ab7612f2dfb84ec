//! The queue of ended spans that wait to be exported. It is bounded, and adding a span never waits.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use super::metrics::Metrics;
use super::record::Record;

/// Largest batch, spans: about 300 kB of JSON.
pub const BATCH: usize = 500;
/// Longest time that a span waits for a batch to fill.
const DELAY: Duration = Duration::from_secs(1);

/// The queue.
#[derive(Debug)]
pub struct Queue {
    spans: Mutex<VecDeque<Record>>,
    capacity: usize,
    /// Notified at the first span, and when there are enough for a batch.
    filled: Notify,
    /// Counts spans by how they left the queue.
    pub metrics: Metrics,
}

impl Queue {
    /// Returns an empty queue for at most `capacity` spans.
    pub fn new(capacity: usize, metrics: Metrics) -> Self {
        Self { spans: Mutex::default(), capacity, filled: Notify::new(), metrics }
    }

    /// Adds a span. If the queue is full, the span is counted and dropped.
    pub fn push(&self, span: Record) {
        let mut spans = self.lock();
        if spans.len() >= self.capacity {
            drop(spans);
            self.metrics.dropped_full.inc();
            return;
        }
        spans.push_back(span);
        let length = spans.len();
        drop(spans);
        self.metrics.queued.inc();
        if length == 1 || length == BATCH.min(self.capacity) {
            self.filled.notify_one();
        }
    }

    /// Waits until there are spans, and then at most [`DELAY`] until they fill a batch.
    pub async fn wait(&self) {
        self.holds(1).await;
        // after that time a smaller batch will do
        let _ = tokio::time::timeout(DELAY, self.holds(BATCH)).await;
    }

    async fn holds(&self, spans: usize) {
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
        self.metrics.queued.sub(i64::try_from(batch.len()).unwrap_or(0));
        batch
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Record>> {
        self.spans.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::trace::record::tests::record;
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
        assert_eq!((queue.metrics.dropped_full.get(), queue.metrics.queued.get()), (2, 3));
        let kept: Vec<_> = queue.take().iter().map(|span| span.duration.as_millis()).collect();
        assert_eq!(kept, [0, 1, 2], "the oldest are kept, in order");
        assert_eq!(queue.metrics.queued.get(), 0);
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
