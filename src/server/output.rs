//! What a connection has yet to send: how much, and whether it moves. A peer that stops reading makes no
//! progress, and its connection ends. No write has a timer of its own.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::flood::Meter;
use super::half_close::End;
use crate::limit::Permit;

/// The output of one connection.
#[derive(Debug, Default)]
pub struct Output {
    /// Bytes of answers that the socket has not taken: it has no room for them, or on HTTP/2 the peer's windows
    /// hold them back.
    unsent: AtomicUsize,
    /// True while the socket has no room.
    blocked: AtomicBool,
    /// Grows with every write.
    progress: AtomicU64,
    /// True once the connection has to end at once.
    cut: AtomicBool,
}

impl Output {
    /// Returns true if something waits to be sent.
    pub fn is_pending(&self) -> bool {
        self.blocked.load(Relaxed) || self.unsent.load(Relaxed) > 0
    }

    /// Returns true if an answer waits to be sent.
    pub fn has_unsent(&self) -> bool {
        self.unsent.load(Relaxed) > 0
    }

    /// Returns a number that changes with every write.
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

    fn advance(&self) {
        self.progress.fetch_add(1, Relaxed);
    }
}

/// A part of an answer on its way to the socket.
pub struct Unsent {
    bytes: Bytes,
    output: Arc<Output>,
    /// For its bytes, of what all connections may have unsent.
    permit: Permit,
}

impl Unsent {
    /// Counts bytes that are to be sent; `permit` is for as many.
    pub fn new(bytes: Bytes, output: &Arc<Output>, permit: Permit) -> Self {
        output.unsent.fetch_add(bytes.len(), Relaxed);
        Self { bytes, output: output.clone(), permit }
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
        self.output.unsent.fetch_sub(count, Relaxed);
        self.output.advance();
        self.permit.shrink(count);
    }
}

impl Drop for Unsent {
    fn drop(&mut self) {
        self.output.unsent.fetch_sub(self.bytes.len(), Relaxed);
    }
}

/// What is done with the bytes that a connection receives.
pub enum Received {
    /// On HTTP/1 their end may be held back.
    Http1(End),
    /// On HTTP/2 they are metered.
    Http2(Meter),
}

/// A socket that reports the progress of its output and looks at what it receives.
pub struct Stream {
    tcp: TcpStream,
    output: Arc<Output>,
    received: Received,
}

impl Stream {
    /// Wraps a socket.
    pub fn new(tcp: TcpStream, output: Arc<Output>, received: Received) -> Self {
        Self { tcp, output, received }
    }

    fn note(&mut self, written: &Poll<std::io::Result<usize>>) {
        match written {
            Poll::Pending => self.output.blocked.store(true, Relaxed),
            Poll::Ready(result) => {
                self.output.blocked.store(false, Relaxed);
                self.output.advance();
                if let (Received::Http2(meter), Ok(count)) = (&mut self.received, result) {
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
            let _ = socket2::SockRef::from(&self.tcp).set_linger(Some(std::time::Duration::ZERO));
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
        let read = Pin::new(&mut self.tcp).poll_read(cx, buf)?;
        let came = buf.filled().get(before..).unwrap_or_default();
        match &mut self.received {
            Received::Http1(end) if read.is_ready() && came.is_empty() && room > 0 => {
                end.see(cx);
                return end.poll(cx).map(Ok);
            }
            Received::Http1(end) => end.note(read.is_ready()),
            Received::Http2(meter) if read.is_ready() => meter.read(came).map_err(std::io::Error::other)?,
            Received::Http2(_) => {}
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
        let written = Pin::new(&mut self.tcp).poll_write(cx, bytes);
        self.note(&written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        let written = Pin::new(&mut self.tcp).poll_write_vectored(cx, parts);
        self.note(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}
