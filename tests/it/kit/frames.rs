//! HTTP/2 frames written by hand, for what no client library would send.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::Instant;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// What is sent without end.
#[derive(Clone, Copy, Debug)]
pub enum Flood {
    /// Calls that are reset at once (CVE-2023-44487).
    RapidReset,
    /// Pings that want an answer.
    Ping,
    /// Settings that want an acknowledgement.
    Settings,
    /// One head that never ends.
    Continuation,
}

impl Flood {
    pub const ALL: [Self; 4] = [Self::RapidReset, Self::Ping, Self::Settings, Self::Continuation];

    /// Returns the frames of one step.
    fn frames(self, step: u32, path: &str) -> Vec<u8> {
        let stream = 2 * step + 1;
        match self {
            Self::RapidReset => {
                let head = frame(HEADERS, END_STREAM | END_HEADERS, stream, &head(path));
                [head, reset(stream)].concat()
            }
            Self::Ping => frame(PING, 0, 0, &[7; 8]),
            // the largest window there is: every change is applied to every stream
            Self::Settings => frame(SETTINGS, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff]),
            Self::Continuation if step == 0 => frame(HEADERS, 0, 1, &head(path)),
            // a header of one byte, not indexed
            Self::Continuation => frame(CONTINUATION, 0, 1, &[0, 1, b'x', 1, b'y']),
        }
    }
}

/// How a flood ended.
#[derive(Clone, Copy, Debug)]
pub struct Flooded {
    /// Time until the other side closed the connection; none if it never did.
    pub closed: Option<Duration>,
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a short frame").to_be_bytes();
    let mut out = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
    out.extend_from_slice(payload);
    out
}

/// Returns the head of a gRPC call as HPACK: static names, literal values.
fn head(path: &str) -> Vec<u8> {
    let text = |out: &mut Vec<u8>, name: &[u8], value: &str| {
        out.extend_from_slice(name);
        out.push(u8::try_from(value.len()).expect("a short value"));
        out.extend_from_slice(value.as_bytes());
    };
    let mut out = vec![0x83, 0x86]; // :method POST, :scheme http
    text(&mut out, &[0x04], path);
    text(&mut out, &[0x01], "test");
    text(&mut out, &[0x0f, 0x10], "application/grpc");
    text(&mut out, &[0x00, 2, b't', b'e'], "trailers");
    out
}

/// Returns a whole unary call; `stream` is odd.
pub fn call(stream: u32, path: &str, message: &impl prost::Message) -> Vec<u8> {
    let message = message.encode_to_vec();
    let length = u32::try_from(message.len()).expect("a short message").to_be_bytes();
    let message = [&[0], length.as_slice(), message.as_slice()].concat();
    let head = frame(HEADERS, END_HEADERS, stream, &head(path));
    [head, frame(DATA, END_STREAM, stream, &message)].concat()
}

/// Returns what cancels a call.
pub fn reset(stream: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())
}

/// Returns a connection that has said hello.
pub async fn hello(addr: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(addr).await.expect("it listens");
    stream.set_nodelay(true).expect("a socket");
    let hello = [PREFACE, &frame(SETTINGS, 0, 0, &[]), &frame(SETTINGS, 1, 0, &[])].concat();
    stream.write_all(&hello).await.expect("it reads");
    stream
}

/// Sends frames, and reads what comes back, until the other side closes or `limit` is over. `path` is the
/// rpc that calls are for.
pub async fn flood(addr: SocketAddr, kind: Flood, path: &str, limit: Duration) -> Flooded {
    let (mut read, mut write) = hello(addr).await.into_split();
    let begun = Instant::now();
    let closed = tokio::spawn(async move {
        let mut sink = vec![0; 64 * 1024];
        while read.read(&mut sink).await.is_ok_and(|count| count > 0) {}
    });
    let mut steps = 0;
    while begun.elapsed() < limit && !closed.is_finished() {
        let batch: Vec<u8> = (steps..steps + 100).flat_map(|step| kind.frames(step, path)).collect();
        if !matches!(tokio::time::timeout(limit, write.write_all(&batch)).await, Ok(Ok(()))) {
            break;
        }
        steps += 100;
    }
    let left = limit.saturating_sub(begun.elapsed());
    let ended = tokio::time::timeout(left, closed).await.is_ok();
    Flooded { closed: ended.then(|| begun.elapsed()) }
}
