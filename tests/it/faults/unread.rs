//! Peers that ask for more than they read: what they hold must not take the memory that answers to others need.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use microservice_app::api::proto::feed::GetFeedsRequest;
use rustix::process::Signal;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

use super::{Findings, SECOND, rows};
use crate::kit::etcd::Etcd;
use crate::kit::frames::Bare;
use crate::kit::http::{fill, request, send};
use crate::kit::load::Load;
use crate::kit::system::Role;
use crate::kit::wait_for;

rows! { "callpath"
    "F52" f52_peers_that_do_not_read unread 30 6 "a gateway freezes amid 150 reads of 2 MiB, callers read byte by byte";
}

/// Calls a second through the gateway that nothing is wrong with.
const RATE: f64 = 100.0;
/// Longest time that the service may be busy with large answers.
const SETTLED: Duration = Duration::from_secs(8);
const READS: usize = 150;
const LARGE: &str = "GET /api/feed/get_feeds?user_id=7&size=1000 HTTP/1.1\r\nhost: x\r\n\r\n";
/// Callers that read byte by byte: more than can each hold the share of one connection.
const HOSTILE: usize = 5;
/// Calls of each.
const HOSTILE_READS: usize = 80;

/// A write of its own record each.
fn write(number: u64) -> Request<Full<Bytes>> {
    let body = format!(r#"{{"id":{},"user_id":8,"content":"x"}}"#, number % 100 + 1);
    request("PUT", "/api/feed/create_feed", &body)
}

/// Waits until writes through a gateway are answered soon, at most as long as [`SETTLED`]: before that the service is
/// busy with large answers. Returns how long that took.
async fn settled(gateway: SocketAddr) -> Duration {
    let (begun, mut good) = (Instant::now(), 0);
    while good < 5 && begun.elapsed() < SETTLED {
        let answer = tokio::time::timeout(SECOND / 4, send(gateway, write(good))).await;
        let ok = matches!(answer, Ok(Ok(answer)) if answer.status == 200);
        good = if ok { good + 1 } else { 0 };
        sleep(SECOND / 50).await;
    }
    begun.elapsed()
}

async fn unread(time: Duration) -> Findings {
    let mut findings = Findings::default();
    let etcd = Etcd::start().await;
    let endpoint = etcd.addr.to_string();
    // calls that nobody waits for any more still hold what they hold
    let env = [("MSA__CLIENT__DEADLINE_MS", "20000")];
    let feed = Role::start(&endpoint, "feed", "127.0.0.1:0", &env);
    let greedy = Role::start(&endpoint, "apigateway", "127.0.0.1:0", &env);
    let healthy = Role::start(&endpoint, "apigateway", "127.0.0.1:0", &env);
    for gateway in [&greedy, &healthy] {
        gateway.wait_for_certain("feed", 1).await;
    }
    fill(healthy.addr, 7).await;
    frozen(&mut findings, time / 2, &feed, &greedy, &healthy).await;
    byte_by_byte(&mut findings, time / 2, &feed, &healthy).await;
    findings
}

/// Returns how many calls a gateway has in flight to the only instance of feed.
async fn in_flight(gateway: &Role) -> usize {
    let status = gateway.status().await;
    status["clients"][0]["feed"][0]["in_flight"].as_u64().unwrap_or_default() as usize
}

async fn frozen(findings: &mut Findings, time: Duration, feed: &Role, greedy: &Role, healthy: &Role) {
    let base = feed.process.resident();
    // it answers none before the gateway reads nothing any more
    feed.process.signal(Signal::STOP);
    let mut readers = Vec::new();
    for _ in 0..READS {
        let mut stream = TcpStream::connect(greedy.addr).await.expect("it listens");
        stream.write_all(LARGE.as_bytes()).await.expect("it reads");
        readers.push(stream);
    }
    wait_for("every read is in flight", || async { (in_flight(greedy).await == READS).then_some(()) }).await;
    sleep(SECOND / 10).await; // they have been sent
    greedy.process.signal(Signal::STOP);
    feed.process.signal(Signal::CONT);
    let held = || feed.process.resident().saturating_sub(base);
    findings.time("a gateway is frozen: until writes are answered", settled(healthy.addr).await, 3 * SECOND);
    let record = Load::of(healthy.addr, RATE, write).run(time).await;
    findings.no_failures(&record);
    findings.tell("growth of the service, MB", held() as f64 / 1e6, "");
    drop(readers);
    greedy.process.signal(Signal::CONT);
    // nothing of this is left when the next part begins
    wait_for("its calls have ended", || async { (in_flight(greedy).await == 0).then_some(()) }).await;
}

async fn byte_by_byte(findings: &mut Findings, time: Duration, feed: &Role, healthy: &Role) {
    let message = prost::Message::encode_to_vec(&GetFeedsRequest { user_id: 7, size: 60, before: 0 });
    let mut hostile = Vec::new();
    for _ in 0..HOSTILE {
        let mut caller = Bare::open(feed.addr, 0).await;
        for _ in 0..HOSTILE_READS {
            caller.call("/feed.Feed/GetFeeds", &message).await;
        }
        hostile.push(tokio::spawn(async move {
            while !caller.is_closed() {
                caller.open_by_one_byte().await;
                sleep(SECOND * 2 / 5).await;
            }
        }));
    }
    let until = settled(healthy.addr).await;
    findings.time("callers read byte by byte: until writes are answered", until, 4 * SECOND);
    let record = Load::of(healthy.addr, RATE, write).run(time).await;
    findings.no_failures(&record);
    findings.share("callers cut", hostile.iter().filter(|caller| caller.is_finished()).count() as f64, 1.0);
    hostile.iter().for_each(tokio::task::JoinHandle::abort);
}
