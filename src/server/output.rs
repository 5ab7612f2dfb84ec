//! What a connection has yet to send: how much, and whether it moves. A peer that stops reading makes no
//! progress, and its connection ends. No write has a timer of its own.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf, Take};

use super::clock::Clock;
use super::flood::Meter;
use super::half_close::End;
use super::input::Drained;
use super::unsent::{Parts, UnsentLimit};
use crate::tls;

/// Most bytes that HTTP/1 reads at once. hyper doubles the buffer of a connection for as long as reads fill it, up to the
/// largest head: many slow uploads would hold many large buffers.
const MAX_READ: u64 = 16 * 1024;

/// The output of one connection.
#[derive(Debug)]
pub struct Output {
    clock: Arc<Clock>,
    /// The answers that the socket has not taken: it has no room for them, or on HTTP/2 the peer's windows hold
    /// them back.
    parts: Mutex<Parts>,
    /// Their bytes.
    held: AtomicUsize,
    /// When the last of them was sent, ms on the server's clock.
    emptied: AtomicU64,
    /// True while the socket has no room.
    blocked: AtomicBool,
    /// Grows with every write of an answer, and while none waits with every write.
    progress: AtomicU64,
    /// True once the connection has to end at once.
    cut: AtomicBool,
    /// True once the peer has begun to speak HTTP/2.
    greeted: AtomicBool,
    /// True once the peer has sent more frames of a kind than its calls explain.
    flooded: AtomicBool,
}

impl Output {
    /// Returns the output of a new connection.
    pub fn new(limit: &UnsentLimit, clock: &Arc<Clock>) -> Self {
        Self {
            clock: clock.clone(),
            parts: Mutex::new(Parts::new(limit)),
            held: AtomicUsize::new(0),
            emptied: AtomicU64::new(0),
            blocked: AtomicBool::new(false),
            progress: AtomicU64::new(0),
            cut: AtomicBool::new(false),
            greeted: AtomicBool::new(false),
            flooded: AtomicBool::new(false),
        }
    }

    /// Returns the answers that wait to be sent.
    pub fn parts(&self) -> MutexGuard<'_, Parts> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns true if something waits to be sent.
    pub fn is_pending(&self) -> bool {
        self.blocked.load(Relaxed) || self.has_unsent()
    }

    /// Returns true if an answer waits to be sent.
    pub fn has_unsent(&self) -> bool {
        self.held.load(Relaxed) > 0
    }

    /// Returns when the last answer was sent, ms on the server's clock; 0 if there was none.
    pub fn emptied(&self) -> u64 {
        self.emptied.load(Relaxed)
    }

    /// Returns a number that changes when what waits to be sent moves.
    pub fn progress(&self) -> u64 {
        self.progress.load(Relaxed)
    }

    /// Returns true once the connection has to end.
    pub fn is_cut(&self) -> bool {
        self.cut.load(Relaxed)
    }

    /// Says that the connection has to end. Returns false if that was said before.
    pub fn cut(&self) -> bool {
        !self.cut.swap(true, Relaxed)
    }

    /// Returns true once the peer has begun to speak HTTP/2.
    pub fn is_greeted(&self) -> bool {
        self.greeted.load(Relaxed)
    }

    /// Notes that the peer has begun to speak HTTP/2.
    pub fn greet(&self) {
        self.greeted.store(true, Relaxed);
    }

    /// Returns true once the peer has sent more frames of a kind than its calls explain.
    pub fn is_flooded(&self) -> bool {
        self.flooded.load(Relaxed)
    }

    fn advance(&self) {
        self.progress.fetch_add(1, Relaxed);
    }

    /// Changes the answers that wait to be sent.
    fn change<T>(&self, change: impl FnOnce(&mut Parts) -> T) -> T {
        let mut parts = self.parts();
        let changed = change(&mut parts);
        let held = parts.held();
        if self.held.swap(held, Relaxed) > 0 && held == 0 {
            self.emptied.store(self.clock.now(), Relaxed);
        }
        changed
    }
}

