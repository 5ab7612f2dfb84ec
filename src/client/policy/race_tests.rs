//! Races of attempts on paused time.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::api::error::Code;
use crate::api::rpc::Rpc;
use crate::client::call::testing::{ScriptedEnd, call, failure};
use crate::client::call::{Answer, CallLayer as _, Failure, Outcome, Pushback};
use crate::client::policy::retry::Retry;
use crate::client::policy::retry::tests::{LIMIT, Numbered, layer, layer_with, metrics, pushed};
use crate::client::policy::retry_policy::{Reason, Refusal, Reserves, RetryMetrics, RetryPolicy};
use crate::config;

/// What the n-th call of an end gets: after so many ms a good answer or a failure.
type Scripted = (u64, Option<Failure>);

const USUAL: u64 = 20;

/// An end whose first 50 calls get an answer after 20 ms, and the ones that follow what the script says.
fn scripted(script: Vec<Scripted>) -> ScriptedEnd {
    ScriptedEnd::new(move |n, call| {
        let script = n.checked_sub(50).map(|n| script[n].clone());
        let (ms, failure) = script.unwrap_or((USUAL, None));
        call.attempt.set_picked(call.tried.len() as u64 + 1);
        async move {
            tokio::time::sleep(Duration::from_millis(ms)).await;
            failure.map_or_else(|| Ok(Answer::default()), Err)
        }
    })
}

/// A layer that knows how long answers take: a hedge is sent after 20 ms, rounded up by an eighth at most.
async fn warm(
    script: Vec<Scripted>,
    instances: usize,
    change: impl FnOnce(&mut config::Client),
) -> (Retry<ScriptedEnd>, RetryMetrics, ScriptedEnd) {
    let end = scripted(script);
    let (layer, metrics) = layer_with(&end, instances, |settings| {
        settings.hedge_budget_percent = 20;
        change(settings);
    });
    for _ in 0..50 {
        layer.send(call(Rpc::GetFeeds, LIMIT)).await.unwrap();
    }
    tokio::time::advance(Duration::from_millis(100)).await;
    (layer, metrics, end)
}

/// Sends a read; returns the ms it took, the attempts and its outcome.
async fn timed(layer: &Retry<ScriptedEnd>, end: &ScriptedEnd) -> (u128, usize, Outcome) {
    let begun = Instant::now();
    let outcome = tokio::time::timeout(LIMIT, layer.send(call(Rpc::GetFeeds, LIMIT))).await;
    let outcome = outcome.unwrap_or_else(|_| Err(Failure::timeout(Rpc::GetFeeds)));
    (begun.elapsed().as_millis(), end.calls() - 50, outcome)
}

#[tokio::test(start_paused = true)]
async fn a_slow_attempt_is_raced_and_the_first_good_answer_wins() {
    // both attempts, when the answer comes, whether the hedge wins
    for (first, hedge, ms, wins) in [(9000, 20, 40..=46, 1), (30, 500, 30..=31, 0), (100, 500, 100..=101, 0)]
    {
        let (layer, metrics, end) = warm(vec![(first, None), (hedge, None)], 3, |_| {}).await;
        let (took, attempts, outcome) = timed(&layer, &end).await;
        assert_eq!((attempts, outcome.unwrap().earlier_executions), (2, 1), "{first}");
        assert!(ms.contains(&took), "{first}: {took} ms");
        assert_eq!((metrics.granted[Reason::Hedge as usize].get(), metrics.hedge_wins.get()), (1, wins));
    }
}

