//! A timer that is always due before the delay of a hedge, while calls are made one after the other.
//!
//! tokio wakes its own driver, by a write to an eventfd and a return from `epoll_wait`, whenever a timer is set that is due
//! before all others. The timer of a hedge is such a one at nearly every call, and hardly any of them fires. A single
//! timer that ticks meanwhile, at the shortest delay of a hedge, is due before them and costs less.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::{Instant, sleep};

/// The shortest interval: a shorter one would cost more than it saves.
const MIN_INTERVAL: Duration = Duration::from_millis(5);

/// The ticks of one client. It is used on one thread.
pub struct Ticker {
    interval: Duration,
    began: Instant,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    /// When the last call was made, us since the beginning.
    called: AtomicU64,
    /// True while it ticks.
    ticks: AtomicBool,
}

impl Ticker {
    /// Returns one that does not tick yet; then it does at this interval, or every 5 ms if that is longer.
    #[must_use]
    pub fn new(interval: Duration) -> Self {
        Self { interval: interval.max(MIN_INTERVAL), began: Instant::now(), state: Arc::default() }
    }

    /// Notes a call. Begins to tick if the last one was made within an interval, and goes on until there was none for as
    /// long. Must be called inside a tokio runtime.
    pub fn note_call(&self, now: Instant) {
        let now = micros(now.saturating_duration_since(self.began));
        let last = self.state.called.swap(now, Relaxed);
        let interval = micros(self.interval);
        if last == 0 || now.saturating_sub(last) > interval || self.state.ticks.swap(true, Relaxed) {
            return;
        }
        let (pause, began, state) = (self.interval, self.began, self.state.clone());
        tokio::spawn(async move {
            while micros(began.elapsed()).saturating_sub(state.called.load(Relaxed)) <= interval {
                sleep(pause).await;
            }
            state.ticks.store(false, Relaxed);
        });
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_millis(10);

    fn tasks() -> usize {
        tokio::runtime::Handle::current().metrics().num_alive_tasks()
    }

    #[tokio::test(start_paused = true)]
    async fn it_ticks_while_calls_follow_each_other() {
        let ticker = Ticker::new(INTERVAL);
        let call = || ticker.note_call(Instant::now());
        for _ in 0..10 {
            sleep(INTERVAL * 3).await;
            call();
        }
        assert_eq!(tasks(), 0, "a call now and then needs none");
        for _ in 0..100 {
            sleep(INTERVAL / 2).await;
            call();
            assert_eq!(tasks(), 1);
        }
        sleep(INTERVAL * 3).await;
        assert_eq!(tasks(), 0, "it ends by itself");
    }
}
