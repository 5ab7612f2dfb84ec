//! The circuit breakers of one instance: one state machine for each rpc, so that a fault in one method does not
//! take the others away. A breaker is closed, open after too many failures, or half-open while one call, the
//! probe, tries the instance again.
//!
//! - It opens after a number of consecutive failures, or when too small a share of the answers of the last 10 s
//!   is good.
//! - It stays open for 1 s at first, then twice as long each time up to 60 s, with jitter. After that the next
//!   call is the probe; until the probe ends no other call is let through. A good answer closes the breaker.
//! - Stragglers, calls that began before the last change of state, do not count.
//! - At most half of a service's instances, rounded down, are open for an rpc (compare the panic threshold of
//!   Finagle and Envoy): the breaker of one more stays closed. The breaker of the only instance is opened by
//!   consecutive failures alone, and for at most 2 s: a share of bad answers must not stop all calls, but an
//!   instance that fails every call gets a rest.
//! - Failures to connect do not count: an instance without a connection is not picked at all. A connection that
//!   breaks counts once, however many calls were in flight on it.
//! - An instance that registers anew, or that answers under a new id, begins with closed breakers.
//!
//! Sources: linkerd2-proxy (two triggers, one probe, backoff), Finagle (failure accrual), Envoy (ejection limit).

use std::sync::atomic::Ordering::{AcqRel, Acquire, Release};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::api::rpc::{PerRpc, Rpc};
use crate::client::balance::breaker_state::{BreakerState, Transitions};
use crate::client::balance::ejection::{EjectionLimit, Verdict};
use crate::config;

/// Time over which the share of good answers is taken.
const WINDOW_SECONDS: usize = 10;
/// After it stayed closed for this long a breaker opens for the shortest time again.
const BACKOFF_RESET_AFTER: Duration = Duration::from_secs(10);
/// Longest time for which the breaker of the only instance stays open: while it is, every call fails.
const MAX_OPEN_SOLE_INSTANCE: Duration = Duration::from_secs(2);
/// Least time between two requests to open that are refused: each counts all instances of the service.
const EJECTION_RETRY: Duration = Duration::from_millis(100);

const CLOSED: u8 = 0;
const OPEN: u8 = 1;
const HALF_OPEN: u8 = 2;

/// The settings of all breakers of a client.
#[derive(Clone, Copy, Debug)]
pub struct BreakerSettings {
    consecutive_failures: u32,
    success_percent: u32,
    min_calls: u32,
    backoff: Duration,
    cap: Duration,
}

impl From<&config::Client> for BreakerSettings {
    fn from(client: &config::Client) -> Self {
        Self {
            consecutive_failures: client.breaker_failures,
            success_percent: client.breaker_success_percent,
            min_calls: client.breaker_min_calls,
            backoff: client.breaker_backoff,
            cap: client.breaker_backoff_cap.max(client.breaker_backoff),
        }
    }
}

impl BreakerSettings {
    /// Returns the same settings with a backoff of at most `cap`.
    #[must_use]
    pub fn capped(self, cap: Duration) -> Self {
        Self { cap: self.cap.min(cap), ..self }
    }
}

/// The breakers of one instance, by rpc.
#[derive(Debug)]
pub struct Breakers {
    settings: BreakerSettings,
    created: Instant,
    ejection: Arc<EjectionLimit>,
    transitions: Transitions,
    by_rpc: PerRpc<Breaker>,
}

/// The breaker of one rpc. The atomics can be read without the lock, and are changed only under it.
#[derive(Debug, Default)]
struct Breaker {
    state: AtomicU8,
    /// When the probe is due while it is open, ns from `created`.
    probe_at: AtomicU64,
    /// True if it was opened by consecutive failures, not by the share of good answers alone.
    opened_by_consecutive_failures: AtomicBool,
    /// Counts the changes of state.
    generation: AtomicU64,
    history: Mutex<History>,
}

#[derive(Debug, Default)]
struct History {
    consecutive_failures: u32,
    window: Window,
    /// How often it opened without staying closed for long in between.
    backoff_level: u32,
    opened_at: Option<Instant>,
    /// When it last opened after it had been closed.
    tripped_at: Option<Instant>,
    closed_at: Option<Instant>,
    /// When it was last refused to open.
    refused_at: Option<Instant>,
    /// The number of the last connection whose break was counted.
    broken_connection: u64,
}

/// Permission to make one call. It must end with [`Breakers::record`] or [`Breakers::release`].
#[derive(Debug)]
pub struct BreakerPermit {
    rpc: Rpc,
    generation: u64,
    probe: bool,
}

impl Breakers {
    /// Returns closed breakers.
    #[must_use]
    pub fn new(settings: BreakerSettings, ejection: Arc<EjectionLimit>, transitions: Transitions) -> Self {
        Self { settings, created: Instant::now(), ejection, transitions, by_rpc: PerRpc::default() }
    }

