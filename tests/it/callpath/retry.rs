//! Attempts that fail and calls that are sent again: which are, how often, and what the next instance is told.

use std::sync::atomic::Ordering::Relaxed;

use microservice_app::config::Balancer;
use tokio::sync::mpsc;
use tonic::Code;

use super::{LIST, app_with, calls, counting, failed, good, outcome, topic};
use crate::kit::app::App;
use crate::kit::http::{get, request, send};
use crate::kit::peer::{self, Peer};
use crate::kit::wait_for;

/// Each way in which an exchange can die is `Unavailable`, which a read survives on another instance.
#[tokio::test]
async fn whatever_a_connection_dies_of_a_read_survives_and_its_code_is_unavailable() {
    let deaths: [(&str, Peer); 7] = [
        ("reset", peer::healthy(|_, mut r| async move { r.send_reset(h2::Reason::INTERNAL_ERROR) }).await),
        ("refused", peer::healthy(|_, mut r| async move { r.send_reset(h2::Reason::REFUSED_STREAM) }).await),
        ("cut", peer::breaking(peer::Break::Close).await),
        ("goaway", peer::breaking(peer::Break::Goaway).await),
        ("mid-answer", peer::breaking(peer::Break::MidAnswer).await),
        ("no trailers", peer::breaking(peer::Break::NoTrailers).await),
        ("garbage", peer::breaking(peer::Break::Garbage).await),
    ];
    for (name, dying) in &deaths {
        let alone = app_with(&[dying], |settings| settings.client.attempts = 1).await;
        let answer = get(alone.gateway(), LIST).await;
        assert_eq!(answer.status, 503, "{name}: {answer:?}");
        let attempts = "grpc_client_attempt_duration_seconds_count{code=\"UNAVAILABLE\",\
                        method=\"ListTopics\",service=\"topic.Topic\"}";
        assert!(alone.metric(attempts).await >= 1.0, "{name}");

        let (fine, _) = good().await;
        let app = app_with(&[dying, &fine], |_| {}).await;
        let answers = calls(&app, LIST, 40).await;
        assert_eq!(failed(&answers), 0, "{name}: {:?}", answers.iter().find(|a| outcome(a) != (200, "")));
    }
}

/// Pushback is no failure: the breaker stays closed, and the server's word counts.
#[tokio::test]
async fn pushback_is_honoured_and_trips_nothing() {
    let (count, asked) = counting();
    let shedding = peer::healthy(move |_, mut respond| {
        count.fetch_add(1, Relaxed);
        async move { peer::say(&mut respond, Code::Unavailable, &[("grpc-retry-pushback-ms", "-1")]) }
    })
    .await;
    let app = app_with(&[&shedding], |_| {}).await;
    let answers = calls(&app, LIST, 20).await;
    assert!(answers.iter().all(|answer| answer.status == 503));
    assert_eq!(asked(), 20, "not one more, not one less");
    let state = topic(&app, shedding.addr).await;
    assert_eq!(state["breakers"], serde_json::json!({}));
    assert!(state["failures"]["ListTopics"].as_f64() > Some(0.5), "it adds load: {state}");
}

/// Nothing further down repeats a call that is a repeat itself, and the last hop sees how many there were.
#[tokio::test]
async fn a_repeated_call_says_so_to_the_next_instance() {
    let (seen, mut events) = mpsc::unbounded_channel();
    let peer = peer::healthy(move |asked: peer::Asked, mut respond| {
        let previous = asked.headers().get("grpc-previous-rpc-attempts").cloned();
        let _ = seen.send(previous.map(|value| value.to_str().unwrap().to_owned()));
        async move { peer::say(&mut respond, Code::Unavailable, &[]) }
    })
    .await;
    let app = app_with(&[&peer], |_| {}).await;
    assert_eq!(get(app.gateway(), LIST).await.status, 503);
    let mut headers = Vec::new();
    while let Ok(header) = events.try_recv() {
        headers.push(header);
    }
    assert_eq!(headers, [None, Some("1".to_owned()), Some("2".to_owned())]);
}

/// F40: an attempt whose answer was lost may have deleted the feed.
#[tokio::test]
async fn a_delete_whose_answer_was_lost_is_no_404() {
    let (count, asked) = counting();
    let peer = peer::healthy(move |_, mut respond| {
        let n = count.fetch_add(1, Relaxed);
        async move {
            if n == 0 {
                respond.send_reset(h2::Reason::INTERNAL_ERROR);
            } else {
                peer::fine(&mut respond); // deleted: false
            }
        }
    })
    .await;
    let app = App::launch(|settings| settings.up.feed_replicas = 0);
    let _registered = app.register("feed", peer.addr);
    let delete = || send(app.gateway(), request("DELETE", "/api/feed/delete_feed?user_id=7&id=1", ""));
    assert_eq!(delete().await.unwrap().status, 200);
    assert_eq!(asked(), 2);
    assert_eq!(delete().await.unwrap().status, 404, "one attempt, and it was not there");
}

#[tokio::test]
async fn a_call_that_was_never_processed_is_tried_once_more_elsewhere() {
    // in turn, so that it is met again and again
    let app = App::start_with(|settings| settings.client.balancer = Balancer::RoundRobin).await;
    let refusing = peer::refusing().await;
    let _registered = app.register("topic", refusing.addr);
    let retries = "client_retry_granted_total{reason=\"unprocessed\",service=\"topic\"}";
    // calls go to an instance a moment after it is up: some 20 ms, in which a fast program makes many
    wait_for("a call meets the refusing instance", || async {
        assert_eq!(outcome(&get(app.gateway(), LIST).await), (200, ""));
        app.metric_above(retries, 0.0).await.then_some(())
    })
    .await;
    let before = app.metric(retries).await;
    for _ in 0..50 {
        assert_eq!(outcome(&get(app.gateway(), LIST).await), (200, ""));
    }
    let met = app.metric(retries).await - before;
    assert!((met - 25.0).abs() < 0.5, "{met} of 50 calls met one of two instances, in turn");
}
