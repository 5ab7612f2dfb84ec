//! Request smuggling through other people's proxies: no message is read differently by a proxy and by the gateway.
//!
//! A proxy keeps one connection to the gateway for all of its callers. If the gateway saw one request more than the proxy
//! has sent, its answer would go to the next caller. So every request that a proxy counts gets an id from it: an answer of
//! the gateway without such an id is one to a request that the proxy has not seen.

mod downgrade;
mod forms;
mod forms2;
mod proxy;
mod tap;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use self::proxy::{Callers, Kind};
use self::tap::{Passed, Tap};
use crate::kit::app::App;
use crate::kit::{SOON, http, skip};

/// Longest wait for an answer to a message that may be without its end.
const SILENCE: Duration = Duration::from_millis(300);
const ID: &str = "x-request-id: front-";

/// A request of another caller for a topic that is not there. Its answer names the topic.
fn canary(topic: usize) -> String {
    format!("GET /api/topic/view?topic_id={topic} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
}

/// Sends bytes and returns what comes back, until the proxy ends the connection or says nothing more for so long.
async fn exchange(addr: SocketAddr, bytes: &[u8], silence: Duration) -> String {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    // it may close before it has read all
    let _ = stream.write_all(bytes).await;
    let (mut answers, mut part) = (Vec::new(), vec![0; 64 * 1024]);
    while let Ok(Ok(count @ 1..)) = tokio::time::timeout(silence, stream.read(&mut part)).await {
        answers.extend_from_slice(&part[..count]);
    }
    String::from_utf8_lossy(&answers).into_owned()
}

/// An answer of the gateway.
#[derive(Debug)]
struct Answer {
    status: u16,
    /// What the proxy made for the request; none for one that the gateway could not read.
    id: Option<String>,
    closes: bool,
}

/// Returns the answers on a connection. No body of the gateway holds what begins an answer.
fn answers(bytes: &[u8]) -> Vec<Answer> {
    let text = String::from_utf8_lossy(bytes);
    let mut found = Vec::new();
    for part in text.split("HTTP/1.").skip(1) {
        let head = part.split("\r\n\r\n").next().unwrap_or_default().to_ascii_lowercase();
        let status: u16 = head.get(2..5).and_then(|code| code.parse().ok()).unwrap_or_default();
        let value = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
        if status >= 200 {
            found.push(Answer {
                status,
                id: value("x-request-id: "),
                closes: value("connection: ").is_some_and(|value| value == "close"),
            });
        }
    }
    found
}

/// Returns what is wrong with what has passed on a connection.
fn faults(passed: &Passed) -> Vec<String> {
    let requests = String::from_utf8_lossy(&passed.requests).to_ascii_lowercase();
    let sent: BTreeSet<&str> = requests
        .match_indices(ID)
        .filter_map(|(at, id)| requests[at + id.len()..].split("\r\n").next())
        .collect();
    let mut faults = Vec::new();
    let (mut answered, mut unread) = (BTreeSet::new(), 0);
    let answers = answers(&passed.answers);
    for (number, answer) in answers.iter().enumerate() {
        match &answer.id {
            Some(id) => match id.strip_prefix("front-").filter(|id| sent.contains(id)) {
                Some(id) if answered.insert(id.to_owned()) => {}
                Some(id) => faults.push(format!("two answers to {id}")),
                None => {
                    faults.push(format!("an answer to a request that the proxy has not sent: {answer:?}"));
                }
            },
            // hyper refuses it itself, and the connection ends
            None if matches!(answer.status, 400..=499) && answer.closes && number + 1 == answers.len() => {
                unread += 1;
            }
            None => {
                faults.push(format!("an answer without an id that does not end the connection: {answer:?}"));
            }
        }
    }
    if answered.len() + unread > sent.len() {
        faults.push(format!("{} answers to {} requests", answers.len(), sent.len()));
    }
    faults
}

/// Sends every form through a proxy, and after each one the requests of two other callers.
async fn check(kind: Kind) {
    let app = App::start().await;
    let tap = Tap::start(app.gateway()).await;
    let Some(proxy) = kind.start(tap.addr, Callers::Http1).await else {
        return skip(&format!("request smuggling through {kind:?}"), "it is not installed");
    };
    let mut failed = Vec::new();
    let (mut sent, mut forwarded) = (0, 0);
    for (number, (name, bytes)) in forms::all().into_iter().enumerate() {
        tap.take();
        let own = exchange(proxy.addr, (bytes.clone() + &canary(777)).as_bytes(), SILENCE).await;
        let mut faults = Vec::new();
        for other in 0..2 {
            let topic = 10_000 + 10 * number + other;
            let answer = ask(proxy.addr, topic).await;
            if !answer.contains(&format!("\"there is no topic {topic}\"")) {
                faults.push(format!("another caller who asked for topic {topic} got {answer:?}"));
            }
        }
        let passed = tap.take();
        faults.extend(passed.iter().flat_map(self::faults));
        let reached = passed.iter().filter(|passed| !passed.requests.is_empty());
        let reached: Vec<_> = reached.map(|p| String::from_utf8_lossy(&p.requests).into_owned()).collect();
        sent += 1;
        forwarded += usize::from(reached.concat().to_ascii_lowercase().matches(ID).count() > 2);
        let statuses = |bytes: &[u8]| answers(bytes).iter().map(|answer| answer.status).collect::<Vec<_>>();
        let gateway: Vec<_> = passed.iter().flat_map(|passed| statuses(&passed.answers)).collect();
        println!(
            "{kind:?}: {name}: the caller got {:?}, the gateway gave {gateway:?}",
            statuses(own.as_bytes())
        );
        for fault in faults {
            failed.push(format!("{name}: {fault}\n  sent {bytes:?}\n  passed on {reached:?}"));
        }
    }
    println!("{kind:?}: {sent} forms, {forwarded} of them passed on");
    assert!(failed.is_empty(), "{kind:?}: {}:\n{}", failed.len(), failed.join("\n"));
    // a proxy that refused everything would show nothing
    assert!(forwarded > 40, "{kind:?} passed on {forwarded} of {sent}");
}

/// Asks for a topic. A proxy answers itself when the gateway has just closed the connection that it had chosen.
async fn ask(proxy: SocketAddr, topic: usize) -> String {
    let mut answer = String::new();
    for _ in 0..5 {
        answer = exchange(proxy, canary(topic).as_bytes(), SOON).await;
        if !matches!(http::parse(&answer).0, 502..=504) {
            break;
        }
    }
    answer
}

#[tokio::test]
async fn nginx_and_the_gateway_read_every_message_alike() {
    check(Kind::Nginx).await;
}

#[tokio::test]
async fn nginx_that_passes_on_bodies_as_they_come_and_the_gateway_read_every_message_alike() {
    check(Kind::NginxUnbuffered).await;
}

#[tokio::test]
async fn haproxy_and_the_gateway_read_every_message_alike() {
    check(Kind::Haproxy).await;
}

#[tokio::test]
async fn haproxy_that_accepts_invalid_requests_and_the_gateway_read_every_message_alike() {
    check(Kind::HaproxyLenient).await;
}

#[tokio::test]
async fn envoy_and_the_gateway_read_every_message_alike() {
    check(Kind::Envoy).await;
}

/// The check finds what it is for.
#[test]
fn an_answer_to_a_hidden_request_is_a_fault() {
    let ok = "HTTP/1.1 200 OK\r\nx-request-id: front-a\r\ncontent-length: 2\r\n\r\n{}";
    let hidden = "HTTP/1.1 404 Not Found\r\nx-request-id: 00000000000000ab\r\n\r\n{}";
    let refused = "HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n";
    let open = "HTTP/1.1 400 Bad Request\r\n\r\n";
    let one = "PUT / HTTP/1.1\r\nX-Request-Id: front-a\r\n\r\n";
    let two = "GET / HTTP/1.1\r\nx-request-id: front-b\r\n\r\n";
    for (requests, answers, is_fault) in [
        (one.to_owned(), ok.to_owned(), false),
        (one.to_owned(), format!("HTTP/1.1 100 Continue\r\n\r\n{ok}"), false),
        (one.to_owned(), refused.to_owned(), false),
        (format!("{one}{two}"), format!("{ok}{refused}"), false),
        (one.to_owned(), String::new(), false),
        (one.to_owned(), format!("{ok}{hidden}"), true),
        (one.to_owned(), format!("{ok}{ok}"), true),
        (one.to_owned(), format!("{ok}{refused}"), true),
        (format!("{one}{two}"), format!("{open}{ok}"), true),
        (format!("{one}{two}"), format!("{refused}{ok}"), true),
        (two.to_owned(), ok.to_owned(), true),
    ] {
        let passed = Passed { requests: requests.into_bytes(), answers: answers.into_bytes() };
        assert_eq!(!faults(&passed).is_empty(), is_fault, "{passed:?}");
    }
}
