//! Whether an instance gets calls of a method: closed, open after too many failures, half-open while one
//! call tries it again. One state machine for each method of each instance, so that what is broken in one
//! method does not take the others away.
//!
//! - A run of failures opens it, or a share of good answers in the last 10 s that is too small.
//! - Open for 1 s at first, then twice as long each time up to 60 s, with jitter. After that the first call
//!   that comes is the probe; while it is out no other is let through. A good answer closes the breaker.
//! - Stragglers, calls from before the last change, do not count.
//! - At most half of a service's instances are open for a method, rounded down (Finagle's and Envoy's panic
//!   threshold): one more stays closed. The only instance is opened by a run of failures alone and for at most
//!   2 s: an odd answer must not stop everything, but a dead instance should be spared the load.
//! - Connections that cannot be opened are not its business (see [`crate::client::transport::pool`]); one that breaks counts
//!   once, however many calls break with it.
//! - An instance that registers anew, or answers under a new id, begins with closed breakers.
//!
//! Sources: linkerd2-proxy (two triggers, one probe, backoff), Finagle (failure accrual), Envoy (ejection cap).

use std::sync::atomic::Ordering::{AcqRel, Acquire, Release};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus::IntCounter;
use tokio::time::Instant;

use crate::api::rpc::{PerRpc, Rpc};
use crate::client::balance::ejection::{Ejection, Verdict};
use crate::config;

/// Time over which the share of good answers is taken.
const WINDOW_SECONDS: usize = 10;
/// A breaker that stayed closed so long was right to close: the next backoff begins with the shortest.
const STEADY: Duration = Duration::from_secs(10);
/// Longest time that the only instance is spared.
const ALONE: Duration = Duration::from_secs(2);
/// How often at most a breaker that may not open asks again.
const ASK: Duration = Duration::from_millis(100);

/// What a breaker does with the next call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Lets it through.
    Closed,
    /// Lets nothing through.
    Open,
    /// Lets one call through, the probe.
    Due,
    /// Waits for the probe.
    HalfOpen,
}

impl State {
    /// Returns the word for it in `/status` and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open | Self::Due => "open",
            Self::HalfOpen => "half_open",
        }
    }
}

const CLOSED: u8 = 0;
const OPEN: u8 = 1;
const HALF_OPEN: u8 = 2;

/// The numbers of all breakers of a client.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    failures: u32,
    success_percent: u32,
    min_calls: u32,
    backoff: Duration,
    cap: Duration,
}

impl From<&config::Client> for Settings {
    fn from(client: &config::Client) -> Self {
        Self {
            failures: client.breaker_failures,
            success_percent: client.breaker_success_percent,
            min_calls: client.breaker_min_calls,
            backoff: client.breaker_backoff,
            cap: client.breaker_backoff_cap.max(client.breaker_backoff),
        }
    }
}

impl Settings {
    /// Returns the same with a shorter longest backoff.
    pub(in crate::client) fn capped(self, cap: Duration) -> Self {
        Self { cap: self.cap.min(cap), ..self }
    }
}

/// The breakers of one instance, by method.
#[derive(Debug)]
pub struct Breakers {
    settings: Settings,
    born: Instant,
    ejection: Arc<Ejection>,
    transitions: Arc<Transitions>,
    methods: PerRpc<Breaker>,
}

/// One method's. The atomics are for those who only look; they change under the lock.
#[derive(Debug, Default)]
struct Breaker {
    state: AtomicU8,
    /// When the probe is due while open, ns from `born`.
    due: AtomicU64,
    /// It was opened by a run of failures, not by their share alone.
    run: AtomicBool,
    /// Counts the changes of state.
    generation: AtomicU64,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Failures in a row.
    run: u32,
    window: Window,
    /// How often it opened without a steady time between.
    level: u32,
    opened_at: Option<Instant>,
    closed_at: Option<Instant>,
    /// When it was last refused to open.
    asked_at: Option<Instant>,
    /// The last connection whose break was counted.
    broken: u64,
}

/// Leave to make one call. Its outcome must be told by [`Breakers::record`] or [`Breakers::release`].
#[derive(Debug)]
pub struct Permit {
    rpc: Rpc,
    generation: u64,
    probe: bool,
}

