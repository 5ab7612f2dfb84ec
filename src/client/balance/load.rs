//! How loaded an instance is in the balancer's eyes, and the layer that measures it.
//!
//! For each method a peak EWMA of the latency (a slower answer counts in full at once, a faster one bit by
//! bit) plus a penalty for the share of recent answers that were failures or pushback, times the calls in
//! flight plus one. All of it fades with time, so an instance that gets no calls is tried again. By method,
//! since an instance that is bad in one may be as good as any in the others.
//!
//! Sources: Finagle and tower (`PeakEwma`), linkerd2-proxy (penalty), Envoy (slow start).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::Instant;

use crate::api::rpc::{PerRpc, Rpc};
use crate::client::balance::in_flight::InFlight;
use crate::client::call::{Call, FAIR, Outcome, Path, Reach, layer};
use crate::config;
use crate::telemetry::metrics::RpcDurations;

/// Differences below this are noise; calls in flight and chance decide then.
const FLOOR: f64 = 1_000_000.0;
/// The share of calls that an instance in slow start begins with (Envoy).
const FIRST_SHARE: f64 = 0.1;

/// The load of one instance.
#[derive(Debug)]
pub struct Load {
    /// ns in which an observation fades to 1/e.
    decay: f64,
    /// ns for an instance that only fails.
    penalty: f64,
    slow_start: Duration,
    born: Instant,
    in_flight: Arc<InFlight>,
    methods: PerRpc<Method>,
    /// When the first call came since the instance is there, ns from `born`; 0 for not yet.
    first: AtomicU64,
}

/// One method's averages. Two calls that end at once may lose one observation; the next makes up for it.
#[derive(Debug, Default)]
struct Method {
    /// ns, as the bits of an f64.
    latency: AtomicU64,
    /// Share of failures, 0 to 1, as the bits of an f64.
    failures: AtomicU64,
    /// When both were last changed, ns from `born`; 0 for never.
    at: AtomicU64,
}

impl Load {
    /// Returns the load of an instance that has not been called yet.
    #[must_use]
    pub fn new(settings: &config::Client, in_flight: Arc<InFlight>) -> Self {
        Self {
            decay: nanos(settings.ewma_decay).max(1.0),
            penalty: nanos(settings.penalty),
            slow_start: settings.slow_start,
            born: Instant::now(),
            in_flight,
            methods: PerRpc::default(),
            first: AtomicU64::new(0),
        }
    }

