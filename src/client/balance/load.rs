//! The load of an instance, by which the balancer compares instances.
//!
//! For each rpc it is the peak EWMA of the latency (a slower answer counts in full at once, a faster one
//! gradually) plus a penalty for the share of recent answers that were failures or pushback, times the calls in
//! flight plus one. Observations fade with time, so an instance that gets no calls is tried again. It is kept by
//! rpc, because an instance that is slow in one rpc may be fast in the others. An instance that has not answered any
//! call yet, but has some in flight, costs as much as one that only fails: it may never answer.
//!
//! Each thread keeps the load of an instance for itself, by its own calls; only the count of calls in flight is that of
//! all threads.
//!
//! Sources: Finagle and tower (`PeakEwma`; the cost of one without an answer is Finagle's), linkerd2-proxy (penalty), Envoy (slow start).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::Instant;

use crate::api::rpc::{PerRpc, Rpc};
use crate::config;
use crate::limit::Limit;

/// Least latency, ns: differences below 1 ms are noise, and the calls in flight decide.
const MIN_LATENCY_NS: f64 = 1_000_000.0;
/// The share of calls that an instance in slow start begins with (Envoy).
const SLOW_START_FIRST_SHARE: f64 = 0.1;

/// The load of one instance.
#[derive(Debug)]
pub struct Load {
    /// Time in which an observation fades to 1/e, ns.
    decay: f64,
    /// Penalty of an instance that only fails, ns.
    penalty: f64,
    slow_start: Duration,
    created: Instant,
    /// The calls in flight of all threads.
    in_flight: Arc<Limit>,
    /// Those of this thread.
    own: AtomicUsize,
    averages: PerRpc<Averages>,
    /// When the first call was sent since the instance connected, ns from `created`; 0 for not yet.
    first_call: AtomicU64,
    /// True once the outcome of a call was observed since the instance connected.
    observed: AtomicBool,
}

/// The averages of one rpc. When two calls end at the same moment one observation may be lost; the next ones
/// make up for it.
#[derive(Debug, Default)]
struct Averages {
    /// ns, as the bits of an f64.
    latency: AtomicU64,
    /// Share of failures, 0 to 1, as the bits of an f64.
    failures: AtomicU64,
    /// When both were last changed, ns from `created`; 0 for never.
    at: AtomicU64,
}

impl Load {
    /// Returns the load of an instance that has not been called yet.
    #[must_use]
    pub fn new(settings: &config::Client, in_flight: Arc<Limit>) -> Self {
        Self {
            decay: nanos(settings.ewma_decay).max(1.0),
            penalty: nanos(settings.penalty),
            slow_start: settings.slow_start,
            created: Instant::now(),
            in_flight,
            own: AtomicUsize::new(0),
            averages: PerRpc::default(),
            first_call: AtomicU64::new(0),
            observed: AtomicBool::new(false),
        }
    }

