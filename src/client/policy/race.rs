//! One attempt of a call, and the hedge that may race it.
//!
//! Once an attempt of a read takes longer than usual ([`crate::client::policy::hedge`]), a second one is sent to
//! another instance, if both budgets grant it. The first good answer wins and the other attempt is cancelled, which
//! is no failure of its instance. If one of them fails, the other one goes on; the next attempt is sent at once, if
//! the retry policy allows it. Without a grant the first attempt goes on alone: nothing is cut. It may get one later.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, select_all};
use tokio::time::Instant;

use crate::client::call::{Attempt, Call, CallLayer, Outcome};
use crate::client::policy::retry_policy::{Attempts, RetryPolicy};
use crate::timeout::timeout_at;

/// Makes one attempt; returns its outcome or that of the attempt that was faster. `call.attempt` is then the
/// attempt that ended last.
pub async fn attempt<S: CallLayer>(
    inner: &S,
    policy: &RetryPolicy,
    call: &mut Call,
    made: &mut Attempts,
) -> Outcome {
    let mut first = std::pin::pin!(inner.send(call.clone()));
    if !policy.may_hedge(call, made) {
        return first.await;
    }
    let begun = Instant::now();
    let mut look = begun + policy.hedging.delay(call.rpc, begun).unwrap_or(policy.hedging.min_delay());
    while look < call.context.deadline {
        if let Ok(outcome) = timeout_at(look, first.as_mut()).await {
            return outcome;
        }
        look = match next_look(policy, call, begun) {
            Some(at) => at,
            None if policy.grant_hedge(made) => return race(inner, policy, first.boxed(), call, made).await,
            None => again(begun),
        };
    }
    first.await
}

/// Returns when to look again at an attempt that began at `begun` and has no answer yet; `None` if it is time for a
/// hedge. The attempt may have begun before there was enough data for a delay, or before another instance was there.
fn next_look(policy: &RetryPolicy, call: &mut Call, begun: Instant) -> Option<Instant> {
    let now = Instant::now();
    let Some(delay) = policy.hedging.delay(call.rpc, now) else {
        return Some(again(begun));
    };
    if now < begun + delay {
        return Some(begun + delay);
    }
    if call.context.shortened && call.context.remaining() < delay {
        return Some(call.context.deadline); // a caller in a hurry does not use up what others may need
    }
    let picked = call.attempt.picked();
    if picked == 0 {
        return Some(again(begun)); // it waits for an instance
    }
    call.attempt.check_connection();
    if call.tried.last() != Some(&picked) {
        call.tried.push(picked);
    }
    (!policy.has_place(call)).then(|| again(begun))
}

/// Returns when an attempt has taken twice as long as now: what was missing for a hedge may be there then.
fn again(begun: Instant) -> Instant {
    let now = Instant::now();
    now + now.saturating_duration_since(begun).max(Duration::from_millis(1))
}

/// An attempt under way. It is boxed, so that the calls without a hedge, which are most, are not larger for it.
struct Running<'a> {
    outcome: BoxFuture<'a, Outcome>,
    attempt: Arc<Attempt>,
    hedge: bool,
}

impl<'a> Running<'a> {
    /// Sends another attempt of a call.
    fn send(inner: &'a impl CallLayer, call: &Call, made: &Attempts, hedge: bool) -> Self {
        let attempt = Arc::<Attempt>::default();
        let mut call = Call { hedge, attempt: attempt.clone(), ..call.clone() };
        call.context.previous_attempts = made.before_next();
        Self { outcome: inner.send(call).boxed(), attempt, hedge }
    }
}

/// Races a hedge against the first attempt.
async fn race(
    inner: &impl CallLayer,
    policy: &RetryPolicy,
    first: BoxFuture<'_, Outcome>,
    call: &mut Call,
    made: &mut Attempts,
) -> Outcome {
    made.running = 1;
    let hedge = Running::send(inner, call, made, true);
    let mut running = vec![Running { outcome: first, attempt: call.attempt.clone(), hedge: false }, hedge];
    loop {
        let (outcome, ended, _) = select_all(running.iter_mut().map(|running| &mut running.outcome)).await;
        let ended = running.swap_remove(ended);
        call.attempt = ended.attempt;
        made.running = u32::try_from(running.len()).unwrap_or(u32::MAX);
        let decided = match &outcome {
            Ok(_) => true,
            Err(failure) => failure.is_answer() || running.is_empty(),
        };
        if decided {
            for slower in &running {
                slower.attempt.set_lost();
            }
            made.running = 0;
            if ended.hedge && outcome.is_ok() {
                policy.count_hedge_win();
            }
            return outcome;
        }
        let Err(failure) = outcome else { continue };
        if policy.judge(call, &failure, made).is_some() {
            call.tried.push(call.attempt.picked());
            running.push(Running::send(inner, call, made, false));
        }
    }
}
