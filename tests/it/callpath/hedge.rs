//! Slow instances: an answer that comes in time is not thrown away, a hedge races a slow attempt, and the short
//! limit of one caller says nothing to others.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use microservice_app::config::Balancer;
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tonic::Code;

use super::{LIST, app_with, app_with_feed, calls, counting, failed, failing, good, outcome, topic, topics};
use crate::kit::app::App;
use crate::kit::collector::{Collector, Manner};
use crate::kit::http::{Answer, get, request, send};
use crate::kit::peer::{self, Peer};
use crate::kit::wait_for;

const MS: Duration = Duration::from_millis(1);

/// An instance that takes its time for each answer, and how often it was asked.
async fn slow(time: Duration) -> (Peer, impl Fn() -> usize) {
    let (count, asked) = counting();
    let peer = peer::healthy(move |_, mut respond| {
        count.fetch_add(1, Relaxed);
        async move {
            tokio::time::sleep(time).await;
            peer::fine(&mut respond);
        }
    });
    (peer.await, asked)
}

/// An instance that answers at once until it is told to stall, and how often it was asked since then.
async fn stalling_when_told() -> (Peer, Arc<AtomicBool>, Arc<AtomicUsize>) {
    let (stalls, stalled) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let (told, count) = (stalls.clone(), stalled.clone());
    let peer = peer::healthy(move |_, mut respond| {
        let stalls = told.load(Relaxed);
        count.fetch_add(usize::from(stalls), Relaxed);
        async move {
            if stalls {
                std::future::pending::<()>().await;
            }
            peer::fine(&mut respond);
        }
    });
    (peer.await, stalls, stalled)
}

/// Makes a read with a time limit of its caller.
async fn limited(app: &App, path: &str, limit: Duration) -> Answer {
    let mut asked = request("GET", path, "");
    let limit = limit.as_millis().to_string().parse().expect("digits");
    asked.headers_mut().insert("x-request-timeout-ms", limit);
    send(app.gateway(), asked).await.expect("an answer")
}

async fn breakers_opened(app: &App) -> f64 {
    app.metric("client_breaker_transitions_total{method=\"ListTopics\",service=\"topic\",to=\"open\"}").await
}

/// More instances must not make an answer fail that one instance gives in time.
#[tokio::test]
async fn an_answer_that_is_slow_but_in_time_arrives_however_many_instances_there_are() {
    for (takes, limit) in [(700 * MS, 2000 * MS), (160 * MS, 400 * MS)] {
        let ((one, a), (two, b), (three, c)) = (slow(takes).await, slow(takes).await, slow(takes).await);
        let app = app_with(&[&one, &two, &three], |_| {}).await;
        let mut tasks = JoinSet::new();
        for _ in 0..5 {
            let mut asked = request("GET", LIST, "");
            asked
                .headers_mut()
                .insert("x-request-timeout-ms", limit.as_millis().to_string().parse().unwrap());
            tasks.spawn(send(app.gateway(), asked));
        }
        let answers: Vec<_> = tasks.join_all().await.into_iter().map(Result::unwrap).collect();
        assert_eq!(failed(&answers), 0, "{takes:?} of {limit:?}: {answers:?}");
        assert_eq!(a() + b() + c(), 5, "{takes:?} of {limit:?}: each call is one attempt");
        assert!(breakers_opened(&app).await < 1.0);
    }
}

/// A caller in a hurry gets 504. The instance is as good as before for all others.
#[tokio::test]
async fn the_short_limit_of_some_callers_costs_others_nothing() {
    let (peer, _) = slow(300 * MS).await;
    let app = app_with(&[&peer], |_| {}).await;
    for _ in 0..20 {
        assert_eq!(limited(&app, LIST, 110 * MS).await.status, 504);
    }
    let state = topic(&app, peer.addr).await;
    assert_eq!((&state["breakers"], &state["failures"]), (&serde_json::json!({}), &serde_json::json!({})));
    let answers = calls(&app, LIST, 10).await;
    assert_eq!(failed(&answers), 0, "{answers:?}");
}