#[tokio::test(start_paused = true)]
async fn there_is_no_hedge_without_data_another_instance_or_a_grant() {
    let slow = || vec![(2500, None); 3];
    let alone = warm(slow(), 1, |_| {}).await;
    let off = warm(slow(), 3, |settings| settings.hedge_after_percent = 0).await;
    let one_attempt = warm(slow(), 3, |settings| settings.attempts = 1).await;
    let no_retries = |settings: &mut config::Client| {
        (settings.retry_budget_percent, settings.retry_budget_per_second) = (0, 0);
    };
    let no_budget = warm(slow(), 3, no_retries).await;
    for (layer, metrics, end) in [&alone, &off, &one_attempt, &no_budget] {
        let (took, attempts, outcome) = timed(layer, end).await;
        // nothing is cut
        assert!((2500..=2501).contains(&took) && outcome.is_ok(), "{took} ms");
        assert_eq!((attempts, metrics.granted[Reason::Hedge as usize].get()), (1, 0));
    }
    // it asks again, each time after twice the time
    assert!((5..=8).contains(&no_budget.1.refused[Refusal::Budget as usize].get()));
    // and none of a write, or of a call that is itself a retry
    let (layer, _, end) = warm(slow(), 3, |_| {}).await;
    layer.send(call(Rpc::CreateFeed, LIMIT)).await.unwrap();
    let mut retried = call(Rpc::GetFeeds, LIMIT);
    retried.context.previous_attempts = 1;
    layer.send(retried).await.unwrap();
    assert_eq!(end.calls(), 52);
}

/// Else callers in a hurry could use up the hedges of all others, for nothing.
#[tokio::test(start_paused = true)]
async fn a_shortened_call_is_hedged_only_if_the_hedge_has_time() {
    for (limit, attempts) in [(30, 1), (40, 1), (60, 2)] {
        let (layer, _, end) = warm(vec![(9000, None), (20, None)], 3, |_| {}).await;
        let mut hurried = call(Rpc::GetFeeds, Duration::from_millis(limit));
        hurried.context.shortened = true;
        let time = Duration::from_millis(limit);
        let answered = tokio::time::timeout(time, layer.send(hurried)).await.is_ok();
        assert_eq!((end.calls() - 50, answered), (attempts, attempts == 2), "{limit} ms");
    }
}

/// The answers of other calls are the data.
#[tokio::test(start_paused = true)]
async fn an_attempt_from_before_there_was_data_is_raced_once_there_is() {
    let end = ScriptedEnd::new(|n, call| async move {
        call.attempt.set_picked(call.tried.len() as u64 + 1);
        tokio::time::sleep(Duration::from_millis(if n == 0 { 9000 } else { USUAL })).await;
        Ok(Answer::default())
    });
    let (layer, metrics) = layer(&end);
    let begun = Instant::now();
    let first = async {
        layer.send(call(Rpc::GetFeeds, LIMIT)).await.unwrap();
        begun.elapsed().as_millis()
    };
    let others = async {
        for _ in 0..60 {
            layer.send(call(Rpc::GetFeeds, LIMIT)).await.unwrap();
        }
    };
    let (took, ()) = tokio::join!(first, others);
    // 50 answers take 1000 ms; it looks again every 100 ms, and the hedge takes 20 ms
    assert!((1020..=1130).contains(&took), "{took} ms");
    assert_eq!(metrics.hedge_wins.get(), 1);
}

/// The instance that is awaited has left meanwhile, and one that was not tried is there.
#[tokio::test(start_paused = true)]
async fn any_instance_that_was_not_tried_will_do() {
    let (end, metrics) = (scripted(vec![(9000, None), (20, None)]), metrics());
    let instances = Numbered::upto(1);
    let settings = config::Client::default();
    let policy = RetryPolicy::new(&settings, &Reserves::new(&settings), metrics.clone(), instances.clone());
    let layer = Retry::new(end.clone(), policy);
    for _ in 0..50 {
        layer.send(call(Rpc::GetFeeds, LIMIT)).await.unwrap();
    }
    let waiting = async {
        let begun = Instant::now();
        layer.send(call(Rpc::GetFeeds, LIMIT)).await.unwrap();
        begun.elapsed()
    };
    let moving = async {
        tokio::time::sleep(Duration::from_millis(400)).await;
        *instances.usable.lock().unwrap() = vec![2];
    };
    let (took, ()) = tokio::join!(waiting, moving);
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert_eq!(metrics.hedge_wins.get(), 1);
}