    /// Returns what the breaker of an rpc does with the next call.
    #[must_use]
    pub fn state(&self, rpc: Rpc, now: Instant) -> BreakerState {
        let breaker = &self.by_rpc[rpc];
        match breaker.state.load(Acquire) {
            CLOSED => BreakerState::Closed,
            OPEN if breaker.probe_at.load(Acquire) <= self.since_created(now) => BreakerState::ProbeDue,
            OPEN => BreakerState::Open,
            _ => BreakerState::HalfOpen,
        }
    }

    /// Returns when the breaker of an rpc lets a probe through.
    #[must_use]
    pub fn probe_at(&self, rpc: Rpc) -> Instant {
        self.created + Duration::from_nanos(self.by_rpc[rpc].probe_at.load(Acquire))
    }

    /// Returns true if the breaker of an rpc was last opened by consecutive failures: only then may it keep
    /// calls from the only instance.
    #[must_use]
    pub fn opened_by_consecutive_failures(&self, rpc: Rpc) -> bool {
        self.by_rpc[rpc].opened_by_consecutive_failures.load(Acquire)
    }

    /// Returns how long the breaker of an rpc has been open or half-open; `None` while it is closed.
    #[must_use]
    pub fn open_for(&self, rpc: Rpc, now: Instant) -> Option<Duration> {
        let tripped = self.by_rpc[rpc].lock().tripped_at?;
        (self.state(rpc, now) != BreakerState::Closed).then(|| now.saturating_duration_since(tripped))
    }

    /// Brings the probe of an open breaker forward, because its instance is the only one.
    pub fn bring_probe_forward(&self, rpc: Rpc) {
        let breaker = &self.by_rpc[rpc];
        let history = breaker.lock();
        if let Some(opened) = history.opened_at {
            breaker.probe_at.fetch_min(self.since_created(opened + MAX_OPEN_SOLE_INSTANCE), AcqRel);
        }
    }

    /// Lets a call through or returns `None`. With `force` every call is let through; the outcome of one that
    /// the state alone would have refused does not count.
    pub fn admit(&self, rpc: Rpc, force: bool) -> Option<BreakerPermit> {
        let breaker = &self.by_rpc[rpc];
        let permit = |probe| BreakerPermit { rpc, generation: breaker.generation.load(Acquire), probe };
        let now = Instant::now();
        match self.state(rpc, now) {
            BreakerState::Closed => Some(permit(false)),
            BreakerState::ProbeDue => {
                let _history = breaker.lock();
                // another call may have become the probe
                if self.state(rpc, now) == BreakerState::ProbeDue {
                    breaker.change_state(HALF_OPEN);
                    self.transitions.count(rpc, BreakerState::HalfOpen);
                    return Some(permit(true));
                }
                force.then(|| permit(false))
            }
            BreakerState::Open | BreakerState::HalfOpen => force.then(|| permit(false)),
        }
    }

    /// Records the outcome of a call. `broken_connection` is the number of the connection that broke under it.
    /// Returns true if this closed the breaker.
    pub fn record(&self, permit: &BreakerPermit, failed: bool, broken_connection: Option<u64>) -> bool {
        let breaker = &self.by_rpc[permit.rpc];
        let mut history = breaker.lock();
        if breaker.generation.load(Acquire) != permit.generation {
            return false; // a straggler
        }
        match (breaker.state.load(Acquire), failed) {
            (CLOSED, _) => self.count(permit.rpc, breaker, &mut history, failed, broken_connection),
            (HALF_OPEN, true) if permit.probe => {
                history.backoff_level = history.backoff_level.saturating_add(1);
                history.opened_at = Some(Instant::now());
                self.open(permit.rpc, breaker, self.open_time(history.backoff_level));
            }
            (HALF_OPEN, false) if permit.probe => {
                history.consecutive_failures = 0;
                history.window = Window::default();
                history.closed_at = Some(Instant::now());
                breaker.change_state(CLOSED);
                self.transitions.count(permit.rpc, BreakerState::Closed);
                return true;
            }
            _ => {}
        }
        false
    }

    /// Records that a call says nothing about the instance: its caller gave it up, or it was never sent. If it was
    /// the probe, the next call is.
    pub fn release(&self, permit: &BreakerPermit) {
        self.release_for(permit, Duration::ZERO);
    }

    /// Records that a call says nothing about the instance, because another attempt was faster. If it was the probe,
    /// the next one is due after the shortest backoff: else every call would begin as a probe that is too slow.
    pub fn release_later(&self, permit: &BreakerPermit) {
        self.release_for(permit, self.open_time(0));
    }

