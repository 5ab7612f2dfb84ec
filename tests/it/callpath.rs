//! The call path end to end: an application whose instances misbehave one way or another, and what its
//! callers see of it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use microservice_app::config::Settings;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tonic::Code;

use crate::kit::app::App;
use crate::kit::fake::{Behaviour, Fake};
use crate::kit::http::{Answer, Connection, get, put, request, send};
use crate::kit::peer::{self, Peer};
use crate::kit::{SOON, measured, wait_for};

const LIST: &str = "/api/topic/list";

/// An application whose topic instances are all made by the test.
async fn app_with(peers: &[&Peer], change: impl FnOnce(&mut Settings)) -> App {
    let app = App::launch(|settings| {
        settings.up.topic_replicas = 0;
        change(settings);
    });
    for peer in peers {
        std::mem::forget(app.register("topic", peer.addr));
    }
    let wanted = peers.len();
    wait_for("every instance is up", || async {
        let topics = topics(&app).await;
        (topics.iter().filter(|topic| topic["state"] == "up").count() == wanted).then_some(())
    })
    .await;
    app
}

async fn topics(app: &App) -> Vec<Value> {
    let status = get(app.addresses.admin, "/status").await.json();
    let clients = status["clients"].as_array().cloned().unwrap_or_default();
    clients.iter().find_map(|client| client["topic"].as_array().cloned()).unwrap_or_default()
}

async fn topic(app: &App, addr: SocketAddr) -> Value {
    let all = topics(app).await;
    all.into_iter().find(|topic| topic["addr"] == addr.to_string()).unwrap_or_default()
}

fn outcome(answer: &Answer) -> (u16, &str) {
    (answer.status.as_u16(), answer.header("x-degraded"))
}

/// Counts calls and answers each.
fn counting() -> (Arc<AtomicUsize>, impl Fn() -> usize) {
    let count = Arc::new(AtomicUsize::new(0));
    let read = count.clone();
    (count, move || read.load(Relaxed))
}

/// An instance that answers every call well, and how many there were.
async fn good() -> (Peer, impl Fn() -> usize) {
    let (count, read) = counting();
    let peer = peer::healthy(move |_, mut respond| {
        count.fetch_add(1, Relaxed);
        async move { peer::fine(&mut respond) }
    });
    (peer.await, read)
}

/// An instance that answers some of its methods with a status, and how many of those calls there were.
async fn failing(method: &'static str, code: Code) -> (Peer, impl Fn() -> usize) {
    let (count, read) = counting();
    let peer = peer::healthy(move |asked, mut respond| {
        let count = count.clone();
        async move {
            if asked.uri().path().ends_with(method) {
                count.fetch_add(1, Relaxed);
                peer::say(&mut respond, code, &[]);
            } else {
                peer::fine(&mut respond);
            }
        }
    });
    (peer.await, read)
}

async fn calls(app: &App, path: &str, count: usize) -> Vec<Answer> {
    let mut connection = Connection::open(app.gateway()).await.expect("the gateway listens");
    let mut answers = Vec::new();
    for _ in 0..count {
        answers.push(connection.get(path).await.expect("an answer"));
    }
    answers
}

fn failed(answers: &[Answer]) -> usize {
    answers.iter().filter(|answer| outcome(answer) != (200, "")).count()
}

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

/// The only instance is spared after a run of failures, at most 2 s at a time, and back at once.
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
    // as long as it may be spared: the calls below must fit into that
    let spare = |settings: &mut Settings| settings.client.breaker_backoff = Duration::from_secs(2);
    let app = app_with(&[&peer], spare).await;
    let answers = calls(&app, LIST, 5).await;
    assert!(answers.iter().all(|answer| answer.status == 500), "{answers:?}");
    let spared = calls(&app, LIST, 5).await;
    assert!(spared.iter().all(|answer| answer.status == 503), "{spared:?}");
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
    assert_eq!(topic(&app, peer.addr).await["why"], Value::Null);
}

/// A second connection is opened when the first one is crowded, and no third.
#[tokio::test]
async fn a_crowded_instance_gets_one_more_connection() {
    let fake = Fake::start().await;
    let app = App::launch(|settings| settings.up.topic_replicas = 0);
    let _registered = app.register("topic", fake.addr);
    wait_for("it is up", || async { (topic(&app, fake.addr).await["state"] == "up").then_some(()) }).await;
    for _ in 0..20 {
        assert_eq!(get(app.gateway(), LIST).await.status, 200);
    }
    assert_eq!(topic(&app, fake.addr).await["connections"], 1, "one call at a time needs no more");
    fake.behave(Behaviour { delay: Duration::from_millis(100), ..Behaviour::default() });
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..40 {
        let gateway = app.gateway();
        tasks.spawn(async move {
            for _ in 0..5 {
                assert_eq!(get(gateway, LIST).await.status, 200);
            }
        });
    }
    wait_for("there are two", || async { (topic(&app, fake.addr).await["connections"] == 2).then_some(()) })
        .await;
    tasks.join_all().await;
    assert_eq!(topic(&app, fake.addr).await["connections"], 2);
}

/// F3 and F4: a read does not wait for an instance that does not answer.
#[tokio::test]
async fn a_read_is_answered_in_time_beside_an_instance_that_stalls() {
    let stalling = peer::stalling().await;
    let ((one, _), (other, _)) = (good().await, good().await);
    let app = app_with(&[&stalling, &one, &other], |settings| {
        settings.client.deadline = Duration::from_secs(1);
    })
    .await;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let gateway = app.gateway();
        tasks.spawn(async move {
            let mut connection = Connection::open(gateway).await.unwrap();
            let mut answers = Vec::new();
            for _ in 0..100 {
                answers.push(connection.get(LIST).await.unwrap());
            }
            answers
        });
    }
    let answers: Vec<_> = tasks.join_all().await.into_iter().flatten().collect();
    assert_eq!(failed(&answers), 0, "{:?}", answers.iter().find(|answer| outcome(answer) != (200, "")));
    let given_up = app.metric("client_retry_granted_total{reason=\"timeout\",service=\"topic\"}").await;
    assert!((1.0..40.0).contains(&given_up), "{given_up} of 800 calls met the one that stalls");
}