impl Breakers {
    /// Returns closed breakers.
    #[must_use]
    pub fn new(settings: Settings, ejection: Arc<Ejection>, transitions: Arc<Transitions>) -> Self {
        Self { settings, born: Instant::now(), ejection, transitions, methods: PerRpc::default() }
    }

    /// Returns what the breaker of an rpc does with the next call.
    #[must_use]
    pub fn state(&self, rpc: Rpc, now: Instant) -> State {
        let breaker = &self.methods[rpc];
        match breaker.state.load(Acquire) {
            CLOSED => State::Closed,
            OPEN if breaker.due.load(Acquire) <= self.since_born(now) => State::Due,
            OPEN => State::Open,
            _ => State::HalfOpen,
        }
    }

    /// Returns when the breaker of an rpc lets a probe through; the earlier the less bad.
    #[must_use]
    pub fn due(&self, rpc: Rpc) -> Instant {
        self.born + Duration::from_nanos(self.methods[rpc].due.load(Acquire))
    }

    /// Returns true if an open breaker was opened by a run of failures, which is what even the only instance
    /// is spared for.
    #[must_use]
    pub fn opened_by_run(&self, rpc: Rpc) -> bool {
        self.methods[rpc].run.load(Acquire)
    }

    /// Brings the probe of an open breaker forward: its instance is the only one.
    pub fn hasten(&self, rpc: Rpc) {
        let breaker = &self.methods[rpc];
        let inner = breaker.lock();
        if let Some(opened) = inner.opened_at {
            breaker.due.fetch_min(self.since_born(opened + ALONE), AcqRel);
        }
    }

    /// Asks for leave to make a call. `forced` gets it in any state, but does not count.
    pub fn admit(&self, rpc: Rpc, forced: bool) -> Option<Permit> {
        let breaker = &self.methods[rpc];
        let permit = |probe| Permit { rpc, generation: breaker.generation.load(Acquire), probe };
        let now = Instant::now();
        match self.state(rpc, now) {
            State::Closed => Some(permit(false)),
            State::Due => {
                let _inner = breaker.lock();
                // another call may have been faster
                if self.state(rpc, now) == State::Due {
                    breaker.change(HALF_OPEN);
                    self.transitions.note(rpc, State::HalfOpen);
                    return Some(permit(true));
                }
                forced.then(|| permit(false))
            }
            State::Open | State::HalfOpen => forced.then(|| permit(false)),
        }
    }

    /// Takes note of a call's outcome. `broken` is the number of the connection that broke under it.
    /// Returns true if this closed the breaker.
    pub fn record(&self, permit: &Permit, failed: bool, broken: Option<u64>) -> bool {
        let breaker = &self.methods[permit.rpc];
        let mut inner = breaker.lock();
        if breaker.generation.load(Acquire) != permit.generation {
            return false; // a straggler
        }
        match (breaker.state.load(Acquire), failed) {
            (CLOSED, _) => self.count(permit.rpc, breaker, &mut inner, failed, broken),
            (HALF_OPEN, true) if permit.probe => {
                inner.level = inner.level.saturating_add(1);
                inner.opened_at = Some(Instant::now());
                self.open(permit.rpc, breaker, self.wait(inner.level));
            }
            (HALF_OPEN, false) if permit.probe => {
                inner.run = 0;
                inner.window = Window::default();
                inner.closed_at = Some(Instant::now());
                breaker.change(CLOSED);
                self.transitions.note(permit.rpc, State::Closed);
                return true;
            }
            _ => {}
        }
        false
    }

    /// Takes note of a call that says nothing of the instance: given up by the caller, or never sent.
    pub fn release(&self, permit: &Permit) {
        let breaker = &self.methods[permit.rpc];
        let _inner = breaker.lock();
        if permit.probe && breaker.generation.load(Acquire) == permit.generation {
            // the next call is the probe
            breaker.due.store(self.since_born(Instant::now()), Release);
            breaker.change(OPEN);
        }
    }

    /// Closes every breaker: there is another process now.
    pub fn reset(&self) {
        for (rpc, breaker) in self.methods.iter() {
            let mut inner = breaker.lock();
            *inner = Inner::default();
            if breaker.state.load(Acquire) != CLOSED {
                breaker.change(CLOSED);
                self.transitions.note(rpc, State::Closed);
            }
        }
    }