/// The same one hop further: the feeds of a profile get a fifth of its time.
#[tokio::test]
async fn the_short_limit_of_some_callers_suspends_no_best_effort_calls() {
    let (feed, _) = slow(300 * MS).await;
    let app = app_with_feed(&feed).await;
    let path = "/api/profile/get_profile?user_id=7";
    for _ in 0..10 {
        let answer = limited(&app, path, 600 * MS).await;
        assert_eq!(outcome(&answer), (200, "feeds_unavailable"));
    }
    let answers = calls(&app, path, 5).await;
    assert_eq!(failed(&answers), 0, "{answers:?}");
}

/// A half-open breaker: a probe that its caller ends early neither closes nor reopens it.
#[tokio::test]
async fn a_probe_that_its_caller_ends_early_settles_nothing() {
    let (bad, healed) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicUsize::new(0)));
    let (is_bad, count) = (bad.clone(), healed.clone());
    let peer = peer::healthy(move |_, mut respond| {
        let bad = is_bad.load(Relaxed);
        count.fetch_add(usize::from(!bad), Relaxed);
        async move {
            if bad {
                return peer::say(&mut respond, Code::Internal, &[]);
            }
            tokio::time::sleep(300 * MS).await;
            peer::fine(&mut respond);
        }
    })
    .await;
    let app = app_with(&[&peer], |settings| settings.client.breaker_backoff = 300 * MS).await;
    assert_eq!(failed(&calls(&app, LIST, 5).await), 5);
    assert_eq!(topic(&app, peer.addr).await["breakers"]["ListTopics"], "open");
    bad.store(false, Relaxed);
    wait_for("a probe in a hurry", || async {
        let status = limited(&app, LIST, 110 * MS).await.status;
        (status == 504).then_some(())
    })
    .await;
    assert_eq!(healed.load(Relaxed), 1, "it was the probe");
    // the next call is the probe, at once
    assert_eq!(outcome(&get(app.gateway(), LIST).await), (200, ""));
    assert!((breakers_opened(&app).await - 1.0).abs() < 0.1);
}

/// A read that waits for an instance that stalls is also sent to another one, soon after the usual time of an
/// answer; the attempt that lost is no failure of its instance.
#[tokio::test]
async fn a_hedge_answers_for_an_instance_that_stalls() {
    let (peer, stalls, stalled) = stalling_when_told().await;
    let (other, _) = good().await;
    let app = app_with(&[&peer, &other], |_| {}).await;
    assert_eq!(failed(&calls(&app, LIST, 60).await), 0);
    stalls.store(true, Relaxed);
    let mut slowest = Duration::ZERO;
    for _ in 0..600 {
        let begun = Instant::now();
        let answer = get(app.gateway(), LIST).await;
        slowest = slowest.max(begun.elapsed());
        assert_eq!(outcome(&answer), (200, ""));
        if stalled.load(Relaxed) > 2 {
            break;
        }
        tokio::time::sleep(5 * MS).await;
    }
    assert!(stalled.load(Relaxed) > 0, "the one that stalls was never asked");
    assert!(slowest < 500 * MS, "{slowest:?}");
    let hedges = app.metric("client_retry_granted_total{reason=\"hedge\",service=\"topic\"}").await;
    let won = app.metric("client_hedge_wins_total{service=\"topic\"}").await;
    let asked = stalled.load(Relaxed) as f64;
    assert!(
        hedges >= asked && won >= asked && won <= hedges,
        "{won} of {hedges} hedges won, {asked} stalled"
    );
    let state = topic(&app, peer.addr).await;
    assert_eq!((&state["breakers"], &state["failures"]), (&serde_json::json!({}), &serde_json::json!({})));
}

