//! Writes of HTTP/2, several in one system call.
//!
//! h2 flushes after nearly every frame: the headers of a call go out before its message, which may be sent only once the
//! stream is open, and those of an answer before its trailers. Each write to a socket costs more than all of the encoding, and
//! the peer wakes once more for it.
//!
//! So what is written waits here for one turn of the tasks that can run now. The first flush asks for another turn of
//! the connection's task, behind all of them, and the flush in that turn writes everything. Nothing waits for a timer.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Most bytes that wait, and the length from which on a write is passed on without a copy.
const MAX_HELD: usize = 16 * 1024;
/// Room for what follows the first write: the trailers of an answer, the message of a call.
const ROOM: usize = 512;

/// A byte stream whose flushes are postponed by a turn. For HTTP/2: its task must read, then flush, whenever it is woken, as
/// that of h2 does.
pub struct Coalesced<S> {
    stream: S,
    /// What was written; the first `sent` bytes of it are with the stream. Empty, without memory, while nothing waits.
    held: Vec<u8>,
    sent: usize,
    turn: Turn,
    /// True once the peer has sent something. During a handshake flushes are not postponed: its task may wait for an answer
    /// to what it has flushed.
    heard: bool,
}

/// How far the postponement of a flush is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// No flush is postponed.
    None,
    /// The task will be woken.
    Asked,
    /// The task runs again: it has read since then.
    Begun,
}

impl<S> Coalesced<S> {
    /// Wraps a stream on which nothing was received yet.
    pub const fn new(stream: S) -> Self {
        Self { stream, held: Vec::new(), sent: 0, turn: Turn::None, heard: false }
    }
}

impl<S: AsyncWrite + Unpin> Coalesced<S> {
    /// Writes what waits.
    fn poll_held(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(left) = self.held.get(self.sent..).filter(|left| !left.is_empty()) {
            match ready!(Pin::new(&mut self.stream).poll_write(cx, left))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.sent += count,
            }
        }
        // most connections are idle: they keep no memory
        (self.held, self.sent) = (Vec::new(), 0);
        Poll::Ready(Ok(()))
    }

    /// Makes room for `length` bytes. Returns true if they are to be held, false if they go to the stream.
    fn poll_room(&mut self, cx: &mut Context<'_>, length: usize) -> Poll<io::Result<bool>> {
        if self.held.len() + length > MAX_HELD {
            ready!(self.poll_held(cx))?;
        }
        let holds = length < MAX_HELD;
        if holds && self.held.is_empty() {
            self.held.reserve(length + ROOM);
        }
        Poll::Ready(Ok(holds))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Coalesced<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.turn == Turn::Asked {
            self.turn = Turn::Begun;
        }
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.heard |= read.is_ready();
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Coalesced<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if !ready!(self.poll_room(cx, bytes.len()))? {
            return Pin::new(&mut self.stream).poll_write(cx, bytes);
        }
        self.held.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length = parts.iter().map(|part| part.len()).sum();
        if !ready!(self.poll_room(cx, length))? {
            return Pin::new(&mut self.stream).poll_write_vectored(cx, parts);
        }
        for part in parts {
            self.held.extend_from_slice(part);
        }
        Poll::Ready(Ok(length))
    }

    /// What is held takes parts as they are. h2 copies less if it may write them.
    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.turn {
            _ if self.held.is_empty() => {}
            Turn::None if self.heard => {
                self.turn = Turn::Asked;
                cx.waker().wake_by_ref();
                return Poll::Ready(Ok(()));
            }
            Turn::Asked => return Poll::Ready(Ok(())),
            Turn::None | Turn::Begun => ready!(self.poll_held(cx))?,
        }
        self.turn = Turn::None;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_held(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
#[path = "coalesce_tests.rs"]
mod tests;
