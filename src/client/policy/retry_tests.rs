//! Retries on paused time, and what the tests of races share with them.

use std::sync::Mutex;
use std::time::Duration;

use prometheus::IntCounter;

use super::*;
use crate::api::error::{Code, Error};
use crate::api::rpc::Rpc;
use crate::client::call::testing::{ScriptedEnd, call, failure};
use crate::client::call::{Delivery, Pushback};
use crate::client::policy::retry_policy::{Instances, Refusal, Reserves, RetryMetrics};
use crate::config;

pub const LIMIT: Duration = Duration::from_secs(3);

pub fn metrics() -> RetryMetrics {
    let counter = |n: usize| IntCounter::new(format!("x{n}"), "x").unwrap();
    RetryMetrics {
        granted: std::array::from_fn(counter),
        refused: std::array::from_fn(counter),
        hedge_wins: counter(99),
    }
}

/// The instances of these numbers, all of which can be called.
#[derive(Clone)]
pub struct Numbered {
    pub usable: Arc<Mutex<Vec<u64>>>,
    pub lost: Arc<Mutex<Vec<u64>>>,
}

impl Numbered {
    /// Numbered from 1, as they are picked.
    pub fn upto(count: usize) -> Self {
        Self { usable: Arc::new(Mutex::new((1..=count as u64).collect())), lost: Arc::default() }
    }
}

impl Instances for Numbered {
    fn have_place(&self, call: &Call) -> bool {
        self.usable.lock().unwrap().iter().any(|number| !call.tried.contains(number))
    }

    fn lost(&self, number: u64) -> bool {
        self.lost.lock().unwrap().contains(&number)
    }
}

pub fn layer_with(
    end: &ScriptedEnd,
    instances: usize,
    change: impl FnOnce(&mut config::Client),
) -> (Retry<ScriptedEnd>, RetryMetrics) {
    let (mut settings, metrics) = (config::Client::default(), metrics());
    change(&mut settings);
    let policy =
        RetryPolicy::new(&settings, &Reserves::new(&settings), metrics.clone(), Numbered::upto(instances));
    (Retry::new(end.clone(), policy), metrics)
}

pub fn layer(end: &ScriptedEnd) -> (Retry<ScriptedEnd>, RetryMetrics) {
    layer_with(end, 3, |_| {})
}

/// An end whose first calls fail with these failures, and all others succeed.
fn failing(failures: Vec<Failure>) -> ScriptedEnd {
    ScriptedEnd::new(move |n, _| {
        let outcome = failures.get(n).cloned().map_or_else(|| Ok(Answer::default()), Err);
        async move { outcome }
    })
}

fn undelivered(delivery: Delivery) -> Failure {
    Failure::new(delivery, Error::unavailable("scripted"))
}

pub fn pushed(code: Code, pushback: Pushback) -> Failure {
    Failure { pushback: Some(pushback), ..failure(code) }
}

