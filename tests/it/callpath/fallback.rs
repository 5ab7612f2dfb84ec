//! What callers get while a service cannot answer: an earlier answer, one without its optional part, or an
//! error at once.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;
use tonic::Code;

use super::{app_with_feed, counting, outcome, topics};
use crate::kit::app::App;
use crate::kit::etcd::Etcd;
use crate::kit::http::{get, put, request, send};
use crate::kit::system::Role;
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
    // the gateway tells profile in whole milliseconds how long ago it wrote; in doubt an answer counts as older than that
    tokio::time::sleep(Duration::from_millis(50)).await;
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

/// What was deleted or overwritten does not come back while a service is away, not even on another page that was read
/// before, and not in a profile.
#[tokio::test]
async fn an_acknowledged_write_is_not_undone_by_the_fallback() {
    let etcd = Etcd::start().await;
    let endpoint = etcd.addr.to_string();
    let gateway = Role::gateway(&endpoint);
    let [_profile] = Role::services(&endpoint, "profile");
    let ([mut feed], [mut topic]) = (Role::services(&endpoint, "feed"), Role::services(&endpoint, "topic"));
    for service in ["feed", "profile", "topic"] {
        gateway.wait_for_certain(service, 1).await;
    }
    let lists = ["/api/feed/get_feeds?user_id=7", "/api/feed/get_feeds?user_id=7&size=5"];
    let (profile, view, list) =
        ("/api/profile/get_profile?user_id=7", "/api/topic/view?topic_id=1", "/api/topic/list");
    let write = async |path: &str, body: &str| {
        let answer = put(gateway.addr, path, body).await;
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
    };
    write("/api/profile/put_profile", r#"{"user_id":7,"name":"n","company":"c","title":"t"}"#).await;
    write("/api/feed/create_feed", r#"{"id":1,"user_id":7,"content":"deleted later"}"#).await;
    write("/api/feed/create_feed", r#"{"id":1,"user_id":8,"content":"of another user"}"#).await;
    write("/api/topic/put_topic", r#"{"topic_id":1,"subject":"old","content":"old"}"#).await;
    let other = "/api/feed/get_feeds?user_id=8";
    wait_for("the profile has its feeds", || async {
        let answer = get(gateway.addr, profile).await;
        (answer.json()["feeds"].as_array()?.len() == 1 && answer.degraded().is_empty()).then_some(())
    })
    .await;
    for path in lists.into_iter().chain([view, list, other]) {
        assert_eq!(outcome(&get(gateway.addr, path).await), (200, ""), "{path}");
    }
    let deleted =
        send(gateway.addr, request("DELETE", "/api/feed/delete_feed?user_id=7&id=1", "")).await.unwrap();
    assert_eq!(deleted.status, 200, "{deleted:?}");
    write("/api/topic/put_topic", r#"{"topic_id":1,"subject":"new","content":"new"}"#).await;

    feed.process.kill();
    topic.process.kill();
    for path in lists.into_iter().chain([view, list]) {
        let answer = get(gateway.addr, path).await;
        assert_eq!(answer.status, 503, "{path}: {answer:?}");
    }
    let answer = get(gateway.addr, profile).await;
    assert_eq!(outcome(&answer), (200, "feeds_unavailable"), "{answer:?}");
    assert_eq!(answer.json()["feeds"], json!([]));
    // nobody wrote that
    assert_eq!(outcome(&get(gateway.addr, other).await), (200, "stale"));
}
