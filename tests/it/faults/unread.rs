//! Peers that ask for more than they read: what they hold must not take the memory that answers to others need.

use std::net::SocketAddr;
use std::time::Duration;

use rustix::process::Signal;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

use super::{Findings, SECOND, rows};
use crate::kit::etcd::Etcd;
use crate::kit::frames::Bare;
use crate::kit::http::{fill, request};
use crate::kit::load::Load;
use crate::kit::system::Role;
use crate::kit::wait_for;

rows! { "callpath"
    "F52" f52_peers_that_do_not_read unread 30 10 "a gateway freezes amid 150 reads of 2 MiB, a caller reads byte by byte";
}

/// Calls a second through the gateway that nothing is wrong with.
const RATE: f64 = 100.0;
const READS: usize = 150;
const LARGE: &str = "GET /api/feed/get_feeds?user_id=7&size=1000 HTTP/1.1\r\nhost: x\r\n\r\n";
/// More of the largest answers than all peers together may leave unread.
const HOSTILE_READS: usize = 80;

/// Writes through a gateway, each of another record.
fn writes(gateway: SocketAddr) -> Load {
    Load::of(gateway, RATE, |number| {
        let body = format!(r#"{{"id":{},"user_id":8,"content":"x"}}"#, number % 100 + 1);
        request("PUT", "/api/feed/create_feed", &body)
    })
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
    let mut readers = Vec::new();
    for _ in 0..READS {
        let mut stream = TcpStream::connect(greedy.addr).await.expect("it listens");
        stream.write_all(LARGE.as_bytes()).await.expect("it reads");
        readers.push(stream);
    }
    let begun = Instant::now();
    wait_for("the calls are in flight", || async {
        (in_flight(greedy).await >= READS / 2 || begun.elapsed() > SECOND).then_some(())
    })
    .await;
    greedy.process.signal(Signal::STOP);
    let load = writes(healthy.addr).start();
    let (frozen, mut most) = (Instant::now(), 0);
    while frozen.elapsed() < time {
        most = most.max(feed.process.resident().saturating_sub(base));
        sleep(SECOND / 10).await;
    }
    let record = load.finish().await;
    findings.tell("a gateway is frozen: growth of the service, MB", most as f64 / 1e6, "");
    findings.no_failures(&record);
    drop(readers);
    greedy.process.signal(Signal::CONT);
    // nothing of this is left when the next part begins
    wait_for("its calls have ended", || async { (in_flight(greedy).await == 0).then_some(()) }).await;
}

async fn byte_by_byte(findings: &mut Findings, time: Duration, feed: &Role, healthy: &Role) {
    let line = "server_connections_cut_total{reason=\"unsent\"}";
    let before = feed.metric(line).await;
    let mut hostile = Bare::open(feed.addr, 0).await;
    let message = prost::Message::encode_to_vec(&microservice_app::api::proto::feed::GetFeedsRequest {
        user_id: 7,
        size: 60,
        before: 0,
    });
    for _ in 0..HOSTILE_READS {
        hostile.call("/feed.Feed/GetFeeds", &message).await;
    }
    let load = writes(healthy.addr).start();
    let (begun, mut ended) = (Instant::now(), None);
    while begun.elapsed() < time {
        hostile.open_by_one_byte().await;
        ended = ended.or_else(|| hostile.is_closed().then(|| begun.elapsed()));
        sleep(SECOND * 2 / 5).await;
    }
    let record = load.finish().await;
    findings.no_failures(&record);
    findings.count("callers that read byte by byte and are not cut", usize::from(ended.is_none()), 0);
    findings.time("until such a caller is cut", ended.unwrap_or(time), 3 * SECOND);
    findings.share("callers cut", feed.metric(line).await - before, 1.0);
}
