use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::task::{Wake, Waker};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Frame;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::DuplexStream;

use super::*;

/// A socket that notes each write, and has room for so many bytes.
#[derive(Default)]
struct Socket {
    writes: Vec<Vec<u8>>,
    room: usize,
    flushes: usize,
    closed: bool,
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Poll::Pending
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let count = self.room.min(bytes.len());
        if count == 0 {
            return Poll::Pending;
        }
        self.room -= count;
        self.writes.push(bytes[..count].to_vec());
        Poll::Ready(Ok(count))
    }

    fn poll_flush(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.flushes += 1;
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.closed = true;
        Poll::Ready(Ok(()))
    }
}

#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Relaxed);
    }
}

/// A connection whose peer has sent something, and the task that drives it.
struct Driven {
    io: Coalesced<Socket>,
    woken: Arc<Woken>,
}

impl Driven {
    fn new(room: usize) -> Self {
        let io = Coalesced { heard: true, ..Coalesced::new(Socket { room, ..Socket::default() }) };
        Self { io, woken: Arc::default() }
    }

    fn poll<T>(
        &mut self,
        poll: impl FnOnce(Pin<&mut Coalesced<Socket>>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Option<T> {
        let waker = Waker::from(self.woken.clone());
        match poll(Pin::new(&mut self.io), &mut Context::from_waker(&waker)) {
            Poll::Ready(result) => Some(result.unwrap()),
            Poll::Pending => None,
        }
    }

    fn write(&mut self, bytes: &[u8]) -> Option<usize> {
        self.poll(|io, cx| io.poll_write(cx, bytes))
    }

    fn flush(&mut self) -> Option<()> {
        self.poll(AsyncWrite::poll_flush)
    }

    fn read(&mut self) {
        let read = self.poll(|io, cx| io.poll_read(cx, &mut ReadBuf::new(&mut [0; 8])));
        assert_eq!(read, None);
    }

    fn woken(&self) -> usize {
        self.woken.0.load(Relaxed)
    }

    fn writes(&self) -> Vec<&str> {
        self.io.stream.writes.iter().map(|write| std::str::from_utf8(write).unwrap()).collect()
    }
}

#[test]
fn what_is_flushed_in_one_turn_and_the_next_is_one_write() {
    let mut driven = Driven::new(1000);
    assert_eq!(driven.flush(), Some(()));
    assert_eq!((driven.woken(), driven.io.stream.flushes), (0, 1), "nothing waits");
    for _ in 0..2 {
        assert_eq!(driven.write(b"head"), Some(4));
        assert_eq!(driven.flush(), Some(()));
    }
    assert_eq!((driven.woken(), driven.writes().len()), (1, 0));
    driven.read();
    let parts = [IoSlice::new(b"er"), IoSlice::new(b"s")];
    assert_eq!(driven.poll(|io, cx| io.poll_write_vectored(cx, &parts)), Some(3));
    assert_eq!(driven.flush(), Some(()));
    assert_eq!(driven.writes(), ["headheaders"]);
    assert_eq!((driven.io.held.capacity(), driven.io.stream.flushes), (0, 2), "no memory is kept");
    // and from the beginning
    assert_eq!(driven.write(b"more"), Some(4));
    assert_eq!(driven.flush(), Some(()));
    assert_eq!((driven.woken(), driven.writes().len()), (2, 1));
}

#[test]
fn in_a_handshake_nothing_waits() {
    let mut driven = Driven::new(1000);
    driven.io.heard = false;
    driven.write(b"preface");
    assert_eq!(driven.flush(), Some(()));
    assert_eq!((driven.writes(), driven.woken()), (vec!["preface"], 0));
}

#[test]
fn a_socket_without_room_gets_the_rest_later() {
    let mut driven = Driven::new(3);
    driven.write(b"headers");
    driven.flush();
    driven.read();
    assert_eq!(driven.flush(), None);
    driven.write(b"!");
    driven.io.stream.room = 100;
    assert_eq!(driven.flush(), Some(()));
    assert_eq!(driven.writes(), ["hea", "ders!"]);
}

#[test]
fn what_is_held_is_bounded_and_large_writes_are_passed_on_in_order() {
    let mut driven = Driven::new(10);
    let (part, large) = (vec![b'a'; MAX_HELD / 2], vec![b'b'; MAX_HELD]);
    assert_eq!(driven.write(&part), Some(part.len()));
    assert_eq!(driven.write(&part), Some(part.len()));
    assert_eq!(driven.write(b"c"), None, "the socket has no room");
    assert_eq!(driven.io.held.len(), MAX_HELD);
    driven.io.stream.room = usize::MAX;
    assert_eq!(driven.poll(|io, cx| io.poll_write_vectored(cx, &[IoSlice::new(&large)])), Some(large.len()));
    assert_eq!(driven.io.held.len(), 0);
    let sent: Vec<u8> = driven.io.stream.writes.concat();
    assert_eq!(sent, [part.clone(), part, large].concat());
}

#[test]
fn the_end_is_behind_what_waits() {
    let mut driven = Driven::new(2);
    driven.write(b"goaway");
    driven.flush();
    assert_eq!(driven.poll(AsyncWrite::poll_shutdown), None);
    assert!(!driven.io.stream.closed);
    driven.io.stream.room = 100;
    assert_eq!(driven.poll(AsyncWrite::poll_shutdown), Some(()));
    assert!(driven.io.stream.closed);
    assert_eq!(driven.writes(), ["go", "away"]);
}

/// Counts the writes of one side.
struct Counted {
    stream: DuplexStream,
    writes: Arc<Mutex<Vec<usize>>>,
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.writes.lock().unwrap().push(bytes.len());
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// With hyper on both sides, as in the program: a call of headers and message, an answer with trailers.
#[tokio::test]
async fn a_call_is_one_write_and_its_answer_another() {
    let (here, there) = tokio::io::duplex(1 << 20);
    let counted = |stream| {
        let writes = Arc::new(Mutex::new(Vec::new()));
        (TokioIo::new(Coalesced::new(Counted { stream, writes: writes.clone() })), writes)
    };
    let ((here, calls), (there, answers)) = (counted(here), counted(there));
    let answer = service_fn(|request: Request<hyper::body::Incoming>| async {
        let asked = request.into_body().collect().await?.to_bytes();
        let mut trailers = http::HeaderMap::new();
        trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
        let frames = [Frame::data(Bytes::from(asked.repeat(30))), Frame::trailers(trailers)];
        let frames = frames.map(Ok::<_, hyper::Error>);
        Ok::<_, hyper::Error>(Response::new(StreamBody::new(futures_util::stream::iter(frames))))
    });
    let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    let server = tokio::spawn(server.serve_connection(there, answer));
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), here).await.unwrap();
    let connection = tokio::spawn(connection);
    for turn in 0..10 {
        let body = Full::new(Bytes::from(vec![b'x'; 100]));
        let mut request = Request::new(body);
        *request.uri_mut() = "http://localhost/".parse().unwrap();
        let answer = sender.send_request(request).await.unwrap().into_body().collect().await.unwrap();
        assert_eq!(answer.trailers().unwrap()["grpc-status"], "0");
        assert_eq!(answer.to_bytes().len(), 3000);
        // settings and their acknowledgements go with the first calls
        if turn < 2 {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            calls.lock().unwrap().clear();
            answers.lock().unwrap().clear();
        }
    }
    let calls = calls.lock().unwrap().len();
    let answers = answers.lock().unwrap().len();
    assert!((8..=10).contains(&calls) && (8..=10).contains(&answers), "{calls} and {answers} writes");
    drop(sender);
    connection.await.unwrap().unwrap();
    server.abort();
}
