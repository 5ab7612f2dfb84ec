//! A bound socket: taken from the address or from systemd, with TCP_NODELAY on what it accepts.

use std::net::{SocketAddr, TcpListener as StdListener};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};

/// Connections that the kernel accepts ahead of us.
const BACKLOG: i32 = 4096;

/// What the kernel takes of the output of a connection, bytes (Linux doubles it for its own needs): two
/// hundred typical answers, and 25 MB/s over a line of 10 ms.
const SEND_BUFFER: usize = 256 * 1024;

/// A bound socket.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    addr: SocketAddr,
    /// True if somebody else holds the socket too and will give it to the next process.
    shared: bool,
}

impl Listener {
    /// Binds an address.
    ///
    /// # Errors
    /// When it is taken or not of this host; the text names the address.
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

    /// Takes over a socket that is already listening (systemd's).
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

    /// Sets how long data that was sent may stay unacknowledged, or unsent for want of a window, before the
    /// kernel ends a connection; and how much of it the kernel takes, so that the rest is where it can be
    /// counted. Without that it takes up to 4 MiB, and keeps them for minutes after the connection's end.
    /// Connections inherit both.
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
    /// When none can be had for now, such as for want of file descriptors; a connection that has already
    /// ended again is no error.
    pub async fn accept(&self) -> std::io::Result<(TcpStream, SocketAddr)> {
        loop {
            match self.socket.accept().await {
                // it can fail for a connection that is gone, which is found out soon enough
                Ok((stream, peer)) => {
                    let _ = stream.set_nodelay(true);
                    return Ok((stream, peer));
                }
                Err(error) if ended_early(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Closes the socket and returns the connections that the kernel has already accepted: dropped, they
    /// would be reset. Those of a shared socket wait there for the next process.
    #[must_use]
    pub fn close(self) -> Vec<(TcpStream, SocketAddr)> {
        let mut waiting = Vec::new();
        if self.shared {
            return waiting;
        }
        // not tokio's accept: that gives up when its budget or its idea of readiness runs out
        let Ok(socket) = self.socket.into_std() else { return waiting };
        while let Ok((stream, peer)) = socket.accept() {
            let adopted = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
            waiting.extend(adopted.and_then(|stream| stream.set_nodelay(true).map(|()| (stream, peer))));
        }
        waiting
    }
}

/// Returns true for the failure of one connection; all else is the listener's own.
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