    /// Returns what another call of this rpc would cost here, in ns; the smaller the better.
    #[must_use]
    pub fn cost(&self, rpc: Rpc, now: Instant) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let calls = (self.in_flight.now() + 1) as f64;
        let (latency, failures) = self.averages(rpc, now);
        self.penalty.mul_add(failures, latency).max(FLOOR) * calls
    }

    /// Returns the latency that is expected of an rpc, without penalty; `None` if nothing is known.
    #[must_use]
    pub fn latency(&self, rpc: Rpc) -> Option<Duration> {
        let known = self.methods[rpc].at.load(Relaxed) > 0;
        let (latency, _) = self.averages(rpc, Instant::now());
        known.then(|| Duration::from_secs_f64((latency / 1e9).clamp(0.0, 1e6)))
    }

    /// Returns the share of recent answers to an rpc that were failures or pushback.
    #[must_use]
    pub fn failures(&self, rpc: Rpc) -> f64 {
        self.averages(rpc, Instant::now()).1
    }

    fn averages(&self, rpc: Rpc, now: Instant) -> (f64, f64) {
        let method = &self.methods[rpc];
        let weight = self.weight(method, self.since_born(now));
        let latency = f64::from_bits(method.latency.load(Relaxed));
        let failures = f64::from_bits(method.failures.load(Relaxed));
        (latency * weight, failures * weight)
    }

    /// Returns how much of the averages is left, 0 to 1.
    fn weight(&self, method: &Method, now: u64) -> f64 {
        let at = method.at.load(Relaxed);
        if at == 0 {
            return 0.0;
        }
        #[expect(clippy::cast_precision_loss, reason = "an age in ns needs no last digit")]
        let age = now.saturating_sub(at) as f64;
        (-age / self.decay).exp()
    }

    /// Takes note of an answer.
    pub fn observe(&self, rpc: Rpc, took: Duration, failed: bool) {
        let method = &self.methods[rpc];
        let now = self.since_born(Instant::now()).max(1);
        let weight = self.weight(method, now);
        let (took, latency) = (nanos(took), f64::from_bits(method.latency.load(Relaxed)));
        // a failure may be fast: that is no merit
        let latency = if took >= latency {
            took
        } else if failed {
            latency * weight
        } else {
            latency.mul_add(weight, took * (1.0 - weight))
        };
        let failures = f64::from_bits(method.failures.load(Relaxed));
        let failures = failures.mul_add(weight, if failed { 1.0 - weight } else { 0.0 });
        method.latency.store(latency.to_bits(), Relaxed);
        method.failures.store(failures.clamp(0.0, 1.0).to_bits(), Relaxed);
        method.at.store(now, Relaxed);
    }

    /// Takes note of a call that was given up: its answer would have taken at least so long.
    fn observe_at_least(&self, rpc: Rpc, took: Duration) {
        let (latency, _) = self.averages(rpc, Instant::now());
        if nanos(took) > latency.max(FLOOR) {
            self.observe(rpc, took, false);
        }
    }

    /// Forgets what was observed of one rpc.
    pub fn forgive(&self, rpc: Rpc) {
        let method = &self.methods[rpc];
        method.at.store(0, Relaxed);
        method.latency.store(0, Relaxed);
        method.failures.store(0, Relaxed);
    }

    /// Starts over: the instance is new, or has returned.
    pub fn reset(&self) {
        for rpc in Rpc::ALL {
            self.forgive(rpc);
        }
        self.first.store(0, Relaxed);
    }

    /// Returns the share of its calls that an instance in slow start gets, `None` once it gets all. Its very
    /// first call is not held back: it starts the clock.
    #[must_use]
    pub fn ramp(&self, now: Instant) -> Option<f64> {
        let first = self.first.load(Relaxed);
        if first == 0 || self.slow_start.is_zero() {
            return None;
        }
        let age = Duration::from_nanos(self.since_born(now).saturating_sub(first));
        let share = age.as_secs_f64() / self.slow_start.as_secs_f64();
        (share < 1.0).then_some(share.max(FIRST_SHARE))
    }

    /// Returns true if it has been there for longer than the slow start.
    #[must_use]
    pub fn is_settled(&self, now: Instant) -> bool {
        self.first.load(Relaxed) > 0 && self.ramp(now).is_none()
    }

    /// Starts the clock of the slow start.
    pub fn begin(&self, now: Instant) {
        if self.first.load(Relaxed) == 0 {
            self.first.store(self.since_born(now).max(1), Relaxed);
        }
    }

    fn since_born(&self, now: Instant) -> u64 {
        let age = now.saturating_duration_since(self.born);
        u64::try_from(age.as_nanos()).unwrap_or(u64::MAX)
    }
}

#[expect(clippy::cast_precision_loss, reason = "a latency in ns needs no last digit")]
fn nanos(duration: Duration) -> f64 {
    duration.as_nanos() as f64
}

/// Measures the attempts at one instance, those too that are given up.
#[derive(Clone)]
pub struct Measure<S> {
    inner: S,
    load: Arc<Load>,
    attempts: Arc<RpcDurations>,
}

impl<S: Path> Measure<S> {
    /// Measures `inner`.
    pub const fn new(inner: S, load: Arc<Load>, attempts: Arc<RpcDurations>) -> Self {
        Self { inner, load, attempts }
    }

