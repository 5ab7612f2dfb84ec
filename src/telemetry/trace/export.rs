//! The task that sends ended spans to the collector.

use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use tokio_util::sync::CancellationToken;

use super::queue::Queue;
use super::record::Record;
use super::zipkin::Zipkin;
use crate::backoff::Backoff;

/// Time for what is in the queue when the process stops. It is short: new callers of a gateway wait in its socket
/// meanwhile.
const FLUSH: Duration = Duration::from_millis(500);
/// Waits after failures. Meanwhile the queue fills, then new spans are dropped, so a collector that is away costs
/// neither encoding nor connections.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// Sends batches until `stop`, then what is left in the queue, for at most [`FLUSH`].
pub async fn run(queue: Arc<Queue>, collector: Uri, stop: CancellationToken) {
    let zipkin = Zipkin::new(collector);
    let end = async {
        stop.cancelled().await;
        tokio::time::sleep(FLUSH).await;
    };
    tokio::select! {
        () = send_all(&queue, &zipkin, &stop) => {}
        () = end => {}
    }
    let mut left = 0;
    loop {
        let batch = Batch::take(&queue);
        if batch.count == 0 {
            break;
        }
        left += batch.count;
    }
    if left > 0 {
        tracing::warn!(spans = left, "spans could not be sent before the end");
    }
}

/// A batch that was taken from the queue. If it is dropped before [`Self::sent`], its spans count as dropped.
struct Batch<'a> {
    queue: &'a Queue,
    spans: Vec<Record>,
    count: u64,
}

impl<'a> Batch<'a> {
    fn take(queue: &'a Queue) -> Self {
        let spans = queue.take();
        let count = spans.len() as u64;
        Self { queue, spans, count }
    }

    fn sent(mut self) {
        self.queue.metrics.exported.inc_by(self.count);
        self.count = 0;
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        self.queue.metrics.dropped_export.inc_by(self.count);
    }
}

async fn send_all(queue: &Queue, zipkin: &Zipkin, stop: &CancellationToken) {
    let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
    let mut failing = false;
    loop {
        let stopping = stop.run_until_cancelled(queue.wait()).await.is_none();
        let mut batch = Batch::take(queue);
        if batch.count == 0 {
            if stopping {
                return;
            }
            continue;
        }
        let (spans, count) = (std::mem::take(&mut batch.spans), batch.count);
        match zipkin.send(spans).await {
            Ok(()) => {
                batch.sent();
                backoff.reset();
                if std::mem::take(&mut failing) {
                    tracing::info!("the collector accepts spans again");
                }
            }
            Err(error) => {
                drop(batch);
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(
                        error,
                        spans = count,
                        "the collector does not accept spans; they are dropped"
                    );
                }
                if stop.is_cancelled() {
                    return;
                }
                stop.run_until_cancelled(tokio::time::sleep(backoff.next_wait())).await;
            }
        }
    }
}
