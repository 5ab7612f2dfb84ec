//! When a second attempt, a hedge, is sent to race a slow one.
//!
//! - The delay is an observed percentile of what good answers to the same rpc took lately, whatever the call's
//!   deadline is. Before there are enough answers there is no delay, and no hedge.
//! - The delay is measured over whole calls, from the first attempt to the answer that won. So a slow attempt that
//!   lost counts with the time that it took at least.
//! - The budget is a share of the good answers of the last 10 s. When every instance is slow there are few, and
//!   hedges end by themselves. The retry budget must grant the hedge as well.
//!
//! Which attempts are raced, and how, is in [`crate::client::policy::retry`]. Sources: Finagle (`BackupRequestFilter`),
//! gRPC proposal A6 (hedging).

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::api::rpc::{PerRpc, Rpc};
use crate::client::policy::budget::{Budget, Reserve};
use crate::client::policy::latency::LatencyWindow;
use crate::client::policy::ticker::Ticker;
use crate::config;

/// Hedges in 10 s that need no good answers: for services that are called seldom.
const RESERVE: u64 = 2;

/// Returns true if slow attempts are raced.
const fn is_on(settings: &config::Client) -> bool {
    settings.hedge_after_percent > 0 && settings.hedge_budget_percent > 0
}

/// Returns the reserve of the budget of hedges of one service, for all threads.
#[must_use]
pub fn reserve(settings: &config::Client) -> Arc<Reserve> {
    Reserve::new(if is_on(settings) { RESERVE } else { 0 })
}

/// The delays and the budget of the hedges of one service.
pub struct Hedging {
    /// Empty if there are no hedges.
    windows: Option<PerRpc<LatencyWindow>>,
    min: Duration,
    max: Duration,
    budget: Budget,
    ticker: Ticker,
}

impl Hedging {
    /// Returns hedging that has seen no answer yet; `reserve` is that of its budget.
    #[must_use]
    pub fn new(settings: &config::Client, reserve: Arc<Reserve>) -> Self {
        let (percentile, share) = (settings.hedge_after_percent, settings.hedge_budget_percent);
        let hedges = is_on(settings);
        Self {
            windows: hedges.then(|| PerRpc::from_fn(|_| LatencyWindow::new(percentile))),
            min: settings.hedge_min_delay,
            max: settings.hedge_max_delay.max(settings.hedge_min_delay),
            budget: Budget::new(share, reserve),
            ticker: Ticker::new(settings.hedge_min_delay),
        }
    }

    /// Notes that a call begins which may be raced.
    pub fn note_call(&self, now: Instant) {
        self.ticker.note_call(now);
    }

    /// Returns after which time an attempt is raced; `None` if too little is known.
    #[must_use]
    pub fn delay(&self, rpc: Rpc, now: Instant) -> Option<Duration> {
        let percentile = self.windows.as_ref()?[rpc].percentile(now)?;
        Some(percentile.clamp(self.min, self.max))
    }

    /// Returns the least delay.
    #[must_use]
    pub const fn min_delay(&self) -> Duration {
        self.min
    }

    /// Returns the longest delay.
    #[must_use]
    pub const fn max_delay(&self) -> Duration {
        self.max
    }

    /// Records a good answer to a call. `took` is the time of the whole call, `None` if an attempt of it failed before:
    /// then waits between attempts are part of it.
    pub fn record(&self, rpc: Rpc, now: Instant, took: Option<Duration>) {
        if let Some(windows) = self.windows.as_ref().filter(|_| rpc.policy().hedge) {
            if let Some(took) = took {
                windows[rpc].record(now, took);
            }
            self.budget.deposit();
        }
    }

    /// Takes one hedge from the budget. Returns false if there is none left.
    pub fn withdraw(&self) -> bool {
        self.budget.withdraw()
    }

    /// Gives back what was withdrawn for a hedge that is not sent.
    pub fn give_back(&self) {
        self.budget.give_back();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const READ: Rpc = Rpc::GetFeeds;

    fn hedging(change: impl FnOnce(&mut config::Client)) -> Hedging {
        let mut settings = config::Client::default();
        change(&mut settings);
        Hedging::new(&settings, reserve(&settings))
    }

    fn answers(hedging: &Hedging, count: usize, took: Duration) {
        (0..count).for_each(|_| hedging.record(READ, Instant::now(), Some(took)));
    }

    #[tokio::test(start_paused = true)]
    async fn the_delay_is_what_was_observed_within_the_bounds_of_the_settings() {
        for (took, want) in [(1, 10), (40, 40), (400, 400), (4000, 1000)] {
            let hedging = hedging(|_| {});
            answers(&hedging, 100, took * MS);
            let delay = hedging.delay(READ, Instant::now()).unwrap();
            assert!((want * MS..=want * MS * 9 / 8).contains(&delay), "{took} ms: {delay:?}");
            // a call that was repeated says nothing, and each rpc has its own
            (0..100).for_each(|_| hedging.record(READ, Instant::now(), None));
            tokio::time::advance(100 * MS).await;
            assert_eq!(hedging.delay(READ, Instant::now()), Some(delay));
            assert_eq!(hedging.delay(Rpc::GetTopic, Instant::now()), None);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn hedges_are_a_share_of_the_good_answers() {
        let hedging = hedging(|_| {});
        let granted = || (0..1000).filter(|_| hedging.withdraw()).count();
        assert_eq!(granted(), 2, "the reserve");
        answers(&hedging, 1000, MS);
        assert_eq!(granted(), 50);
        tokio::time::advance(Duration::from_secs(11)).await;
        assert_eq!(granted(), 2, "without good answers they end");
        hedging.give_back();
        assert_eq!(granted(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn settings_turn_it_off() {
        for off in [
            hedging(|settings| settings.hedge_after_percent = 0),
            hedging(|settings| settings.hedge_budget_percent = 0),
        ] {
            answers(&off, 1000, MS);
            assert!(off.delay(READ, Instant::now()).is_none() && !off.withdraw());
        }
    }
}
