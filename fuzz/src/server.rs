//! Raw bytes over a socket, to a gateway and to a service.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::app::{app, block_on, check_panic};

/// Longest time for an answer. The requests of the application have 2 s by default.
const PATIENCE: Duration = Duration::from_secs(5);
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
const PING: &[u8] = &[0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];

/// Sends bytes, with `end` the end as well, and returns what comes back until the other side ends the connection.
async fn exchange(addr: SocketAddr, data: &[u8], end: bool) -> Vec<u8> {
    let exchange = async {
        let stream = TcpStream::connect(addr).await.expect("it listens");
        let (mut read, mut write) = stream.into_split();
        let send = async {
            // the other side may close before it has read all
            let _ = write.write_all(data).await;
            if end {
                let _ = write.shutdown().await;
            }
            write
        };
        let mut answers = Vec::new();
        let receive = async { read.read_to_end(&mut answers).await.ok() };
        tokio::join!(send, receive);
        answers
    };
    let answers = tokio::time::timeout(PATIENCE, exchange).await;
    check_panic();
    answers.unwrap_or_else(|_| panic!("the connection does not end"))
}

/// Returns true now and then: whether the listener still serves costs more than most inputs.
fn now_and_then() -> bool {
    static CALLS: AtomicU32 = AtomicU32::new(0);
    CALLS.fetch_add(1, Relaxed).is_multiple_of(16)
}

/// Bytes to the gateway. Nothing that a caller sends is an error of the server.
pub fn http1_gateway(data: &[u8]) {
    let gateway = app().gateway;
    let answers = block_on(exchange(gateway, data, true));
    let answers = String::from_utf8_lossy(&answers);
    // no body can hold a line end
    assert!(!answers.contains("HTTP/1.1 500 Internal Server Error\r\n"), "{answers}");
    let first = answers.is_empty() || answers.starts_with("HTTP/1.");
    assert!(first, "{answers}");
    if now_and_then() {
        let canary = b"GET /api/topic/list HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        // on a busy machine a caller that has sent its end may look like one that has given up
        let answer = block_on(exchange(gateway, canary, false));
        assert!(answer.starts_with(b"HTTP/1.1 200 OK\r\n"), "{}", String::from_utf8_lossy(&answer));
    }
}

/// Frames to a service. After a first byte that is odd they are given in short: kind, flags, stream and length, a byte each,
/// then the payload. Otherwise the data are the bytes that follow the greeting; after 0 there is no greeting either.
pub fn http2_service(data: &[u8]) {
    let Some((kind, data)) = data.split_first() else { return };
    let bytes = match kind {
        0 => data.to_vec(),
        odd if odd % 2 == 1 => [PREFACE, SETTINGS, &frames(data)].concat(),
        _ => [PREFACE, SETTINGS, data].concat(),
    };
    let topic = app().topic;
    block_on(exchange(topic, &bytes, true));
    if now_and_then() {
        let answer = block_on(exchange(topic, &[PREFACE, SETTINGS, PING].concat(), true));
        let pong = [&PING[..4], &[1], &PING[5..]].concat();
        assert!(answer.windows(pong.len()).any(|part| part == pong), "no answer to a ping: {answer:?}");
    }
}

/// Returns frames that are given in short.
pub fn frames(mut data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(2 * data.len());
    while let [kind, flags, stream, length, rest @ ..] = data {
        let (payload, rest) = rest.split_at(rest.len().min(usize::from(*length)));
        bytes.extend(frame(*kind, *flags, [0, 0, 0, *stream], payload));
        data = rest;
    }
    bytes
}

/// Returns a frame of HTTP/2 on a stream.
pub fn frame(kind: u8, flags: u8, id: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let [_, length @ ..] = u32::try_from(payload.len()).expect("a short frame").to_be_bytes();
    [&length[..], &[kind, flags], &id, payload].concat()
}