    async fn run(&self, call: Call) -> Outcome {
        let mut watch = Watch {
            load: self.load.clone(),
            attempts: self.attempts.clone(),
            rpc: call.rpc,
            begun: Instant::now(),
            patience: call.patience,
            ended: false,
        };
        let outcome = self.inner.send(call).await;
        watch.ended = true;
        let took = watch.begun.elapsed();
        let (code, failed) = match &outcome {
            Ok(_) => (tonic::Code::Ok, false),
            Err(failure) if failure.reach == Reach::Kept => return outcome, // no attempt
            Err(failure) => {
                let sheds = failure.pushback.is_some() || failure.reach == Reach::Unprocessed;
                let failed = sheds || failure.is_instances_fault(took);
                (failure.error.code.grpc(), failed)
            }
        };
        watch.load.observe(watch.rpc, took, failed);
        watch.attempts.observe(watch.rpc, code, took);
        outcome
    }
}
layer!(Measure<S>);

/// An attempt under way.
struct Watch {
    load: Arc<Load>,
    attempts: Arc<RpcDurations>,
    rpc: Rpc,
    begun: Instant,
    patience: Instant,
    ended: bool,
}

impl Drop for Watch {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        let (now, rpc) = (Instant::now(), self.rpc);
        let took = now.saturating_duration_since(self.begun);
        let code = if now >= self.patience && took >= FAIR {
            self.load.observe(rpc, took, true);
            tonic::Code::DeadlineExceeded
        } else {
            self.load.observe_at_least(rpc, took);
            if now >= self.patience { tonic::Code::DeadlineExceeded } else { tonic::Code::Cancelled }
        };
        self.attempts.observe(rpc, code, took);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn load() -> Load {
        Load::new(&config::Client::default(), Arc::default())
    }

    fn cost_ms(load: &Load) -> f64 {
        load.cost(Rpc::GetFeeds, Instant::now()) / 1e6
    }

    #[tokio::test(start_paused = true)]
    async fn a_peak_counts_at_once_and_fades() {
        let load = load();
        tokio::time::advance(MS).await;
        load.observe(Rpc::GetFeeds, 2 * MS, false);
        load.observe(Rpc::GetFeeds, 400 * MS, false);
        assert!((cost_ms(&load) - 400.0).abs() < 1.0);
        // fast answers bring it down bit by bit
        for _ in 0..100 {
            tokio::time::advance(10 * MS).await;
            load.observe(Rpc::GetFeeds, 2 * MS, false);
        }
        let after = cost_ms(&load);
        assert!((140.0..160.0).contains(&after), "{after} after 1 s, want 400/e");
        // without any call too, down to the floor and not to nothing
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
        // other methods are as good as ever
        assert!((load.cost(Rpc::CreateFeed, Instant::now()) / 1e6 - 1.0).abs() < 0.001);
        tokio::time::advance(Duration::from_secs(9)).await;
        assert!((cost_ms(&load) - 1.0).abs() < 0.5);
        // one in a thousand is hardly seen
        for n in 0..20_000 {
            tokio::time::advance(5 * MS).await;
            load.observe(Rpc::GetFeeds, MS, n % 1000 == 0);
        }
        let rare = cost_ms(&load);
        assert!(rare < 30.0, "{rare}");
    }

    #[tokio::test(start_paused = true)]
    async fn calls_in_flight_multiply() {
        let in_flight = Arc::new(InFlight::default());
        let load = Load::new(&config::Client::default(), in_flight.clone());
        let held: Vec<_> = (0..9).map(|_| in_flight.clone().begin()).collect();
        assert!((cost_ms(&load) - 10.0).abs() < 0.001);
        drop(held);
        assert!((cost_ms(&load) - 1.0).abs() < 0.001);
    }

    #[tokio::test(start_paused = true)]
    async fn a_newcomers_share_grows_from_its_first_call() {
        let load = load();
        let share = || load.ramp(Instant::now());
        assert_eq!(share(), None, "its first call is not held back");
        load.begin(Instant::now());
        assert_eq!(share(), Some(FIRST_SHARE));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!((share().unwrap() - 0.5).abs() < 0.01);
        tokio::time::advance(Duration::from_millis(1001)).await;
        assert_eq!(share(), None);
        load.reset();
        load.begin(Instant::now());
        assert_eq!(share(), Some(FIRST_SHARE));
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