    fn count(&self, rpc: Rpc, breaker: &Breaker, inner: &mut Inner, failed: bool, broken: Option<u64>) {
        if let Some(connection) = broken {
            if inner.broken == connection {
                return;
            }
            inner.broken = connection;
        }
        let now = Instant::now();
        let (good, all) = inner.window.add(now.saturating_duration_since(self.born).as_secs(), !failed);
        if !failed {
            inner.run = 0;
            return;
        }
        inner.run = inner.run.saturating_add(1);
        let settings = &self.settings;
        let run = inner.run >= settings.failures;
        let percent = u64::from(settings.success_percent);
        let share = all >= settings.min_calls && u64::from(good) * 100 < percent * u64::from(all);
        let asked = inner.asked_at.is_some_and(|at| now.saturating_duration_since(at) < ASK);
        if !(run || share) || asked {
            return;
        }
        let steady = inner.closed_at.is_none_or(|at| now.saturating_duration_since(at) >= STEADY);
        let level = if steady { 0 } else { inner.level.saturating_add(1) };
        let verdict = self.ejection.ask(rpc, |verdict| {
            if verdict == Verdict::Open || verdict == Verdict::Alone && run {
                inner.level = level;
                inner.opened_at = Some(now);
                breaker.run.store(run, Release);
                self.open(rpc, breaker, self.wait(level));
            }
        });
        inner.asked_at = (verdict == Verdict::Refused).then_some(now);
    }

    /// Opens a breaker whose lock is held.
    fn open(&self, rpc: Rpc, breaker: &Breaker, wait: Duration) {
        let due = self.since_born(Instant::now() + wait);
        breaker.due.store(due, Release);
        breaker.change(OPEN);
        self.transitions.note(rpc, State::Open);
    }

    /// Returns how long it stays open for the `level`-th time: with 1 s, 60 s: 1-1.5 s, 2-3 s, ... 60 s.
    fn wait(&self, level: u32) -> Duration {
        let step = self.settings.backoff.saturating_mul(2_u32.saturating_pow(level.min(16)));
        step.mul_f64(crate::random::range(1.0..=1.5)).min(self.settings.cap)
    }

    fn since_born(&self, now: Instant) -> u64 {
        let age = now.saturating_duration_since(self.born);
        u64::try_from(age.as_nanos()).unwrap_or(u64::MAX)
    }
}

impl Breaker {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, state: u8) {
        self.generation.fetch_add(1, AcqRel);
        self.state.store(state, Release);
    }
}

/// One value for each state that is reported: [`State::Due`] is reported as open.
#[derive(Clone, Debug, Default)]
pub struct PerState<T> {
    closed: T,
    open: T,
    half_open: T,
}

impl<T> PerState<T> {
    /// Returns the values that `value` gives.
    pub fn from_fn(mut value: impl FnMut(State) -> T) -> Self {
        Self { closed: value(State::Closed), open: value(State::Open), half_open: value(State::HalfOpen) }
    }

    /// Returns the value of a state.
    pub const fn of(&self, state: State) -> &T {
        match state {
            State::Closed => &self.closed,
            State::Open | State::Due => &self.open,
            State::HalfOpen => &self.half_open,
        }
    }

    /// Returns the value of a state, to be changed.
    pub const fn of_mut(&mut self, state: State) -> &mut T {
        match state {
            State::Closed => &mut self.closed,
            State::Open | State::Due => &mut self.open,
            State::HalfOpen => &mut self.half_open,
        }
    }
}

/// `client_breaker_transitions_total` of one service. An rpc of another service has no counters.
#[derive(Debug, Default)]
pub struct Transitions(PerRpc<Option<PerState<IntCounter>>>);

impl Transitions {
    /// Returns these counters.
    #[must_use]
    pub const fn new(counters: PerRpc<Option<PerState<IntCounter>>>) -> Self {
        Self(counters)
    }

    /// Counts a change to a state.
    fn note(&self, rpc: Rpc, to: State) {
        if let Some(counters) = &self.0[rpc] {
            counters.of(to).inc();
        }
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
