//! Whether another attempt of a call may be made, and when: by the policy of the rpc, the budgets, the server's
//! pushback and the deadline. [`crate::client::policy::retry`] has the rules as a table.

use std::sync::Arc;
use std::time::Duration;

use prometheus::IntCounter;

use crate::api::error::Code;
use crate::backoff::Backoff;
use crate::client::balance::discover::EndpointSet;
use crate::client::balance::pick::has_place_for_hedge;
use crate::client::call::{Call, Delivery, Failure, Pushback};
use crate::client::policy::budget::{Budget, Reserve};
use crate::client::policy::hedge::{self, Hedging};
use crate::client::transport::state::ConnectionState;
use crate::config;

/// Why another attempt is made; a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The one before was not sent.
    NotSent,
    /// The peer did not process the one before.
    Unprocessed,
    /// The one before ended with `Unavailable`.
    Unavailable,
    /// The one before ended with `Timeout`.
    Timeout,
    /// The server named a time for it.
    Pushback,
    /// The one before is slow and goes on.
    Hedge,
    /// The one before goes on, but its instance has left the view or does not answer a health check.
    Unresponsive,
}

impl Reason {
    /// Every reason.
    pub const ALL: [Self; 7] = [
        Self::NotSent,
        Self::Unprocessed,
        Self::Unavailable,
        Self::Timeout,
        Self::Pushback,
        Self::Hedge,
        Self::Unresponsive,
    ];

    /// Returns its label.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotSent => "not_sent",
            Self::Unprocessed => "unprocessed",
            Self::Unavailable => "unavailable",
            Self::Timeout => "timeout",
            Self::Pushback => "pushback",
            Self::Hedge => "hedge",
            Self::Unresponsive => "unresponsive",
        }
    }
}

/// Why another attempt that might be made is not; a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The call has had all its attempts, or it is itself part of a retry by a caller above.
    Attempts,
    /// The budget is used up.
    Budget,
    /// The next attempt would begin after the deadline.
    Deadline,
    /// The server does not want one.
    Pushback,
    /// The budget for hedges is used up.
    HedgeBudget,
}

impl Refusal {
    /// Every refusal.
    pub const ALL: [Self; 5] =
        [Self::Attempts, Self::Budget, Self::Deadline, Self::Pushback, Self::HedgeBudget];

    /// Returns its label.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Attempts => "attempts",
            Self::Budget => "budget",
            Self::Deadline => "deadline",
            Self::Pushback => "pushback",
            Self::HedgeBudget => "hedge_budget",
        }
    }
}

/// Retries that were granted and refused, by reason.
#[derive(Clone, Debug)]
pub struct RetryMetrics {
    /// `client_retry_granted_total`, in the order of [`Reason::ALL`].
    pub granted: [IntCounter; Reason::ALL.len()],
    /// `client_retry_refused_total`, in the order of [`Refusal::ALL`].
    pub refused: [IntCounter; Refusal::ALL.len()],
    /// `client_hedge_wins_total`.
    pub hedge_wins: IntCounter,
}

impl Instances for EndpointSet {
    fn have_place(&self, call: &Call) -> bool {
        has_place_for_hedge(call, &self.now().usable)
    }

    fn lost(&self, number: u64) -> bool {
        let now = self.now();
        let there = now.all.iter().find(|endpoint| endpoint.number == number);
        there.is_none_or(|endpoint| endpoint.state() == ConnectionState::Unresponsive)
    }
}

/// The attempts of one call so far.
pub struct Attempts {
    /// Attempts that were sent and have ended.
    sent: u32,
    /// Attempts that are under way beside the one that is judged.
    pub running: u32,
    /// Tries that were not sent, which are not attempts.
    not_sent: u32,
    /// Attempts that a handler may have executed.
    pub executed: u32,
    /// Attempts that callers above this call have made.
    inherited: u32,
    /// True once the call may not be hedged: it was, or a server asked for less.
    pub hedged: bool,
    backoff: Backoff,
}

impl Attempts {
    /// Returns true if no attempt has failed.
    #[must_use]
    pub const fn none_failed(&self) -> bool {
        self.sent == 0 && self.not_sent == 0
    }

    /// Returns how many attempts were made before the next one, those of callers above this call included.
    #[must_use]
    pub const fn before_next(&self) -> u32 {
        self.inherited.saturating_add(self.sent + self.running)
    }
}

/// Decides about further attempts of the calls to one service.
pub struct RetryPolicy {
    attempts: u32,
    backoff: Duration,
    budget: Arc<Budget>,
    /// When a slow attempt is raced.
    pub hedging: Hedging,
    metrics: RetryMetrics,
    /// The instances that are called.
    pub instances: Box<dyn Instances>,
}

/// What the policy asks of the instances of a service.
pub trait Instances: Send + Sync {
    /// Returns true if a second attempt of a call can be sent beside the first: to an instance that the call has not
    /// tried and whose breaker is closed.
    fn have_place(&self, call: &Call) -> bool;
    /// Returns true if the instance with a number has left the view or does not answer.
    fn lost(&self, number: u64) -> bool;
}

