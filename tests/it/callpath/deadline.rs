//! Deadlines and hang-ups: a call ends in time, and nothing goes on behind it.

use std::time::Duration;

use microservice_app::api::proto::profile;
use microservice_app::config::Role;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tonic::Request;

use super::{Event, LIST, app_with, app_with_feed, failed, good, next, outcome, recording};
use crate::kit::app::App;
use crate::kit::grpc::call;
use crate::kit::http::{Connection, request, send};
use crate::kit::{measured, peer};

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
    let hedges = app.metric("client_retry_granted_total{reason=\"hedge\",service=\"topic\"}").await;
    assert!((1.0..=40.0).contains(&hedges), "{hedges} hedges for 800 calls");
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

#[tokio::test]
async fn a_caller_shortens_the_deadline_and_gets_504() {
    let app = App::launch(|settings| settings.up.topic_replicas = 0);
    let silent = peer::stalling().await;
    let _registered = app.register("topic", silent.addr);
    let mut asked = request("GET", "/api/topic/list", "");
    asked.headers_mut().insert("x-request-timeout-ms", "200".parse().unwrap());
    let begun = Instant::now();
    let answer = send(app.gateway(), asked).await.unwrap();
    let took = begun.elapsed();
    assert_eq!(answer.status, 504);
    assert!((Duration::from_millis(190)..Duration::from_secs(1)).contains(&took), "{took:?}");
}

#[tokio::test]
async fn a_call_ends_at_its_grpc_timeout() {
    let app = App::launch(|settings| settings.up.feed_replicas = 0);
    let silent = peer::stalling().await;
    let _registered = app.register("feed", silent.addr);
    let addr = app.addresses.of(Role::Profile).unwrap();
    let ada = profile::PutProfileRequest { user_id: 7, ..Default::default() };
    let _: profile::OkResponse = call(addr, "/profile.Profile/PutProfile", Request::new(ada)).await.unwrap();
    // a fifth of the time is for feed; without the header it would be a fifth of the default 2 s
    measured("a profile without feeds in time", || async move {
        let mut asked = Request::new(profile::GetProfileRequest { user_id: 7 });
        asked.metadata_mut().insert("grpc-timeout", "1000m".parse().unwrap());
        let begun = Instant::now();
        let answer: Result<profile::GetProfileResponse, _> =
            call(addr, "/profile.Profile/GetProfile", asked).await;
        let took = begun.elapsed();
        let in_time = (Duration::from_millis(180)..Duration::from_millis(350)).contains(&took);
        if answer.is_ok() && in_time { Ok(()) } else { Err((answer, took)) }
    })
    .await;
}
