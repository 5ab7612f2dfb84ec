//! The third layer: makes another attempt if the policy of the rpc ([`crate::api::rpc::Policy`]), the retry
//! budget, the server's pushback and the deadline all allow one.
//!
//! | What happened | Again? |
//! |---|---|
//! | no instance can be called | no |
//! | the call was not sent | yes, at another instance, at once; it does not count as an attempt |
//! | the peer says that it did not process the call | yes, once, at another instance, at once, for every rpc |
//! | a code that the policy names | yes, at another instance, after a short wait or the server's pushback |
//! | an attempt of a read exceeds `client.attempt_timeout_ms` | yes, at another instance; the slow one is given up |
//! | anything else | no |
//!
//! Every attempt after the first one of a call is taken from the service's budget, also if the peer did not
//! process the one before. So in an outage of any kind attempts stay below 1.2 x calls + 10/s. A slow attempt is
//! given up only once the next one is granted; if that is refused, it goes on until the deadline.
//!
//! Sources: gRPC proposal A6 (attempts, pushback, `grpc-previous-rpc-attempts`), Finagle (budget).

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use prometheus::IntCounter;
use tokio::time::Instant;

use crate::api::error::Code;
use crate::backoff::Backoff;
use crate::client::call::{
    Answer, Call, CallLayer, Delivery, Failure, MIN_TIME_TO_ANSWER, Outcome, Pushback,
};
use crate::client::policy::budget::Budget;
use crate::config;
use crate::timeout::timeout_at;

/// Why another attempt is made; a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The one before was not sent.
    NotSent,
    /// The peer did not process the one before.
    Unprocessed,
    /// The one before ended with `Unavailable`.
    Unavailable,
    /// The one before ended with `Timeout`, or was given up.
    Timeout,
    /// The server named a time for it.
    Pushback,
}

impl Reason {
    /// Every reason.
    pub const ALL: [Self; 5] =
        [Self::NotSent, Self::Unprocessed, Self::Unavailable, Self::Timeout, Self::Pushback];

    /// Returns its label.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotSent => "not_sent",
            Self::Unprocessed => "unprocessed",
            Self::Unavailable => "unavailable",
            Self::Timeout => "timeout",
            Self::Pushback => "pushback",
        }
    }
}

/// Why a failed attempt that may be retried is not; a metric label.
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
}

impl Refusal {
    /// Every refusal.
    pub const ALL: [Self; 4] = [Self::Attempts, Self::Budget, Self::Deadline, Self::Pushback];

    /// Returns its label.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Attempts => "attempts",
            Self::Budget => "budget",
            Self::Deadline => "deadline",
            Self::Pushback => "pushback",
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
}

/// The attempts of one call so far.
struct Attempts {
    /// Attempts that were sent.
    sent: u32,
    /// Tries that were not sent, which are not attempts.
    not_sent: u32,
    /// Attempts that a handler may have executed.
    executed: u32,
    /// Attempts that callers above this call have made.
    inherited: u32,
    backoff: Backoff,
}

/// Decides about further attempts of the calls to one service.
pub struct RetryPolicy {
    attempts: u32,
    attempt_timeout: Option<Duration>,
    backoff: Duration,
    budget: Budget,
    metrics: RetryMetrics,
    /// Returns how many instances can be called: with only one a slow attempt is not given up.
    instances: Box<dyn Fn() -> usize + Send + Sync>,
}

impl RetryPolicy {
    /// Returns the policy with a full budget. `instances` returns how many instances can be called.
    #[must_use]
    pub fn new(
        settings: &config::Client,
        metrics: RetryMetrics,
        instances: impl Fn() -> usize + Send + Sync + 'static,
    ) -> Self {
        Self {
            attempts: settings.attempts,
            attempt_timeout: Some(settings.attempt_timeout).filter(|limit| !limit.is_zero()),
            backoff: settings.retry_backoff,
            budget: Budget::new(settings.retry_budget_percent, settings.retry_budget_per_second),
            metrics,
            instances: Box::new(instances),
        }
    }

