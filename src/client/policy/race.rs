//! One attempt of a call, and the hedge that may race it.
//!
//! Once an attempt of a read takes longer than usual ([`crate::client::policy::hedge`]), a second one is sent to
//! another instance, if both budgets grant it. The first good answer wins and the other attempt is cancelled, which
//! is no failure of its instance. If one of them fails, the other one goes on; the next attempt is sent at once, if
//! the retry policy allows it. Without a grant the first attempt goes on alone: nothing is cut. It may get one later.
//!
//! A read whose instance has left the view, or does not answer a health check, is raced in the same way. That needs
//! no delay and no budget of hedges, only one of the retry budget: such an attempt is likely to be lost.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, select_all};
use tokio::time::Instant;

use crate::client::call::{Attempt, Call, CallLayer, Outcome};
use crate::client::policy::retry_policy::{Attempts, Reason, RetryPolicy};
use crate::timeout::timeout_at;

/// Longest time between two looks at an attempt that has no answer yet.
const LOOK: Duration = Duration::from_millis(100);

/// Makes one attempt; returns its outcome or that of the attempt that was faster. `call.attempt` is then the
/// attempt that ended last.
pub async fn attempt<S: CallLayer>(
    inner: &S,
    policy: &RetryPolicy,
    call: &mut Call,
    made: &mut Attempts,
) -> Outcome {
    let mut first = std::pin::pin!(inner.send(call.clone()));
    if !policy.may_race(call, made) {
        return first.await;
    }
    let begun = Instant::now();
    policy.hedging.note_call(begun);
    let mut look = begun + policy.hedging.delay(call.rpc, begun).unwrap_or(policy.hedging.min_delay());
    let mut ask = begun;
    while look < call.context.deadline {
        if let Ok(outcome) = timeout_at(look, first.as_mut()).await {
            return outcome;
        }
        look = match next_look(policy, call, begun) {
            Next::Look(at) => at,
            Next::Race(reason) if ask <= Instant::now() => {
                if policy.grant_race(reason, made) {
                    return race(inner, policy, first.boxed(), call, made, reason).await;
                }
                ask = Instant::now() + begun.elapsed(); // not at every look
                again(begun)
            }
            Next::Race(_) => again(begun),
        };
    }
    first.await
}

/// What to do about an attempt that has no answer yet.
enum Next {
    /// Look again at this time.
    Look(Instant),
    /// Send another one to race it.
    Race(Reason),
}

/// Decides about an attempt that began at `begun` and has no answer yet. It may have begun before there was enough data
/// for a delay, or before another instance was there.
fn next_look(policy: &RetryPolicy, call: &mut Call, begun: Instant) -> Next {
    let now = Instant::now();
    let picked = call.attempt.picked();
    if picked == 0 {
        return Next::Look(again(begun)); // it waits for an instance
    }
    let delay = policy.hedging.delay(call.rpc, now);
    let hurry = call.context.shortened && delay.is_some_and(|delay| call.context.remaining() < delay);
    if now >= begun + delay.unwrap_or(policy.hedging.max_delay()) && !hurry {
        call.attempt.check_connection();
    }
    call.note_tried();
    match delay {
        _ if !policy.instances.have_place(call) => Next::Look(again(begun)),
        _ if policy.instances.lost(picked) => Next::Race(Reason::Unresponsive),
        Some(delay) if now < begun + delay => Next::Look((begun + delay).min(now + LOOK)),
        // a caller in a hurry does not use up what others may need
        Some(_) if !hurry => Next::Race(Reason::Hedge),
        Some(_) | None => Next::Look(again(begun)),
    }
}

/// Returns when an attempt has taken twice as long as now, or a little earlier: what was missing may be there then.
fn again(begun: Instant) -> Instant {
    let now = Instant::now();
    now + now.saturating_duration_since(begun).clamp(Duration::from_millis(1), LOOK)
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

/// Races another attempt against the first one.
async fn race(
    inner: &impl CallLayer,
    policy: &RetryPolicy,
    first: BoxFuture<'_, Outcome>,
    call: &mut Call,
    made: &mut Attempts,
    reason: Reason,
) -> Outcome {
    made.running = 1;
    let second = Running::send(inner, call, made, true);
    let mut running = vec![Running { outcome: first, attempt: call.attempt.clone(), hedge: false }, second];
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
            if ended.hedge && reason == Reason::Hedge && outcome.is_ok() {
                policy.count_hedge_win();
            }
            return outcome;
        }
        let Err(failure) = outcome else { continue };
        if policy.judge(call, &failure, made).is_some() {
            call.note_tried();
            running.push(Running::send(inner, call, made, false));
        }
    }
}

#[cfg(test)]
#[path = "race_tests.rs"]
mod tests;
