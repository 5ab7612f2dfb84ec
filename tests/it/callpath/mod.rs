//! The call path end to end: an application whose instances misbehave one way or another, and what its
//! callers see of it.

mod balance;
mod connections;
mod deadline;
mod fallback;
mod hedge;
mod retry;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use microservice_app::config::Settings;
use serde_json::Value;
use tokio::sync::mpsc;
use tonic::Code;

use crate::kit::app::App;
use crate::kit::http::{Answer, Connection, get, put};
use crate::kit::peer::{self, Peer};
use crate::kit::{SOON, wait_for};

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
    (answer.status.as_u16(), answer.degraded())
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
        // the gateway's and the profile service's
        let up = clients.iter().filter(|client| client["feed"][0]["state"] == "up").count();
        (up == 2).then_some(())
    })
    .await;
    app
}