/// Too few answers for a delay, hedges turned off: a read whose instance is lost is made elsewhere all the same.
#[tokio::test(start_paused = true)]
async fn a_read_whose_instance_is_lost_needs_no_hedge() {
    let run = async |rpc: Rpc, change: fn(&mut config::Client)| {
        let end = ScriptedEnd::new(|n, call| {
            call.attempt.set_picked(call.tried.len() as u64 + 1);
            async move {
                tokio::time::sleep(Duration::from_millis(if n == 0 { 9000 } else { 20 })).await;
                Ok(Answer::default())
            }
        });
        let (mut settings, metrics, instances) = (config::Client::default(), metrics(), Numbered::upto(2));
        change(&mut settings);
        let policy =
            RetryPolicy::new(&settings, &Reserves::new(&settings), metrics.clone(), instances.clone());
        let layer = Retry::new(end, policy);
        let begun = Instant::now();
        let leave = async {
            tokio::time::sleep(Duration::from_millis(400)).await;
            instances.lost.lock().unwrap().push(1);
        };
        let answer = layer.send(call(rpc, Duration::from_secs(10)));
        let took = tokio::join!(async { answer.await.map(|_| begun.elapsed()).unwrap() }, leave).0;
        assert_eq!(metrics.hedge_wins.get(), 0);
        (took.as_millis(), metrics.granted[Reason::Unresponsive as usize].get())
    };
    for settings in
        [|_: &mut config::Client| {}, |settings: &mut config::Client| settings.hedge_after_percent = 0]
    {
        let (took, granted) = run(Rpc::GetFeeds, settings).await;
        assert!((420..=530).contains(&took) && granted == 1, "{took} ms");
    }
    let no_retries = |settings: &mut config::Client| {
        (settings.retry_budget_percent, settings.retry_budget_per_second) = (0, 0);
    };
    assert_eq!(run(Rpc::GetFeeds, no_retries).await, (9000, 0));
    assert_eq!(run(Rpc::CreateFeed, |_| {}).await, (9000, 0), "a write may have been made");
}

#[tokio::test(start_paused = true)]
async fn a_failure_in_a_race_leaves_the_other_attempt_running() {
    let unavailable = || Some(failure(Code::Unavailable));
    // the hedge fails: the next attempt is sent at once
    let (layer, _, end) = warm(vec![(9000, None), (5, unavailable()), (20, None)], 3, |_| {}).await;
    let (took, attempts, outcome) = timed(&layer, &end).await;
    assert!(outcome.is_ok() && (45..=52).contains(&took), "{took} ms");
    assert_eq!(attempts, 3);
    // the first one fails: the same
    let (layer, _, end) = warm(vec![(30, unavailable()), (9000, None), (20, None)], 3, |_| {}).await;
    let (took, attempts, outcome) = timed(&layer, &end).await;
    assert!(outcome.is_ok() && (50..=52).contains(&took), "{took} ms");
    assert_eq!(attempts, 3);
    // no attempt is left: the first one is waited for
    let only_two = |settings: &mut config::Client| settings.attempts = 2;
    let (layer, _, end) = warm(vec![(900, None), (5, unavailable())], 3, only_two).await;
    let (took, attempts, outcome) = timed(&layer, &end).await;
    assert!(outcome.is_ok() && (900..=902).contains(&took), "{took} ms");
    assert_eq!(attempts, 2);
    // what only the hedge says does not fail the call, unless it is the service's answer
    let cases = [(Code::Internal, true), (Code::TooManyRequests, true), (Code::NotFound, false)];
    for (code, waits) in cases {
        let (layer, _, end) = warm(vec![(900, None), (5, Some(failure(code)))], 3, |_| {}).await;
        let (took, attempts, outcome) = timed(&layer, &end).await;
        assert_eq!((outcome.is_ok(), took >= 900, attempts), (waits, waits, 2), "{code:?} {took} ms");
    }
    // all fail
    let all = vec![(100, unavailable()), (50, unavailable()), (200, unavailable())];
    let (layer, _, end) = warm(all, 3, |_| {}).await;
    let (_, attempts, outcome) = timed(&layer, &end).await;
    assert_eq!((attempts, outcome.unwrap_err().error.code), (3, Code::Unavailable));
}