    fn release_for(&self, permit: &BreakerPermit, wait: Duration) {
        let breaker = &self.by_rpc[permit.rpc];
        let _history = breaker.lock();
        if permit.probe && breaker.generation.load(Acquire) == permit.generation {
            breaker.probe_at.store(self.since_created(Instant::now() + wait), Release);
            breaker.change_state(OPEN);
        }
    }

    /// Closes every breaker: another process serves at the address now.
    pub fn reset(&self) {
        for (rpc, breaker) in self.by_rpc.iter() {
            let mut history = breaker.lock();
            *history = History::default();
            if breaker.state.load(Acquire) != CLOSED {
                breaker.change_state(CLOSED);
                self.transitions.count(rpc, BreakerState::Closed);
            }
        }
    }

    fn count(
        &self,
        rpc: Rpc,
        breaker: &Breaker,
        history: &mut History,
        failed: bool,
        broken_connection: Option<u64>,
    ) {
        if let Some(connection) = broken_connection {
            if history.broken_connection == connection {
                return;
            }
            history.broken_connection = connection;
        }
        let now = Instant::now();
        let (good, all) = history.window.add(now.saturating_duration_since(self.created).as_secs(), !failed);
        if !failed {
            history.consecutive_failures = 0;
            return;
        }
        history.consecutive_failures = history.consecutive_failures.saturating_add(1);
        let settings = &self.settings;
        let consecutive = history.consecutive_failures >= settings.consecutive_failures;
        let percent = u64::from(settings.success_percent);
        let share = all >= settings.min_calls && u64::from(good) * 100 < percent * u64::from(all);
        let refused_lately =
            history.refused_at.is_some_and(|at| now.saturating_duration_since(at) < EJECTION_RETRY);
        if !(consecutive || share) || refused_lately {
            return;
        }
        let reset =
            history.closed_at.is_none_or(|at| now.saturating_duration_since(at) >= BACKOFF_RESET_AFTER);
        let level = if reset { 0 } else { history.backoff_level.saturating_add(1) };
        let verdict = self.ejection.request(rpc, |verdict| {
            if verdict == Verdict::Allowed || verdict == Verdict::SoleInstance && consecutive {
                history.backoff_level = level;
                (history.opened_at, history.tripped_at) = (Some(now), Some(now));
                breaker.opened_by_consecutive_failures.store(consecutive, Release);
                self.open(rpc, breaker, self.open_time(level));
            }
        });
        history.refused_at = (verdict == Verdict::Refused).then_some(now);
    }

    /// Opens a breaker; the caller holds its lock.
    fn open(&self, rpc: Rpc, breaker: &Breaker, wait: Duration) {
        let probe_at = self.since_created(Instant::now() + wait);
        breaker.probe_at.store(probe_at, Release);
        breaker.change_state(OPEN);
        self.transitions.count(rpc, BreakerState::Open);
    }

    /// Returns how long a breaker stays open at a backoff level. With a backoff of 1 s and a cap of 60 s:
    /// 1-1.5 s at level 0, 2-3 s at level 1, ... 60 s.
    fn open_time(&self, level: u32) -> Duration {
        let step = self.settings.backoff.saturating_mul(2_u32.saturating_pow(level.min(16)));
        step.mul_f64(crate::random::range(1.0..=1.5)).min(self.settings.cap)
    }

    fn since_created(&self, now: Instant) -> u64 {
        let age = now.saturating_duration_since(self.created);
        u64::try_from(age.as_nanos()).unwrap_or(u64::MAX)
    }
}

impl Breaker {
    fn lock(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state; the caller holds the lock.
    fn change_state(&self, state: u8) {
        self.generation.fetch_add(1, AcqRel);
        self.state.store(state, Release);
    }
}

/// Good and all answers of the last 10 s, by second.
#[derive(Debug, Default)]
struct Window {
    seconds: [(u32, u32); WINDOW_SECONDS],
    /// The second that was counted last.
    last: u64,
}

impl Window {
    /// Counts an answer; returns the sums, good ones first.
    fn add(&mut self, second: u64, good: bool) -> (u32, u32) {
        let length = WINDOW_SECONDS as u64;
        let index = |second: u64| usize::try_from(second % length).unwrap_or(0);
        for passed in (self.last + 1..=second).rev().take(WINDOW_SECONDS) {
            if let Some(bucket) = self.seconds.get_mut(index(passed)) {
                *bucket = (0, 0);
            }
        }
        self.last = self.last.max(second);
        if let Some((goods, all)) = self.seconds.get_mut(index(second)) {
            *goods = goods.saturating_add(u32::from(good));
            *all = all.saturating_add(1);
        }
        let sum = |a: (u32, u32), b: &(u32, u32)| (a.0.saturating_add(b.0), a.1.saturating_add(b.1));
        self.seconds.iter().fold((0, 0), sum)
    }
}

#[cfg(test)]
#[path = "breaker_tests.rs"]
mod tests;