    /// Returns what another call of this rpc would cost here, in ns; the smaller the better.
    #[must_use]
    pub fn cost(&self, rpc: Rpc, now: Instant) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let calls = (self.in_flight.used() + 1) as f64;
        // other threads have seen what this one has not: their calls say nothing about the first one from here
        if self.own.load(Relaxed) > 0 && !self.observed.load(Relaxed) {
            return self.penalty.max(MIN_LATENCY_NS) * calls;
        }
        let (latency, failures) = self.faded(rpc, now);
        self.penalty.mul_add(failures, latency).max(MIN_LATENCY_NS) * calls
    }

    /// Returns the latency that is expected of an rpc, without penalty; `None` if nothing is known.
    #[must_use]
    pub fn latency(&self, rpc: Rpc) -> Option<Duration> {
        let known = self.averages[rpc].at.load(Relaxed) > 0;
        let (latency, _) = self.faded(rpc, Instant::now());
        known.then(|| Duration::from_secs_f64((latency / 1e9).clamp(0.0, 1e6)))
    }

    /// Returns the share of recent answers to an rpc that were failures or pushback.
    #[must_use]
    pub fn failures(&self, rpc: Rpc) -> f64 {
        self.faded(rpc, Instant::now()).1
    }

    /// Returns the latency in ns and the share of failures, faded to `now`.
    fn faded(&self, rpc: Rpc, now: Instant) -> (f64, f64) {
        let averages = &self.averages[rpc];
        let weight = self.weight(averages, self.since_created(now));
        let latency = f64::from_bits(averages.latency.load(Relaxed));
        let failures = f64::from_bits(averages.failures.load(Relaxed));
        (latency * weight, failures * weight)
    }

    /// Returns how much of the averages is left at `now`, 0 to 1.
    fn weight(&self, averages: &Averages, now: u64) -> f64 {
        let at = averages.at.load(Relaxed);
        if at == 0 {
            return 0.0;
        }
        #[expect(clippy::cast_precision_loss, reason = "an age in ns needs no last digit")]
        let age = now.saturating_sub(at) as f64;
        (-age / self.decay).exp()
    }

    /// Records the outcome of an attempt.
    pub fn observe(&self, rpc: Rpc, took: Duration, failed: bool) {
        let averages = &self.averages[rpc];
        let now = self.since_created(Instant::now()).max(1);
        let weight = self.weight(averages, now);
        let (took, latency) = (nanos(took), f64::from_bits(averages.latency.load(Relaxed)));
        // a fast failure must not make the instance look fast
        let latency = if took >= latency {
            took
        } else if failed {
            latency * weight
        } else {
            latency.mul_add(weight, took * (1.0 - weight))
        };
        let failures = f64::from_bits(averages.failures.load(Relaxed));
        let failures = failures.mul_add(weight, if failed { 1.0 - weight } else { 0.0 });
        averages.latency.store(latency.to_bits(), Relaxed);
        averages.failures.store(failures.clamp(0.0, 1.0).to_bits(), Relaxed);
        averages.at.store(now, Relaxed);
        self.observed.store(true, Relaxed);
    }

    /// Records an attempt that was given up: its answer would have taken at least `took`.
    pub fn observe_at_least(&self, rpc: Rpc, took: Duration) {
        let (latency, _) = self.faded(rpc, Instant::now());
        if nanos(took) > latency.max(MIN_LATENCY_NS) {
            self.observe(rpc, took, false);
        }
    }

    /// Clears what was observed of one rpc.
    pub fn clear(&self, rpc: Rpc) {
        let averages = &self.averages[rpc];
        averages.at.store(0, Relaxed);
        averages.latency.store(0, Relaxed);
        averages.failures.store(0, Relaxed);
    }

    /// Starts over: the instance is new, or has connected again.
    pub fn reset(&self) {
        for rpc in Rpc::ALL {
            self.clear(rpc);
        }
        self.first_call.store(0, Relaxed);
        self.observed.store(false, Relaxed);
    }

    /// Returns the share of its calls that an instance in slow start gets, 0.1 to 1; `None` if it gets all: past
    /// its slow start, and before its first call, which begins the slow start.
    #[must_use]
    pub fn slow_start_share(&self, now: Instant) -> Option<f64> {
        let first = self.first_call.load(Relaxed);
        if first == 0 || self.slow_start.is_zero() {
            return None;
        }
        let age = Duration::from_nanos(self.since_created(now).saturating_sub(first));
        let share = age.as_secs_f64() / self.slow_start.as_secs_f64();
        (share < 1.0).then_some(share.max(SLOW_START_FIRST_SHARE))
    }

    /// Returns true if the slow start is over.
    #[must_use]
    pub fn is_past_slow_start(&self, now: Instant) -> bool {
        self.first_call.load(Relaxed) > 0 && self.slow_start_share(now).is_none()
    }

    /// Notes that a call is sent: the first one begins the slow start.
    pub fn note_call(&self, now: Instant) {
        if self.first_call.load(Relaxed) == 0 {
            self.first_call.store(self.since_created(now).max(1), Relaxed);
        }
    }

    /// Counts a call in flight of this thread until the returned value is dropped.
    #[must_use]
    pub fn begin_call(&self) -> OwnCall<'_> {
        self.own.fetch_add(1, Relaxed);
        OwnCall(self)
    }

    fn since_created(&self, now: Instant) -> u64 {
        let age = now.saturating_duration_since(self.created);
        u64::try_from(age.as_nanos()).unwrap_or(u64::MAX)
    }
}

/// A call in flight of one thread.
#[derive(Debug)]
pub struct OwnCall<'a>(&'a Load);

impl Drop for OwnCall<'_> {
    fn drop(&mut self) {
        self.0.own.fetch_sub(1, Relaxed);
    }
}

