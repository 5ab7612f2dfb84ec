//! What callers get while a service cannot answer: an earlier answer, one without its optional part, or an
//! error at once.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;
use tonic::Code;

use super::{app_with_feed, counting, outcome, topics};
use crate::kit::app::App;
use crate::kit::http::{get, put, request, send};
use crate::kit::{peer, wait_for};

/// The last good answer, marked; what was never asked before fails.
#[tokio::test]
async fn a_read_falls_back_to_the_last_good_answer_and_says_so() {
    let app = App::start().await;
    let put_topic = r#"{"topic_id":1,"subject":"s","content":"c"}"#;
    assert_eq!(put(app.gateway(), "/api/topic/put_topic", put_topic).await.status, 200);
    let view = "/api/topic/view?topic_id=1";
    let fresh = get(app.gateway(), view).await;
    assert_eq!(outcome(&fresh), (200, ""));
    // its place is taken by an instance that answers nothing
    let broken = peer::healthy(|_, mut r| async move { r.send_reset(h2::Reason::INTERNAL_ERROR) }).await;
    let addr = app.addresses.of(microservice_app::config::Role::Topic).unwrap();
    let _taken = app.register("topic", broken.addr);
    app.register("topic", addr).revoke().await;
    wait_for("only the broken one is left", || async {
        let all = topics(&app).await;
        (all.len() == 1 && all[0]["addr"] == broken.addr.to_string() && all[0]["state"] == "up").then_some(())
    })
    .await;
    let stale = get(app.gateway(), view).await;
    assert_eq!((outcome(&stale), &stale.body), ((200, "stale"), &fresh.body));
    let age: u64 = stale.header("age").parse().unwrap();
    assert!(age < 30, "{age}");
    assert_eq!(get(app.gateway(), "/api/topic/view?topic_id=2").await.status, 503);
    assert_eq!(put(app.gateway(), "/api/topic/put_topic", put_topic).await.status, 503);
    let served = app.metric("client_fallback_total{method=\"GetTopic\",service=\"topic\"}").await;
    assert!((served - 1.0).abs() < 0.1, "{served}");
}

/// Degradation crosses hops: a profile with earlier feeds says so.
#[tokio::test]
async fn a_profile_with_earlier_feeds_says_so() {
    let (count, _) = counting();
    let feed = peer::healthy(move |_, mut respond| {
        let n = count.fetch_add(1, Relaxed);
        async move {
            if n == 0 {
                peer::fine(&mut respond);
            } else {
                peer::say(&mut respond, Code::Unavailable, &[]);
            }
        }
    })
    .await;
    let app = app_with_feed(&feed).await;
    let path = "/api/profile/get_profile?user_id=7";
    assert_eq!(outcome(&get(app.gateway(), path).await), (200, ""));
    let stale = get(app.gateway(), path).await;
    assert_eq!(outcome(&stale), (200, "stale"));
    let age: u64 = stale.header("age").parse().unwrap();
    assert!(age < 30, "{age}");
}

#[tokio::test]
async fn a_profile_comes_without_feeds_when_feed_is_gone() {
    let app = App::launch(|settings| settings.up.feed_replicas = 0);
    let profile = r#"{"user_id":7,"name":"n","company":"c","title":"t"}"#;
    wait_for("profile answers", || async {
        let answer = put(app.gateway(), "/api/profile/put_profile", profile).await;
        (answer.status == 200).then_some(())
    })
    .await;
    let answer = get(app.gateway(), "/api/profile/get_profile?user_id=7").await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.degraded(), "feeds_unavailable");
    assert_eq!(answer.json()["feeds"], json!([]));
    // the same within its deadline when feed is there but says nothing
    let silent = peer::stalling().await;
    let _registered = app.register("feed", silent.addr);
    wait_for("the silent feed is asked", || async {
        let begun = Instant::now();
        let mut asked = request("GET", "/api/profile/get_profile?user_id=7", "");
        asked.headers_mut().insert("x-request-timeout-ms", "400".parse().unwrap());
        let answer = send(app.gateway(), asked).await.unwrap();
        assert_eq!((answer.status.as_u16(), answer.degraded()), (200, "feeds_unavailable"));
        (begun.elapsed() >= Duration::from_millis(60)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn without_an_instance_the_answer_is_503_at_once() {
    let app = App::launch(|settings| settings.up.topic_replicas = 0);
    let begun = Instant::now();
    let answer = get(app.gateway(), "/api/topic/list").await;
    assert_eq!((answer.status.as_u16(), answer.header("retry-after")), (503, "1"));
    assert_eq!(answer.json()["type"], "urn:microservice-app:problem:unavailable");
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    let ready = get(app.addresses.admin, "/readyz").await;
    assert_eq!(ready.status, 200);
    assert!(ready.body.contains("warn: topic: no instance can be called\n"), "{}", ready.body);
}