    /// Returns how long one attempt of a call that begins now may take.
    fn attempt_timeout(&self, call: &Call) -> Duration {
        self.attempt_timeout.unwrap_or_else(|| (call.context.remaining() / 3).max(MIN_TIME_TO_ANSWER))
    }

    /// Returns true if a slow attempt is to be given up for another one.
    fn give_up(&self, call: &Call, made: &mut Attempts) -> bool {
        let others = (self.instances)() > call.tried.len() + 1;
        if !others || made.inherited > 0 || made.sent + 1 >= self.attempts {
            return false;
        }
        if !self.withdraw() {
            return false;
        }
        made.sent += 1;
        made.executed += 1;
        self.grant(Reason::Timeout);
        true
    }

    /// Returns how long to wait before the next attempt, `None` if the failure goes to the caller.
    fn judge(&self, call: &Call, failure: &Failure, made: &mut Attempts) -> Option<Duration> {
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
        let (reason, wait) = match (failure.delivery, failure.pushback) {
            (Delivery::NoEndpoint, _) => return None,
            (Delivery::Unprocessed, _) if made.sent == 1 => (Reason::Unprocessed, Duration::ZERO),
            _ if !policy.retries(failure.error.code) => return None,
            (_, Some(Pushback::Never)) => return self.refuse(Refusal::Pushback),
            (_, Some(Pushback::After(wait))) => (Reason::Pushback, wait),
            // over a rate limit: only the server knows when it allows the next call
            _ if failure.error.code == Code::TooManyRequests => return None,
            _ if failure.error.code == Code::Timeout => (Reason::Timeout, made.backoff.next_wait()),
            _ => (Reason::Unavailable, made.backoff.next_wait()),
        };
        if made.sent >= self.attempts || made.inherited > 0 && reason != Reason::Unprocessed {
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

/// Makes further attempts after a failed one.
pub struct Retry<S> {
    inner: S,
    policy: RetryPolicy,
}

impl<S: CallLayer> Retry<S> {
    /// Puts retries before `inner`.
    pub const fn new(inner: S, policy: RetryPolicy) -> Self {
        Self { inner, policy }
    }
}

impl<S: CallLayer> CallLayer for Retry<S> {
    async fn send(&self, mut call: Call) -> Outcome {
        self.policy.budget.deposit();
        let deadline = call.context.deadline;
        let attempt_timeout = self.policy.attempt_timeout(&call);
        let backoff = Backoff::new(self.policy.backoff, self.policy.backoff.saturating_mul(4));
        let inherited = call.context.previous_attempts;
        let mut made = Attempts { sent: 0, not_sent: 0, executed: 0, inherited, backoff };
        loop {
            call.context.previous_attempts = inherited.saturating_add(made.sent);
            call.attempt_deadline = if call.rpc.policy().attempt_timeout {
                deadline.min(Instant::now() + attempt_timeout)
            } else {
                deadline
            };
            call.picked.store(0, Relaxed);
            let outcome = {
                let mut attempt = std::pin::pin!(self.inner.send(call.clone()));
                if call.attempt_deadline < deadline {
                    match timeout_at(call.attempt_deadline, attempt.as_mut()).await {
                        Ok(outcome) => Some(outcome),
                        Err(_) if self.policy.give_up(&call, &mut made) => None,
                        Err(_) => Some(attempt.await),
                    }
                } else {
                    Some(attempt.await)
                }
            };
            let Some(outcome) = outcome else {
                call.tried.push(call.picked.load(Relaxed));
                continue;
            };
            let failure = match outcome {
                Ok(answer) => return Ok(Answer { earlier_executions: made.executed, ..answer }),
                Err(failure) => failure,
            };
            let Some(wait) = self.policy.judge(&call, &failure, &mut made) else {
                return Err(failure);
            };
            call.tried.push(call.picked.load(Relaxed));
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
            }
        }
    }
}

#[cfg(test)]
#[path = "retry_tests.rs"]
mod tests;