#[expect(clippy::cast_precision_loss, reason = "a latency in ns needs no last digit")]
fn nanos(duration: Duration) -> f64 {
    duration.as_nanos() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn load() -> Load {
        Load::new(&config::Client::default(), Limit::new(100, None))
    }

    fn cost_ms(load: &Load) -> f64 {
        load.cost(Rpc::GetFeeds, Instant::now()) / 1e6
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_answer_counts_at_once_and_fades() {
        let load = load();
        tokio::time::advance(MS).await;
        load.observe(Rpc::GetFeeds, 2 * MS, false);
        load.observe(Rpc::GetFeeds, 400 * MS, false);
        assert!((cost_ms(&load) - 400.0).abs() < 1.0);
        // fast answers bring it down gradually
        for _ in 0..100 {
            tokio::time::advance(10 * MS).await;
            load.observe(Rpc::GetFeeds, 2 * MS, false);
        }
        let after = cost_ms(&load);
        assert!((140.0..160.0).contains(&after), "{after} after 1 s, want 400/e");
        // without calls too, down to the least latency
        tokio::time::advance(Duration::from_secs(6)).await;
        assert!((cost_ms(&load) - 1.0).abs() < 0.001);
        tokio::time::advance(Duration::from_secs(1_000_000)).await;
        assert!((cost_ms(&load) - 1.0).abs() < 0.001);
        assert!(load.latency(Rpc::GetFeeds).unwrap() < MS);
        assert_eq!(load.latency(Rpc::CreateFeed), None);
    }

    #[tokio::test(start_paused = true)]
    async fn fast_failures_cost_their_share() {
        let load = load();
        // one in two fails within 1 ms
        for n in 0..2000 {
            tokio::time::advance(5 * MS).await;
            load.observe(Rpc::GetFeeds, MS, n % 2 == 0);
        }
        let half = cost_ms(&load);
        assert!((2300.0..2700.0).contains(&half), "{half}, want half of 5 s");
        // other rpcs are not affected
        assert!((load.cost(Rpc::CreateFeed, Instant::now()) / 1e6 - 1.0).abs() < 0.001);
        tokio::time::advance(Duration::from_secs(9)).await;
        assert!((cost_ms(&load) - 1.0).abs() < 0.5);
        // one failure in a thousand hardly counts
        for n in 0..20_000 {
            tokio::time::advance(5 * MS).await;
            load.observe(Rpc::GetFeeds, MS, n % 1000 == 0);
        }
        let rare = cost_ms(&load);
        assert!(rare < 30.0, "{rare}");
    }

    #[tokio::test(start_paused = true)]
    async fn calls_in_flight_multiply_the_cost() {
        let in_flight = Limit::new(100, None);
        let load = Load::new(&config::Client::default(), in_flight.clone());
        let permits = in_flight.acquire(9);
        load.observe(Rpc::CreateFeed, MS, false);
        assert!((cost_ms(&load) - 10.0).abs() < 0.001);
        drop(permits);
        assert!((cost_ms(&load) - 1.0).abs() < 0.001);
    }

    /// Else it would look faster than any that answer, and get more and more calls.
    #[tokio::test(start_paused = true)]
    async fn one_that_has_not_answered_yet_gets_its_second_call_last() {
        let in_flight = Limit::new(100, None);
        let load = Load::new(&config::Client::default(), in_flight.clone());
        assert!((cost_ms(&load) - 1.0).abs() < 0.001, "its first call is not held back");
        let call = (in_flight.acquire(1), load.begin_call());
        assert!(cost_ms(&load) >= 5000.0);
        tokio::time::advance(MS).await;
        load.observe(Rpc::CreateFeed, MS, false);
        assert!((cost_ms(&load) - 2.0).abs() < 0.001);
        load.reset();
        assert!(cost_ms(&load) >= 5000.0);
        // a call that ends without an outcome, such as one that could not be sent, does not count for ever
        drop(call);
        assert!((cost_ms(&load) - 1.0).abs() < 0.001);
    }

    /// Else a thread that has just connected would not call an instance as long as another thread has calls there.
    #[tokio::test(start_paused = true)]
    async fn the_calls_of_another_thread_do_not_hold_back_the_first_one_of_this() {
        let in_flight = Limit::new(100, None);
        let [one, other] = [(); 2].map(|()| Load::new(&config::Client::default(), in_flight.clone()));
        let calls = (in_flight.acquire(3), one.begin_call());
        assert!(cost_ms(&one) >= 5000.0, "it waits for its answer");
        assert!((cost_ms(&other) - 4.0).abs() < 0.001, "but the calls count");
        let own = (in_flight.acquire(1), other.begin_call());
        assert!(cost_ms(&other) >= 5000.0);
        drop(own);
        assert!((cost_ms(&other) - 4.0).abs() < 0.001);
        drop(calls);
    }

    #[tokio::test(start_paused = true)]
    async fn the_share_in_slow_start_grows_from_the_first_call() {
        let load = load();
        let share = || load.slow_start_share(Instant::now());
        assert_eq!(share(), None, "its first call is not held back");
        load.note_call(Instant::now());
        assert_eq!(share(), Some(SLOW_START_FIRST_SHARE));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!((share().unwrap() - 0.5).abs() < 0.01);
        tokio::time::advance(Duration::from_millis(1001)).await;
        assert_eq!(share(), None);
        load.reset();
        load.note_call(Instant::now());
        assert_eq!(share(), Some(SLOW_START_FIRST_SHARE));
    }

    #[tokio::test(start_paused = true)]
    async fn observations_stay_finite() {
        let load = load();
        for took in [Duration::ZERO, Duration::MAX, Duration::ZERO] {
            load.observe(Rpc::GetFeeds, took, true);
            assert!(load.cost(Rpc::GetFeeds, Instant::now()).is_finite());
            assert!(load.latency(Rpc::GetFeeds).is_some());
        }
    }
}
