//! A caller that closes its sending side after a request, as `nc -N` does, and then reads.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

use crate::kit::app::App;
use crate::kit::http::{get, parse};
use crate::kit::peer::{self, Peer};
use crate::kit::{SOON, measured, wait_for};

const MS: Duration = Duration::from_millis(1);
const LIST: &[u8] = b"GET /api/topic/list HTTP/1.1\r\nhost: x\r\n\r\n";
const PUT: &[u8] = b"PUT /api/topic/put_topic HTTP/1.1\r\nhost: x\r\ncontent-length: 41\r\n\r\n\
    {\"topic_id\":1,\"subject\":\"s\",\"content\":\"\"}";

/// Sends bytes and, `after` that, a FIN. Returns the status of the answer, 0 for none.
async fn ask(addr: SocketAddr, bytes: &[u8], after: Duration) -> u16 {
    parse(&answers(addr, bytes, after).await).0
}

/// As [`ask`]; returns all that comes back.
async fn answers(addr: SocketAddr, bytes: &[u8], after: Duration) -> String {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    if !after.is_zero() {
        sleep(after).await;
    }
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    let read = tokio::time::timeout(SOON, stream.read_to_string(&mut answer)).await;
    read.expect("the connection is closed in time").unwrap();
    answer
}

/// A gateway whose topics come from a peer that answers each call `after` a time.
async fn with_slow_topics(after: Duration) -> (App, Peer) {
    let slow = peer::healthy(move |_, mut respond| async move {
        sleep(after).await;
        peer::fine(&mut respond);
    })
    .await;
    let app = App::launch(|settings| settings.up.topic_replicas = 0);
    std::mem::forget(app.register("topic", slow.addr));
    wait_for("the topics answer", || async {
        (get(app.gateway(), "/api/topic/list").await.status == 200).then_some(())
    })
    .await;
    (app, slow)
}

#[tokio::test]
async fn a_request_followed_by_fin_is_answered() {
    let app = App::start().await;
    // just after its start a gateway takes such writes for old ones, from before it
    wait_for("such a write is made", || async {
        (ask(app.gateway(), PUT, Duration::ZERO).await == 200).then_some(())
    })
    .await;
    let delete = b"DELETE /api/feed/delete_feed?user_id=9&id=9 HTTP/1.1\r\nhost: x\r\n\r\n";
    let two = [PUT, LIST].concat();
    for _ in 0..50 {
        assert_eq!(
            ask(app.addresses.admin, b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n", Duration::ZERO).await,
            200
        );
    }
    // the FIN may come a little later than the request: then there are 10 ms, which a busy machine may need
    measured("of 200 requests nearly all are answered", || async {
        let mut answered = 0;
        for _ in 0..50 {
            answered += i32::from(ask(app.gateway(), PUT, Duration::ZERO).await == 200);
            answered += i32::from(ask(app.gateway(), delete, Duration::ZERO).await == 404);
            answered += i32::from(ask(app.gateway(), LIST, Duration::ZERO).await == 200);
            let both = answers(app.gateway(), &two, Duration::ZERO).await;
            answered += i32::from(both.matches("HTTP/1.1 200 OK").count() == 2);
        }
        if answered >= 180 { Ok(()) } else { Err(answered) }
    })
    .await;
}

#[tokio::test]
async fn a_write_is_answered_if_its_caller_stops_sending_a_moment_later() {
    let (app, _slow) = with_slow_topics(300 * MS).await;
    // the FIN may come late on a busy machine, which then is a hang-up
    measured("of 20 writes nearly all are answered", || async {
        let mut answered = 0;
        for after in [0, 1, 2, 4].repeat(5) {
            answered += i32::from(ask(app.gateway(), PUT, after * MS).await == 200);
        }
        if answered >= 18 { Ok(()) } else { Err(answered) }
    })
    .await;
}

/// Else a write that is delayed behind the gateway comes after what its caller has written elsewhere since.
#[tokio::test]
async fn a_request_is_given_up_when_its_caller_stops_sending_later() {
    let (app, _slow) = with_slow_topics(1000 * MS).await;
    for request in [LIST, PUT] {
        let begun = Instant::now();
        assert_eq!(ask(app.gateway(), request, 100 * MS).await, 0);
        assert!(begun.elapsed() < 900 * MS, "{:?}", begun.elapsed());
    }
}

#[tokio::test]
async fn a_body_that_is_cut_short_is_refused_at_once() {
    let app = App::start().await;
    let chunked =
        b"PUT /api/topic/put_topic HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n28\r\n{\"topic";
    for bytes in [&PUT[..PUT.len() - 1], chunked] {
        for after in [0, 50] {
            let begun = Instant::now();
            assert_eq!(ask(app.gateway(), bytes, after * MS).await, 400);
            // http.body_timeout_ms is 10 s
            assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        }
    }
}

#[tokio::test]
async fn an_idle_connection_ends_with_its_caller() {
    let app = App::start().await;
    let mut stream = TcpStream::connect(app.gateway()).await.unwrap();
    stream.write_all(LIST).await.unwrap();
    let mut part = [0; 4096];
    assert!(stream.read(&mut part).await.unwrap() > 0);
    let begun = Instant::now();
    stream.shutdown().await.unwrap();
    let mut rest = Vec::new();
    tokio::time::timeout(SOON, stream.read_to_end(&mut rest)).await.unwrap().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}
