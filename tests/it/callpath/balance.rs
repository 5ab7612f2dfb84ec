//! Which instance gets a call: instances that are down, fail, come back or join.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use microservice_app::config::Settings;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tonic::Code;

use super::{Event, LIST, app_with, calls, counting, failed, failing, good, next, outcome, recording, topic};
use crate::kit::app::App;
use crate::kit::http::{get, request, send};
use crate::kit::{free_addr, member, peer, wait_for};

/// F5 and F6: an instance that fails fast in one method attracts no calls of it, and keeps the others.
#[tokio::test]
async fn an_instance_that_is_bad_in_one_method_keeps_the_others() {
    let (bad, asked) = failing("ListTopics", Code::Internal).await;
    let ((one, _), (other, _)) = (good().await, good().await);
    let app = app_with(&[&bad, &one, &other], |_| {}).await;
    let answers = calls(&app, LIST, 600).await;
    let (failures, share) = (failed(&answers), asked());
    assert!(failures <= 6, "{failures} of 600 calls failed");
    assert!(share < 30, "{share} of 600 calls went to the bad one");
    // by the breaker or by its load it gets none; the other method is as good as any
    let before = metric_of_views(&app).await;
    let answers = calls(&app, "/api/topic/view?topic_id=1", 300).await;
    assert_eq!(failed(&answers), 0);
    let bad_state = topic(&app, bad.addr).await;
    assert!(bad_state["ewma_ms"]["GetTopic"].is_number(), "it got none of the other method: {bad_state}");
    assert!(before < 1.0);
}

async fn metric_of_views(app: &App) -> f64 {
    app.metric("client_breaker_transitions_total{method=\"GetTopic\",service=\"topic\",to=\"open\"}").await
}

/// The only instance gets no calls after consecutive failures, for at most 2 s at a time, and serves again at once.
#[tokio::test]
async fn the_only_instance_is_spared_for_a_while_and_then_tried_again() {
    let (count, asked) = counting();
    let healed = Arc::new(AtomicUsize::new(0));
    let (heal, healing) = (healed.clone(), healed);
    let peer = peer::healthy(move |_, mut respond| {
        count.fetch_add(1, Relaxed);
        let good = heal.load(Relaxed) > 0;
        async move {
            if good {
                peer::fine(&mut respond);
            } else {
                peer::say(&mut respond, Code::Internal, &[]);
            }
        }
    })
    .await;
    // as long as its breaker may be open: the calls below must fit into that
    let spare = |settings: &mut Settings| settings.client.breaker_backoff = Duration::from_secs(2);
    let app = app_with(&[&peer], spare).await;
    let answers = calls(&app, LIST, 5).await;
    assert!(answers.iter().all(|answer| answer.status == 500), "{answers:?}");
    let refused = calls(&app, LIST, 5).await;
    assert!(refused.iter().all(|answer| answer.status == 503), "{refused:?}");
    assert_eq!(asked(), 5);
    let state = topic(&app, peer.addr).await;
    assert_eq!(
        (&state["breakers"]["ListTopics"], &state["why"]),
        (&"open".into(), &"breaker open for ListTopics".into())
    );
    healing.store(1, Relaxed);
    let begun = Instant::now();
    wait_for("it is tried again", || async {
        (outcome(&get(app.gateway(), LIST).await) == (200, "")).then_some(())
    })
    .await;
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    assert_eq!(member(&topic(&app, peer.addr).await, "why"), &Value::Null);
}

/// A socket that is bound but not served takes connections; it is not up.
#[tokio::test]
async fn an_instance_that_never_says_a_word_is_not_up() {
    let silent = peer::silent().await;
    let (fine, _) = good().await;
    let app = App::launch(|settings| {
        settings.up.topic_replicas = 0;
        settings.client.connect_timeout = Duration::from_millis(200);
    });
    let _registered = [app.register("topic", silent.addr), app.register("topic", fine.addr)];
    wait_for("the silent one is down", || async {
        let state = topic(&app, silent.addr).await;
        (state["state"] == "down" && state["why"] == "it cannot be connected to").then_some(())
    })
    .await;
    assert_eq!(failed(&calls(&app, LIST, 50).await), 0);
}

/// A new instance takes its share bit by bit, one that returns too.
#[tokio::test]
async fn an_instance_that_comes_back_gets_its_share() {
    let ((one, first), (other, second)) = (good().await, good().await);
    let app = app_with(&[&one], |settings| settings.client.slow_start = Duration::from_millis(500)).await;
    let _registered = app.register("topic", other.addr);
    wait_for("the newcomer has a fair share", || async {
        let (before_first, before_second) = (first(), second());
        assert_eq!(failed(&calls(&app, LIST, 100).await), 0);
        let (mine, theirs) = (second() - before_second, first() - before_first);
        // 80 % of half of them
        (mine >= 40 && theirs >= 20).then_some(())
    })
    .await;
}

/// Callers that hang up say nothing of the instance: no breaker opens, and the attempts are counted.
#[tokio::test]
async fn callers_that_hang_up_blame_nobody() {
    let (seen, mut events) = mpsc::unbounded_channel();
    let peer = recording(seen).await;
    let app = app_with(&[&peer], |_| {}).await;
    for _ in 0..10 {
        let mut caller = tokio::net::TcpStream::connect(app.gateway()).await.unwrap();
        let head = format!("GET {LIST} HTTP/1.1\r\nhost: x\r\n\r\n");
        tokio::io::AsyncWriteExt::write_all(&mut caller, head.as_bytes()).await.unwrap();
        assert!(matches!(next(&mut events).await, Some(Event::Asked)));
        drop(caller);
        assert!(matches!(next(&mut events).await, Some(Event::Reset)));
    }
    let state = topic(&app, peer.addr).await;
    assert_eq!((&state["breakers"], &state["in_flight"]), (&serde_json::json!({}), &0.into()), "{state}");
    let cancelled = "grpc_client_attempt_duration_seconds_count{code=\"CANCELLED\",\
                     method=\"ListTopics\",service=\"topic.Topic\"}";
    assert!((app.metric(cancelled).await - 10.0).abs() < 0.1);
    // neither do those who do not give it time
    for _ in 0..10 {
        let mut asked = request("GET", LIST, "");
        asked.headers_mut().insert("x-request-timeout-ms", "20".parse().unwrap());
        assert_eq!(send(app.gateway(), asked).await.unwrap().status, 504);
    }
    assert_eq!(topic(&app, peer.addr).await["breakers"], serde_json::json!({}));
}

#[tokio::test]
async fn an_instance_that_is_down_is_skipped() {
    let app = App::start().await;
    let dead = free_addr();
    let _registered = app.register("topic", dead);
    wait_for("it is known to be down", || async {
        app.metric_above("client_endpoints{service=\"topic\",state=\"down\"}", 0.0).await.then_some(())
    })
    .await;
    for _ in 0..50 {
        let answer = get(app.gateway(), "/api/topic/list").await;
        assert_eq!((answer.status.as_u16(), answer.degraded()), (200, ""));
    }
    let retries = app.metric("client_retry_granted_total{reason=\"not_sent\",service=\"topic\"}").await;
    assert!(retries < 1.0, "{retries} calls went to the dead instance first");
}
