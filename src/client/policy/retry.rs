//! The third layer: another attempt where the policy table ([`crate::api::rpc::Policy`]) allows one, and where
//! the budget, the server and the clock do.
//!
//! | What happened | Again? |
//! |---|---|
//! | nobody to send it to | no |
//! | it never left this process | yes, elsewhere, at once; it was no attempt |
//! | the peer says that it did not process it | once, elsewhere, at once, whatever the rpc |
//! | a code that the table names | elsewhere, after a short wait or the one that the server asked for |
//! | an attempt of a read takes long (`client.attempt_timeout_ms`) | the same, and the slow one is given up |
//! | anything else | no |
//!
//! Every attempt beyond the first of a call costs the service's budget, those too that the peer did not
//! process: so in a full outage, of whatever kind, attempts stay below 1.2 x calls + 10/s. A slow attempt is
//! given up only once the next one is granted; refused, it goes on until the deadline.
//!
//! Sources: gRPC proposal A6 (attempts, pushback, `grpc-previous-rpc-attempts`), Finagle (budget).

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use prometheus::IntCounter;
use tokio::time::Instant;

use crate::api::error::Code;
use crate::backoff::Backoff;
use crate::client::call::{Call, FAIR, Failure, Outcome, Path, Pushback, Reach, layer};
use crate::client::policy::budget::Budget;
use crate::config;

/// Why another attempt is made; a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It never left this process.
    NotSent,
    /// The peer did not process it.
    Unprocessed,
    /// `Unavailable`.
    Unavailable,
    /// `Timeout`, or it was given up.
    Timeout,
    /// The server named a time.
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

/// Why a failure that could be tried again is not; a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It was the last attempt, or a call above is itself a repeat.
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

/// What is counted, by reason.
#[derive(Clone, Debug)]
pub struct Meters {
    /// `client_retry_granted_total`, in the order of [`Reason::ALL`].
    pub granted: [IntCounter; Reason::ALL.len()],
    /// `client_retry_refused_total`, in the order of [`Refusal::ALL`].
    pub refused: [IntCounter; Refusal::ALL.len()],
}

/// What a service's calls share.
pub struct Shared {
    attempts: u32,
    attempt_timeout: Option<Duration>,
    backoff: Duration,
    budget: Budget,
    meters: Meters,
    /// How many instances could be called: with one alone a slow attempt is not given up.
    instances: Box<dyn Fn() -> usize + Send + Sync>,
}

impl Shared {
    /// Returns the settings, a full budget, and what asks for the number of instances.
    #[must_use]
    pub fn new(
        settings: &config::Client,
        meters: Meters,
        instances: impl Fn() -> usize + Send + Sync + 'static,
    ) -> Self {
        Self {
            attempts: settings.attempts,
            attempt_timeout: Some(settings.attempt_timeout).filter(|limit| !limit.is_zero()),
            backoff: settings.retry_backoff,
            budget: Budget::new(settings.retry_budget_percent, settings.retry_budget_per_second),
            meters,
            instances: Box::new(instances),
        }
    }

    /// Returns how long one attempt of a call that begins now may take.
    fn slice(&self, call: &Call) -> Duration {
        self.attempt_timeout.unwrap_or_else(|| (call.context.remaining() / 3).max(FAIR))
    }
}

/// Makes further attempts.
#[derive(Clone)]
pub struct Retry<S> {
    inner: S,
    shared: Arc<Shared>,
}

/// One call's attempts so far.
struct Attempts {
    /// Those that were sent.
    sent: u32,
    /// Those that went elsewhere before they were sent.
    kept: u32,
    /// Those that a handler may have seen.
    seen: u32,
    /// Those that a call above this one has made.
    above: u32,
    backoff: Backoff,
}

impl<S: Path> Retry<S> {
    /// Puts retries before `inner`.
    pub const fn new(inner: S, shared: Arc<Shared>) -> Self {
        Self { inner, shared }
    }

    async fn run(&self, mut call: Call) -> Outcome {
        self.shared.budget.deposit();
        let deadline = call.context.deadline;
        let slice = self.shared.slice(&call);
        let backoff = Backoff::new(self.shared.backoff, self.shared.backoff.saturating_mul(4));
        let above = call.context.previous_attempts;
        let mut made = Attempts { sent: 0, kept: 0, seen: 0, above, backoff };
        loop {
            call.context.previous_attempts = above.saturating_add(made.sent);
            call.patience = if call.rpc.policy().attempt_timeout {
                deadline.min(Instant::now() + slice)
            } else {
                deadline
            };
            call.picked.store(0, Relaxed);
            let outcome = {
                let mut attempt = std::pin::pin!(self.inner.send(call.clone()));
                if call.patience < deadline {
                    match tokio::time::timeout_at(call.patience, attempt.as_mut()).await {
                        Ok(outcome) => Some(outcome),
                        Err(_) if self.shared.gives_up(&call, &mut made) => None,
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
                Ok(answer) => return Ok(crate::client::call::Answer { earlier: made.seen, ..answer }),
                Err(failure) => failure,
            };
            let Some(wait) = self.shared.judge(&call, &failure, &mut made) else {
                return Err(failure);
            };
            call.tried.push(call.picked.load(Relaxed));
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
            }
        }
    }
}
layer!(Retry<S>);

impl Shared {
    /// Decides about an attempt that takes long.
    fn gives_up(&self, call: &Call, made: &mut Attempts) -> bool {
        // on another instance, or not at all
        let elsewhere = (self.instances)() > call.tried.len() + 1;
        if !elsewhere || made.above > 0 || made.sent + 1 >= self.attempts {
            return false;
        }
        if !self.withdraw() {
            return false;
        }
        made.sent += 1;
        made.seen += 1;
        self.grant(Reason::Timeout);
        true
    }

    /// Returns how long to wait before the next attempt; `None` if the failure is the caller's to see.
    fn judge(&self, call: &Call, failure: &Failure, made: &mut Attempts) -> Option<Duration> {
        let policy = call.rpc.policy();
        if failure.reach == Reach::Kept {
            // the set of instances is bounded, and so is this
            made.kept += 1;
            if made.kept > self.attempts {
                return None;
            }
            self.grant(Reason::NotSent);
            return Some(Duration::ZERO);
        }
        made.sent += 1;
        // who sheds a call has not begun it
        made.seen += u32::from(failure.maybe_processed() && failure.pushback.is_none());
        let (reason, wait) = match (failure.reach, failure.pushback) {
            (Reach::Nobody, _) => return None,
            (Reach::Unprocessed, _) if made.sent == 1 => (Reason::Unprocessed, Duration::ZERO),
            _ if !policy.retries(failure.error.code) => return None,
            (_, Some(Pushback::Never)) => return self.refuse(Refusal::Pushback),
            (_, Some(Pushback::After(wait))) => (Reason::Pushback, wait),
            // over a limit: only the server knows for how long
            _ if failure.error.code == Code::TooManyRequests => return None,
            _ if failure.error.code == Code::Timeout => (Reason::Timeout, made.backoff.next_wait()),
            _ => (Reason::Unavailable, made.backoff.next_wait()),
        };
        if made.sent >= self.attempts || made.above > 0 && reason != Reason::Unprocessed {
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
        if let Some(counter) = self.meters.granted.get(reason as usize) {
            counter.inc();
        }
    }

    fn refuse(&self, refusal: Refusal) -> Option<Duration> {
        if let Some(counter) = self.meters.refused.get(refusal as usize) {
            counter.inc();
        }
        None
    }
}

#[cfg(test)]
#[path = "retry_tests.rs"]
mod tests;