/// A part of an answer on its way to the socket.
pub struct Unsent {
    bytes: Bytes,
    output: Arc<Output>,
    number: u64,
}

impl Unsent {
    /// Counts bytes that are to be sent.
    pub fn new(bytes: Bytes, output: &Arc<Output>) -> Self {
        let now = output.clock.now();
        let number = output.change(|parts| parts.add(bytes.len(), now));
        Self { bytes, output: output.clone(), number }
    }
}

impl Buf for Unsent {
    fn remaining(&self) -> usize {
        self.bytes.len()
    }

    fn chunk(&self) -> &[u8] {
        &self.bytes
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
        self.output.change(|parts| parts.sent(self.number, count));
        self.output.advance();
    }
}

impl Drop for Unsent {
    fn drop(&mut self) {
        self.output.change(|parts| parts.remove(self.number));
    }
}

/// What is done with the bytes that a connection receives.
pub enum Received {
    /// On HTTP/1 their end may be held back.
    Http1(End),
    /// On HTTP/2 they are metered, and it is noted when there are no more.
    Http2(Meter, Arc<Drained>),
}

/// A socket that reports the progress of its output and looks at what it receives.
pub struct Stream {
    io: Take<tls::Stream>,
    output: Arc<Output>,
    received: Received,
    /// True while TLS has taken bytes for which the socket has no room.
    flushing: bool,
}

impl Stream {
    /// Wraps a socket.
    pub fn new(io: tls::Stream, output: Arc<Output>, received: Received) -> Self {
        Self { io: io.take(0), output, received, flushing: false }
    }

    fn note(&mut self, written: &Poll<std::io::Result<usize>>) {
        match written {
            Poll::Pending => self.output.blocked.store(true, Relaxed),
            Poll::Ready(result) => {
                self.output.blocked.store(false, Relaxed);
                // acknowledged pings say nothing about the answers that wait
                if !self.output.has_unsent() {
                    self.output.advance();
                }
                if let (Received::Http2(meter, _), Ok(count)) = (&mut self.received, result) {
                    meter.sent(*count);
                }
            }
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.output.cut.load(Relaxed) {
            // the kernel drops what it holds for a peer that does not read
            let _ =
                socket2::SockRef::from(self.io.get_ref().tcp()).set_linger(Some(std::time::Duration::ZERO));
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        if let Received::Http1(end) = &mut self.received
            && end.is_seen()
        {
            return end.poll(cx).map(Ok);
        }
        let (before, room) = (buf.filled().len(), buf.remaining());
        let most = if matches!(self.received, Received::Http1(_)) { MAX_READ } else { u64::MAX };
        self.io.set_limit(most);
        let read = Pin::new(&mut self.io).poll_read(cx, buf)?;
        let came = buf.filled().get(before..).unwrap_or_default();
        match &mut self.received {
            Received::Http1(end) if read.is_ready() && came.is_empty() && room > 0 => {
                end.see(cx);
                return end.poll(cx).map(Ok);
            }
            Received::Http1(end) => end.note(read.is_ready()),
            Received::Http2(meter, drained) => {
                drained.note(read.is_pending());
                if read.is_ready() {
                    if let Err(flood) = meter.read(came) {
                        self.output.flooded.store(true, Relaxed);
                        return Poll::Ready(Err(std::io::Error::other(flood)));
                    }
                    if meter.is_greeted() {
                        self.output.greet();
                    }
                }
            }
        }
        read.map(Ok)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        let written = Pin::new(self.io.get_mut()).poll_write(cx, bytes);
        self.note(&written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        let written = Pin::new(self.io.get_mut()).poll_write_vectored(cx, parts);
        self.note(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.io.get_ref().is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        let flushed = Pin::new(self.io.get_mut()).poll_flush(cx);
        // without TLS a flush is always ready, and says nothing
        if flushed.is_pending() {
            self.flushing = true;
            self.output.blocked.store(true, Relaxed);
        } else if std::mem::take(&mut self.flushing) {
            self.output.blocked.store(false, Relaxed);
            self.output.advance();
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(self.io.get_mut()).poll_shutdown(cx)
    }
}