/// The fixed parts of the budgets of one service, which its callers on all threads share.
#[derive(Clone, Debug)]
pub struct Reserves {
    /// That of retries.
    pub retries: Arc<Reserve>,
    hedges: Arc<Reserve>,
}

impl Reserves {
    /// Returns full reserves.
    #[must_use]
    pub fn new(settings: &config::Client) -> Self {
        Self {
            retries: Reserve::per_second(settings.retry_budget_per_second),
            hedges: hedge::reserve(settings),
        }
    }
}

impl RetryPolicy {
    /// Returns the policy of one thread with a full budget, for calls to `instances`.
    #[must_use]
    pub fn new(
        settings: &config::Client,
        reserves: &Reserves,
        metrics: RetryMetrics,
        instances: impl Instances + 'static,
    ) -> Self {
        Self {
            attempts: settings.attempts,
            backoff: settings.retry_backoff,
            budget: Arc::new(Budget::new(settings.retry_budget_percent, reserves.retries.clone())),
            hedging: Hedging::new(settings, reserves.hedges.clone()),
            metrics,
            instances: Box::new(instances),
        }
    }

    /// Returns the budget of retries.
    #[must_use]
    pub fn budget(&self) -> Arc<Budget> {
        self.budget.clone()
    }

    /// Counts a call and returns its attempts, none so far.
    #[must_use]
    pub fn begin(&self, call: &Call) -> Attempts {
        self.budget.deposit();
        Attempts {
            sent: 0,
            running: 0,
            not_sent: 0,
            executed: 0,
            inherited: call.context.previous_attempts,
            hedged: false,
            backoff: Backoff::new(self.backoff, self.backoff.saturating_mul(4)),
        }
    }

    /// Returns true if the attempt that begins now may be raced.
    #[must_use]
    pub fn may_race(&self, call: &Call, made: &Attempts) -> bool {
        call.rpc.policy().hedge && !made.hedged && made.inherited == 0 && made.sent + 1 < self.attempts
    }

    /// Takes an attempt that races another one from the retry budget, and a hedge from its own as well. Returns false if
    /// there is nothing left.
    pub fn grant_race(&self, reason: Reason, made: &mut Attempts) -> bool {
        let hedge = reason == Reason::Hedge;
        if hedge && !self.hedging.withdraw() {
            self.refuse(Refusal::HedgeBudget);
            return false;
        }
        if !self.withdraw() {
            if hedge {
                self.hedging.give_back();
            }
            return false;
        }
        made.hedged = true;
        // the slow one may be executed as well
        made.executed += 1;
        self.grant(reason);
        true
    }

    /// Counts a call that a hedge has answered first.
    pub fn count_hedge_win(&self) {
        self.metrics.hedge_wins.inc();
    }

    /// Returns how long to wait before the next attempt, `None` if there is none: then the failure goes to the caller,
    /// unless another attempt is still under way.
    pub fn judge(&self, call: &Call, failure: &Failure, made: &mut Attempts) -> Option<Duration> {
        let policy = call.rpc.policy();
        if failure.delivery == Delivery::NotSent {
            // at most as often as there may be attempts
            made.not_sent += 1;
            if made.not_sent > self.attempts {
                return None;
            }
            self.grant(Reason::NotSent);
            return Some(Duration::ZERO);
        }
        made.sent += 1;
        // a server that sheds a call has not begun it
        made.executed += u32::from(failure.maybe_processed() && failure.pushback.is_none());
        made.hedged |= failure.pushback.is_some();
        let (reason, wait) = match (failure.delivery, failure.pushback) {
            (Delivery::NoEndpoint, _) => return None,
            (Delivery::Unprocessed, _) if made.sent == 1 => (Reason::Unprocessed, Duration::ZERO),
            _ if !policy.retries(failure.error.code) => return None,
            (_, Some(Pushback::Never)) => return self.refuse(Refusal::Pushback),
            // the attempt that is under way is enough
            (_, Some(_)) if made.running > 0 => return self.refuse(Refusal::Pushback),
            (_, Some(Pushback::After(wait))) => (Reason::Pushback, wait),
            // over a rate limit: only the server knows when it allows the next call
            _ if failure.error.code == Code::TooManyRequests => return None,
            _ if failure.error.code == Code::Timeout => (Reason::Timeout, made.backoff.next_wait()),
            _ => (Reason::Unavailable, made.backoff.next_wait()),
        };
        if made.sent + made.running >= self.attempts || made.inherited > 0 && reason != Reason::Unprocessed {
            return self.refuse(Refusal::Attempts);
        }
        if wait >= call.context.remaining() {
            return self.refuse(Refusal::Deadline);
        }
        if !self.withdraw() {
            return None;
        }
        self.grant(reason);
        Some(wait)
    }

    fn withdraw(&self) -> bool {
        self.budget.withdraw() || self.refuse(Refusal::Budget).is_some()
    }

    fn grant(&self, reason: Reason) {
        if let Some(counter) = self.metrics.granted.get(reason as usize) {
            counter.inc();
        }
    }

    fn refuse(&self, refusal: Refusal) -> Option<Duration> {
        if let Some(counter) = self.metrics.refused.get(refusal as usize) {
            counter.inc();
        }
        None
    }
}