/// The instances that reads wait for have left the view: any other one will do. No hedge is needed for that: there are too
/// few answers for one.
#[tokio::test]
async fn a_read_that_waits_for_an_instance_that_has_left_is_made_elsewhere() {
    let (peer, stalls, stalled) = stalling_when_told().await;
    let (other, _) = good().await;
    let app = App::launch(|settings| {
        settings.up.topic_replicas = 0;
        settings.client.balancer = Balancer::RoundRobin;
        // so long that a slow machine does not end the reads before the instance has left
        settings.client.deadline = Duration::from_secs(30);
    });
    let _other = app.register("topic", other.addr);
    let leaving = app.register("topic", peer.addr);
    wait_for("both are up", || async {
        let topics = topics(&app).await;
        (topics.iter().filter(|topic| topic["state"] == "up").count() == 2).then_some(())
    })
    .await;
    stalls.store(true, Relaxed);
    let mut reads = JoinSet::new();
    // in turn; the share of an instance that has just come is small at first
    while stalled.load(Relaxed) < 5 {
        assert!(reads.len() < 1000, "of 1000 reads {} wait", stalled.load(Relaxed));
        reads.spawn(get(app.gateway(), LIST));
        tokio::time::sleep(5 * MS).await;
    }
    leaving.revoke().await;
    wait_for("it has left", || async { (topics(&app).await.len() == 1).then_some(()) }).await;
    let answers = reads.join_all().await;
    assert_eq!(failed(&answers), 0, "{answers:?}");
}

/// A hedge is a span of its own; the attempt that lost is neither an error nor a hang-up.
#[tokio::test]
async fn the_attempt_that_lost_is_no_error_in_its_trace() {
    let (peer, stalls, stalled) = stalling_when_told().await;
    let (other, _) = good().await;
    let collector = Collector::start(Manner::Keep);
    let app = app_with(&[&peer, &other], |settings| {
        settings.trace.zipkin_addr = Some(collector.url().parse().unwrap());
        settings.trace.sample_ratio = 0.0;
        settings.client.balancer = Balancer::RoundRobin;
    })
    .await;
    assert_eq!(failed(&calls(&app, LIST, 60).await), 0);
    stalls.store(true, Relaxed);
    let attempts = wait_for("a traced hedge", || async {
        let before = stalled.load(Relaxed);
        let mut asked = request("GET", LIST, "");
        asked
            .headers_mut()
            .insert("b3", "463ac35c9f6413ad48485a3953bb6124-a2fb4a1d1a96d312-1".parse().unwrap());
        assert_eq!(outcome(&send(app.gateway(), asked).await.unwrap()), (200, ""));
        if stalled.load(Relaxed) == before {
            return None;
        }
        let spans = wait_for("its spans", || async {
            let spans = collector.spans();
            let hedge = |span: &&Value| span["tags"]["hedge"].is_string();
            (spans.iter().filter(hedge).count() >= 2).then_some(spans)
        });
        Some(spans.await)
    })
    .await;
    let with = |value: &str| attempts.iter().find(|span| span["tags"]["hedge"] == value).expect(value);
    let (sent, lost) = (with("sent"), with("lost"));
    assert_eq!((&sent["tags"]["attempt"], &sent["tags"]["grpc.status_code"]), (&"2".into(), &"OK".into()));
    assert_eq!((&lost["tags"]["attempt"], &lost["tags"]["error"]), (&"1".into(), &Value::Null));
    assert_eq!(sent["parentId"], lost["parentId"]);
}

/// A hedge costs budget and another instance's time: one that is likely to fail is not sent.
#[tokio::test]
async fn no_hedge_goes_to_an_instance_whose_breaker_is_open() {
    let (peer, stalls, stalled) = stalling_when_told().await;
    let (bad, failed_calls) = failing("/ListTopics", Code::Internal).await;
    let app = app_with(&[&peer, &bad], |settings| {
        settings.client.balancer = Balancer::RoundRobin;
        settings.client.breaker_backoff = Duration::from_mins(1);
        settings.client.breaker_backoff_cap = Duration::from_mins(1);
    })
    .await;
    calls(&app, LIST, 120).await;
    assert_eq!(topic(&app, bad.addr).await["breakers"]["ListTopics"], "open");
    let before = failed_calls();
    stalls.store(true, Relaxed);
    assert_eq!(outcome(&limited(&app, LIST, 600 * MS).await), (200, "stale"));
    assert_eq!((stalled.load(Relaxed), failed_calls()), (1, before), "it goes on alone");
    for refused in ["granted_total{reason=\"hedge\"", "refused_total{reason=\"hedge_budget\""] {
        let counted = app.metric(&format!("client_retry_{refused},service=\"topic\"}}")).await;
        assert!(counted < 0.5, "{refused}: {counted}");
    }
}