#[tokio::test(start_paused = true)]
async fn pushback_stops_hedges() {
    let pushed = |pushback| Some(pushed(Code::Unavailable, pushback));
    let after = Pushback::After(Duration::from_millis(5));
    // of the attempt that follows it
    let (layer, metrics, end) = warm(vec![(5, pushed(after)), (700, None)], 3, |_| {}).await;
    let (took, attempts, outcome) = timed(&layer, &end).await;
    assert!(outcome.is_ok() && (710..=712).contains(&took), "{took} ms");
    assert_eq!((attempts, metrics.granted[Reason::Hedge as usize].get()), (2, 0));
    // beside an attempt that is under way
    for pushback in [after, Pushback::Never] {
        let (layer, _, end) = warm(vec![(700, None), (5, pushed(pushback))], 3, |_| {}).await;
        let (took, attempts, outcome) = timed(&layer, &end).await;
        assert!(outcome.is_ok() && (700..=702).contains(&took), "{took} ms");
        assert_eq!(attempts, 2);
    }
}

#[tokio::test(start_paused = true)]
async fn the_slower_attempt_is_told_that_it_lost() {
    let attempts = Arc::new(std::sync::Mutex::new(Vec::new()));
    let seen = attempts.clone();
    let end = ScriptedEnd::new(move |n, call| {
        call.attempt.set_picked(call.tried.len() as u64 + 1);
        if n >= 50 {
            seen.lock().unwrap().push((call.hedge, call.context.previous_attempts, call.attempt.clone()));
        }
        async move {
            tokio::time::sleep(Duration::from_millis(if n == 50 { 9000 } else { USUAL })).await;
            Ok(Answer::default())
        }
    });
    let (layer, _) = layer(&end);
    for _ in 0..50 {
        layer.send(call(Rpc::GetFeeds, LIMIT)).await.unwrap();
    }
    layer.send(call(Rpc::GetFeeds, LIMIT)).await.unwrap();
    let attempts: Vec<_> = attempts.lock().unwrap().iter().map(|(h, n, a)| (*h, *n, a.is_lost())).collect();
    assert_eq!(attempts, [(false, 0, true), (true, 1, false)]);
}

/// When all instances turn slow, hedges end by themselves: the delay grows, and fewer good answers earn fewer.
#[tokio::test(start_paused = true)]
async fn when_everything_is_slow_hedges_are_a_small_share() {
    let end = ScriptedEnd::new(|n, call| async move {
        call.attempt.set_picked(call.tried.len() as u64 + 1);
        tokio::time::sleep(Duration::from_millis(if n < 1000 { 2 } else { 700 })).await;
        Ok(Answer::default())
    });
    let (layer, metrics) = layer(&end);
    let (layer, hedges) = (Arc::new(layer), || metrics.granted[Reason::Hedge as usize].get());
    let (mut calls, mut before) = (tokio::task::JoinSet::new(), 0);
    for n in 0..5000 {
        if n == 3000 {
            before = hedges();
        }
        let layer = layer.clone();
        calls.spawn(async move { layer.send(call(Rpc::GetFeeds, LIMIT)).await.unwrap() });
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    calls.join_all().await;
    assert!(before > 0 && before <= 100, "{before} of the first 2000: 5 % of the good answers of 10 s");
    assert_eq!(hedges(), before, "once it is known that answers take 700 ms");
}
