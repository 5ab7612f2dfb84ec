//! A budget of a service: over any 10 s, retries stay below a share of the calls plus a fixed number. There is one
//! for retries, filled by all calls, and one for hedges, filled by good answers.
//!
//! It is Finagle's rule, counted exactly. It is not tower's `TpsBudget` (0.5.3), a port of the same: unless a
//! call comes in the very nanosecond in which a slot ends, that one skips two slots at a time, so that its 10 s
//! are 5 s and the fixed part is granted twice.
//!
//! Each thread has its own, filled by its own calls. They share the fixed number: so the sum of all threads stays below
//! the same bound as that of one, and no thread waits for another to count a call.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Length of a slot.
const SLOT: Duration = Duration::from_millis(100);
/// Slots over which calls are counted: 10 s.
const EARNING: usize = 100;
/// Slots over which retries are counted: one more, so that any 10 s lie within them.
const SPENDING: usize = EARNING + 1;

/// The budget.
#[derive(Debug)]
pub struct Budget {
    /// Retries that a hundred calls earn.
    percent: u64,
    earned: Counts,
    reserve: Arc<Reserve>,
}

/// The fixed part of the budgets of all threads together.
#[derive(Debug)]
pub struct Reserve {
    /// Retries in 10 s that need no calls.
    size: u64,
    used: Counts,
}

impl Reserve {
    /// Returns a full reserve: so many retries in 10 s.
    #[must_use]
    pub fn new(size: u64) -> Arc<Self> {
        Arc::new(Self { size, used: Counts::default() })
    }

    /// Returns a full reserve of so many retries a second.
    #[must_use]
    pub fn per_second(retries: u32) -> Arc<Self> {
        Self::new(u64::from(retries) * 10)
    }

    /// Returns the retries that were taken from it in the last 10 s, and how many there may be.
    #[must_use]
    pub fn usage(&self) -> (u64, u64) {
        self.used.with(|slots| (slots.retries, self.size))
    }
}

/// Calls and retries of the last 10 s.
#[derive(Debug)]
struct Counts {
    born: Instant,
    slots: Mutex<Slots>,
}

impl Default for Counts {
    fn default() -> Self {
        let slots = Slots { counts: [(0, 0); SPENDING], now: 0, calls: 0, retries: 0 };
        Self { born: Instant::now(), slots: Mutex::new(slots) }
    }
}

impl Counts {
    fn with<T>(&self, act: impl FnOnce(&mut Slots) -> T) -> T {
        let now = self.born.elapsed().as_millis() / SLOT.as_millis();
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.advance(u64::try_from(now).unwrap_or(u64::MAX));
        act(&mut slots)
    }
}

#[derive(Debug)]
struct Slots {
    /// Calls and retries by slot.
    counts: [(u64, u64); SPENDING],
    /// The slot that counts now, from the budget's birth.
    now: u64,
    calls: u64,
    retries: u64,
}

impl Budget {
    /// Returns a full budget: `percent` of the calls, and what `reserve` has.
    #[must_use]
    pub fn new(percent: u32, reserve: Arc<Reserve>) -> Self {
        Self { percent: percent.into(), earned: Counts::default(), reserve }
    }

    /// Counts a call.
    pub fn deposit(&self) {
        self.earned.with(|slots| {
            slots.calls += 1;
            slots.current().0 += 1;
        });
    }

    /// Counts a retry and returns true, unless there is nothing left for it.
    pub fn withdraw(&self) -> bool {
        self.earned.with(|slots| slots.take(slots.calls * self.percent / 100))
            || self.reserve.used.with(|slots| slots.take(self.reserve.size))
    }

    /// Returns the retries of the last 10 s that calls have earned, and how many those may be.
    #[must_use]
    pub fn usage(&self) -> (u64, u64) {
        self.earned.with(|slots| (slots.retries, slots.calls * self.percent / 100))
    }

    /// Gives back a retry that was counted and is not made.
    pub fn give_back(&self) {
        // a slot later there is nothing to take it from; then it stays counted
        let _ = self.earned.with(Slots::give_back) || self.reserve.used.with(Slots::give_back);
    }
}

