//! A listening socket, bound here or passed by systemd. Connections that it accepts have TCP_NODELAY.

use std::net::{SocketAddr, TcpListener as StdListener};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};

/// Connections that the kernel may accept before the accept loop takes them.
const BACKLOG: i32 = 4096;

/// The kernel's send buffer of a connection, bytes (Linux doubles it for its own needs): two hundred typical
/// answers, and 25 MB/s over a line with a round trip of 10 ms.
const SEND_BUFFER: usize = 256 * 1024;

/// A listening socket.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    addr: SocketAddr,
    /// True if systemd holds the socket too and will pass it to the next process.
    shared: bool,
}

impl Listener {
    /// Binds an address.
    ///
    /// # Errors
    /// When it is in use or not of this host; the text names the address.
    pub fn bind(addr: SocketAddr) -> std::io::Result<Self> {
        let bind = || -> std::io::Result<Self> {
            let domain = socket2::Domain::for_address(addr);
            let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None)?;
            socket.set_reuse_address(true)?;
            socket.bind(&addr.into())?;
            socket.listen(BACKLOG)?;
            Ok(Self { shared: false, ..Self::adopt(socket.into())? })
        };
        bind().map_err(|e| std::io::Error::new(e.kind(), format!("cannot listen on {addr}: {e}")))
    }

    /// Takes over a socket of systemd's that is already listening.
    ///
    /// # Errors
    /// When it is not a TCP listener.
    pub fn adopt(socket: StdListener) -> std::io::Result<Self> {
        socket.set_nonblocking(true)?;
        let socket = TcpListener::from_std(socket)?;
        let addr = socket.local_addr()?;
        Ok(Self { socket, addr, shared: true })
    }

    /// Returns the bound address.
    #[must_use]
    pub const fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Bounds the output of the connections that it accepts: how long data may stay unacknowledged, or unsent
    /// because the peer's window is closed, before the kernel ends the connection; and how much the kernel
    /// buffers, so that the rest stays in this process, which counts it. By default the kernel buffers up to
    /// 4 MiB and keeps them for minutes after the connection has ended.
    ///
    /// # Errors
    /// When the system has no such options.
    pub fn bound_output(&self, timeout: Duration) -> std::io::Result<()> {
        let socket = socket2::SockRef::from(&self.socket);
        socket.set_send_buffer_size(SEND_BUFFER)?;
        socket.set_tcp_user_timeout(Some(timeout))
    }

    /// Returns the next connection and its peer, with TCP_NODELAY: without it small answers wait 40 ms
    /// for an ack.
    ///
    /// # Errors
    /// When none can be accepted now, for example because file descriptors are used up. A connection that has
    /// already ended is not an error.
    pub async fn accept(&self) -> std::io::Result<(TcpStream, SocketAddr)> {
        loop {
            match self.socket.accept().await {
                // setting the option fails for a connection that has ended, which its task notices
                Ok((stream, peer)) => {
                    let _ = stream.set_nodelay(true);
                    return Ok((stream, peer));
                }
                Err(error) if ended_early(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Closes the socket and returns the connections that the kernel has already accepted; closing alone would
    /// reset them. Those of a shared socket wait there for the next process.
    #[must_use]
    pub fn close(self) -> Vec<(TcpStream, SocketAddr)> {
        let mut waiting = Vec::new();
        if self.shared {
            return waiting;
        }
        // not tokio's accept: it stops early when its budget or its readiness flag runs out
        let Ok(socket) = self.socket.into_std() else { return waiting };
        while let Ok((stream, peer)) = socket.accept() {
            let adopted = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
            waiting.extend(adopted.and_then(|stream| stream.set_nodelay(true).map(|()| (stream, peer))));
        }
        waiting
    }
}

/// Returns true for an error of one connection; every other one is the listener's.
fn ended_early(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionAborted, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionReset)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn accepted_connections_have_nodelay() {
        let listener = Listener::bind(([127, 0, 0, 1], 0).into()).unwrap();
        let _client = TcpStream::connect(listener.addr()).await.unwrap();
        assert!(listener.accept().await.unwrap().0.nodelay().unwrap());
    }

    #[tokio::test]
    async fn a_taken_address_is_named() {
        let listener = Listener::bind(([127, 0, 0, 1], 0).into()).unwrap();
        let error = Listener::bind(listener.addr()).unwrap_err().to_string();
        assert!(error.contains(&listener.addr().to_string()), "{error}");
    }
}