/// F8: the caller gets its 504 in time, and nothing goes on behind it.
#[tokio::test]
async fn a_call_ends_at_its_deadline_and_is_cancelled_behind() {
    let (seen, mut events) = mpsc::unbounded_channel();
    let peer = recording(seen).await;
    let app = app_with(&[&peer], |_| {}).await;
    let (gateway, limit) = (app.gateway(), Duration::from_millis(300));
    measured("504 within 10 ms of the deadline", || async move {
        let mut asked = request("GET", LIST, "");
        asked.headers_mut().insert("x-request-timeout-ms", "300".parse().unwrap());
        let begun = Instant::now();
        let answer = send(gateway, asked).await.unwrap();
        let took = begun.elapsed();
        assert_eq!(answer.status, 504);
        let early = limit.checked_sub(Duration::from_millis(20)).unwrap();
        if took >= early && took < limit + Duration::from_millis(10) { Ok(()) } else { Err(took) }
    })
    .await;
    assert!(matches!(next(&mut events).await, Some(Event::Asked)));
    assert!(matches!(next(&mut events).await, Some(Event::Reset)), "the handler goes on");
}

/// Returns what a peer tells next, if it tells soon.
async fn next(events: &mut mpsc::UnboundedReceiver<Event>) -> Option<Event> {
    tokio::time::timeout(SOON, events.recv()).await.ok().flatten()
}

#[derive(Debug)]
enum Event {
    Asked,
    Reset,
}

/// An instance that answers nothing and tells when it was asked and when the call was reset.
async fn recording(seen: mpsc::UnboundedSender<Event>) -> Peer {
    peer::healthy(move |_, mut respond| {
        let seen = seen.clone();
        async move {
            let _ = seen.send(Event::Asked);
            let _ = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
            let _ = seen.send(Event::Reset);
        }
    })
    .await
}

/// Starts the application with this peer as its only feed service and with the profile of user 7.
async fn app_with_feed(feed: &Peer) -> App {
    let app = App::launch(|settings| settings.up.feed_replicas = 0);
    std::mem::forget(app.register("feed", feed.addr));
    let profile = r#"{"user_id":7,"name":"n","company":"c","title":"t"}"#;
    wait_for("profile answers", || async {
        (put(app.gateway(), "/api/profile/put_profile", profile).await.status == 200).then_some(())
    })
    .await;
    wait_for("profile knows feed", || async {
        let status = get(app.addresses.admin, "/status").await.json();
        let clients = status["clients"].as_array()?.clone();
        clients.iter().all(|client| client["feed"][0]["state"] == "up").then_some(())
    })
    .await;
    app
}

/// gateway -> profile -> feed: who hangs up at the front cancels the last handler.
#[tokio::test]
async fn a_hang_up_reaches_the_last_handler_within_50_ms() {
    let (seen, mut events) = mpsc::unbounded_channel();
    let feed = recording(seen).await;
    let app = app_with_feed(&feed).await;
    for attempt in 0..3 {
        let mut caller = tokio::net::TcpStream::connect(app.gateway()).await.unwrap();
        let head = "GET /api/profile/get_profile?user_id=7 HTTP/1.1\r\nhost: x\r\n\r\n";
        tokio::io::AsyncWriteExt::write_all(&mut caller, head.as_bytes()).await.unwrap();
        assert!(matches!(next(&mut events).await, Some(Event::Asked)));
        drop(caller);
        let begun = Instant::now();
        assert!(matches!(next(&mut events).await, Some(Event::Reset)));
        let took = begun.elapsed();
        if took < Duration::from_millis(50) {
            return;
        }
        assert!(attempt < 2, "{took:?}");
    }
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
    assert!(!stale.header("age").is_empty());
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

/// An old connection is replaced before it goes; no call notices.
#[tokio::test]
async fn connections_are_replaced_in_time() {
    let app = App::start_with(|settings| {
        settings.client.connection_age = Duration::from_millis(100);
    })
    .await;
    let replaced = || app.metric("client_connections_total{event=\"replaced\",service=\"topic\"}");
    while replaced().await < 10.0 {
        assert_eq!(failed(&calls(&app, LIST, 20).await), 0);
    }
    let lost = app.metric("client_connections_total{event=\"lost\",service=\"topic\"}").await;
    assert!(lost < 1.0, "{lost} were lost");
    assert_eq!(topics(&app).await[0]["connections"], 1);
}

/// F24: a connection on which a ping stays unanswered is replaced.
#[tokio::test]
async fn a_half_open_connection_is_given_up() {
    let frozen = peer::breaking(peer::Break::Freeze).await;
    let app = app_with(&[&frozen], |settings| {
        settings.client.keepalive = Duration::from_millis(100);
        settings.client.keepalive_timeout = Duration::from_millis(100);
    })
    .await;
    let begun = Instant::now();
    let answer = get(app.gateway(), LIST).await;
    assert_eq!(answer.status, 503, "the connection fails before the call's 2 s are over: {answer:?}");
    assert!(begun.elapsed() < Duration::from_millis(1500), "{:?}", begun.elapsed());
    wait_for("there is a new one", || async {
        let opened = app.metric("client_connections_total{event=\"opened\",service=\"topic\"}").await;
        (opened > 1.0 && topic(&app, frozen.addr).await["state"] == "up").then_some(())
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