impl Slots {
    /// Forgets what is too old. After a pause that is everything, in a bounded number of steps.
    fn advance(&mut self, now: u64) {
        let steps = now.saturating_sub(self.now).min(SPENDING as u64);
        for step in 1..=steps {
            let slot = if steps == SPENDING as u64 { now - steps + step } else { self.now + step };
            if let Some((calls, _)) = self.counts.get(at(slot + 1)) {
                self.calls = self.calls.saturating_sub(*calls); // it is 10 s old
            }
            if let Some(count) = self.counts.get_mut(at(slot)) {
                self.retries = self.retries.saturating_sub(count.1);
                *count = (0, 0);
            }
        }
        if steps == SPENDING as u64 {
            (self.calls, self.retries) = (0, 0);
        }
        self.now = self.now.max(now);
    }

    /// Counts a retry and returns true, unless there are `limit` already.
    fn take(&mut self, limit: u64) -> bool {
        let taken = self.retries < limit;
        self.retries += u64::from(taken);
        self.current().1 += u64::from(taken);
        taken
    }

    /// Counts one retry less and returns true, unless none was counted in this slot.
    fn give_back(&mut self) -> bool {
        let current = self.current();
        let given = current.1 > 0;
        current.1 -= u64::from(given);
        self.retries -= u64::from(given);
        given
    }

    fn current(&mut self) -> &mut (u64, u64) {
        &mut self.counts[at(self.now)]
    }
}

/// Returns the place of a slot.
fn at(slot: u64) -> usize {
    usize::try_from(slot % SPENDING as u64).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Calls at a rate, each followed by as many retries as are granted; returns calls and retries by 10 ms.
    async fn outage(budget: &Budget, rate: u64, seconds: u64) -> Vec<(u64, u64)> {
        let mut history = Vec::new();
        for tick in 0..seconds * 100 {
            let calls = (tick + 1) * rate / 100 - tick * rate / 100;
            let mut retries = 0;
            for _ in 0..calls {
                budget.deposit();
            }
            while budget.withdraw() {
                retries += 1;
            }
            history.push((calls, retries));
            // never on a slot's edge
            tokio::time::advance(Duration::from_micros(10_037)).await;
        }
        history
    }

    fn over_ten_seconds(history: &[(u64, u64)]) -> u64 {
        let excess = |window: &[(u64, u64)]| {
            let (calls, retries) = window.iter().fold((0, 0), |sum, n| (sum.0 + n.0, sum.1 + n.1));
            (retries * 10).saturating_sub(calls * 2 + 1000) / 10
        };
        history.windows(996).map(excess).max().unwrap_or(0)
    }

    #[tokio::test(start_paused = true)]
    async fn no_ten_seconds_have_more_retries_than_they_earn() {
        for rate in [0, 7, 250, 5000] {
            let budget = Budget::new(20, Reserve::per_second(10));
            let history = outage(&budget, rate, 45).await;
            let excess = over_ten_seconds(&history);
            // of the calls of a tenth of a second that a window's edge cuts off
            assert!(excess <= rate / 50 + 1, "{excess} more at {rate}/s");
            let retries: u64 = history.iter().map(|n| n.1).sum();
            let earned = rate * 45 / 5 + 400;
            assert!(retries >= earned * 9 / 10, "{retries} of {earned} at {rate}/s");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn threads_share_the_reserve_and_spend_what_they_have_earned() {
        let reserve = Reserve::per_second(10);
        let threads = [(); 2].map(|()| Budget::new(20, reserve.clone()));
        (0..1000).for_each(|_| threads[0].deposit());
        let granted = |thread: &Budget| (0..1000).filter(|_| thread.withdraw()).count();
        // no more than one thread with all these calls
        assert_eq!((granted(&threads[1]), granted(&threads[0])), (100, 200));
        assert_eq!(
            (threads[0].usage(), threads[1].usage(), reserve.usage()),
            ((200, 200), (0, 0), (100, 100))
        );
        threads[1].give_back();
        assert!(threads[0].withdraw() && !threads[1].withdraw());
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_refills_the_reserve_and_no_more() {
        let budget = Budget::new(20, Reserve::per_second(10));
        for pause in [0, 11, 100_000, 1_000_000_000] {
            tokio::time::advance(Duration::from_secs(pause)).await;
            let granted = (0..1000).filter(|_| budget.withdraw()).count();
            assert_eq!(granted, 100, "after {pause} s");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_granted_from_nothing() {
        let budget = Budget::new(0, Reserve::per_second(0));
        (0..100).for_each(|_| budget.deposit());
        assert!(!budget.withdraw());
        let budget = Budget::new(100, Reserve::per_second(0));
        budget.deposit();
        assert!(budget.withdraw() && !budget.withdraw());
    }
}