#[tokio::test(start_paused = true)]
async fn each_failure_is_retried_as_the_table_says() {
    const READ: Rpc = Rpc::GetFeeds;
    const WRITE: Rpc = Rpc::CreateFeed;
    let after = |ms| Pushback::After(Duration::from_millis(ms));
    // rpc, what fails, attempts altogether
    for (rpc, failure, attempts) in [
        (READ, failure(Code::Unavailable), 3),
        (READ, failure(Code::Timeout), 3),
        (READ, failure(Code::Internal), 1),
        (READ, failure(Code::NotFound), 1),
        (READ, failure(Code::TooManyRequests), 1),
        (READ, pushed(Code::TooManyRequests, after(5)), 3),
        (READ, pushed(Code::Unavailable, after(5)), 3),
        (READ, pushed(Code::Unavailable, Pushback::Never), 1),
        (READ, pushed(Code::Internal, after(5)), 1),
        (READ, undelivered(Delivery::Unknown), 3),
        (READ, undelivered(Delivery::NoEndpoint), 1),
        (WRITE, failure(Code::Unavailable), 3),
        (WRITE, failure(Code::Timeout), 1),
        (WRITE, undelivered(Delivery::Unknown), 3),
        (WRITE, undelivered(Delivery::Unprocessed), 3),
    ] {
        let end = failing(vec![failure.clone(); 9]);
        layer(&end).0.send(call(rpc, LIMIT)).await.unwrap_err();
        assert_eq!(end.calls(), attempts, "{} {failure:?}", rpc.method());
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_tells_how_many_attempts_may_have_been_executed() {
    for (failures, executions) in [
        (vec![], 0),
        (vec![undelivered(Delivery::NotSent)], 0),
        (vec![undelivered(Delivery::Unprocessed)], 0),
        (vec![undelivered(Delivery::Unknown)], 1),
        (vec![failure(Code::Unavailable), undelivered(Delivery::Unknown)], 2),
    ] {
        let end = failing(failures);
        let answer = layer(&end).0.send(call(Rpc::DeleteFeed, LIMIT)).await.unwrap();
        assert_eq!(answer.earlier_executions, executions);
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_not_sent_costs_no_budget_but_is_bounded() {
    let end = failing(vec![undelivered(Delivery::NotSent); 99]);
    let (layer, metrics) = layer_with(&end, 3, |settings| settings.retry_budget_per_second = 0);
    layer.send(call(Rpc::CreateFeed, LIMIT)).await.unwrap_err();
    assert_eq!((end.calls(), metrics.refused[Refusal::Budget as usize].get()), (4, 0));
}

#[tokio::test(start_paused = true)]
async fn attempts_know_which_instances_were_tried_and_how_many_attempts_were_made() {
    let end = ScriptedEnd::new(|n, call| async move {
        assert_eq!(call.context.previous_attempts as usize, n);
        assert_eq!(call.tried, (1..=n as u64).collect::<Vec<_>>());
        call.attempt.set_picked(n as u64 + 1);
        Err(failure(Code::Unavailable))
    });
    layer(&end).0.send(call(Rpc::GetFeeds, LIMIT)).await.unwrap_err();
    assert_eq!(end.calls(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_retry_of_a_caller_above_is_not_retried_again() {
    for (failure, attempts) in [
        (failure(Code::Unavailable), 1),
        (undelivered(Delivery::NotSent), 4),
        (undelivered(Delivery::Unprocessed), 2),
    ] {
        let end = failing(vec![failure; 9]);
        let mut call = call(Rpc::GetFeeds, LIMIT);
        call.context.previous_attempts = 1;
        layer(&end).0.send(call).await.unwrap_err();
        assert_eq!(end.calls(), attempts);
    }
}

/// F7: over 10 s retries are at most a fifth of the calls plus 10/s.
#[tokio::test(start_paused = true)]
async fn in_a_full_outage_the_budget_bounds_the_attempts() {
    for failure in
        [failure(Code::Unavailable), undelivered(Delivery::Unprocessed), undelivered(Delivery::Unknown)]
    {
        let end = failing(vec![failure; 1_000_000]);
        // time passes only between the seconds
        let (layer, metrics) = layer_with(&end, 3, |settings| settings.retry_backoff = Duration::ZERO);
        let mut last = 0;
        for second in 1..=30 {
            for _ in 0..200 {
                let _ = layer.send(call(Rpc::GetFeeds, LIMIT)).await;
            }
            if second % 10 == 0 {
                let attempts = end.calls() - last;
                assert!(attempts <= 2000 * 12 / 10 + 100, "{attempts} in 10 s");
                assert!(attempts >= 2000 + 200, "{attempts}: hardly any retries");
                last = end.calls();
            }
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert!(metrics.refused[Refusal::Budget as usize].get() > 1000);
    }
}

#[tokio::test(start_paused = true)]
async fn waits_are_short_jittered_and_the_servers_if_it_has_one() {
    let waited = |failures: Vec<Failure>| async move {
        let begun = Instant::now();
        layer(&failing(failures)).0.send(call(Rpc::GetFeeds, LIMIT)).await.unwrap();
        begun.elapsed().as_millis()
    };
    assert!((5..=12).contains(&waited(vec![failure(Code::Unavailable)]).await));
    assert!((15..=33).contains(&waited(vec![failure(Code::Unavailable); 2]).await));
    let pushback = pushed(Code::Unavailable, Pushback::After(Duration::from_millis(700)));
    assert!((700..=702).contains(&waited(vec![pushback]).await));
    assert_eq!(waited(vec![undelivered(Delivery::Unprocessed)]).await, 0);
}

#[tokio::test(start_paused = true)]
async fn no_attempt_begins_after_the_deadline() {
    let end = failing(vec![pushed(Code::Unavailable, Pushback::After(LIMIT)); 9]);
    let (layer, metrics) = layer(&end);
    let begun = Instant::now();
    layer.send(call(Rpc::GetFeeds, LIMIT)).await.unwrap_err();
    assert_eq!(
        (end.calls(), begun.elapsed()),
        (1, Duration::ZERO),
        "it does not wait for an attempt that cannot follow"
    );
    assert_eq!(metrics.refused[Refusal::Deadline as usize].get(), 1);
}
