//! A listening socket, bound here or passed by systemd. Connections that it accepts have TCP_NODELAY.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener as StdListener, TcpStream as StdStream};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};

use crate::tls::Acceptor;

/// Connections that the kernel may accept before the accept loop takes them.
const BACKLOG: i32 = 4096;

/// The kernel's send buffer of a connection, bytes (Linux doubles it for its own needs): two hundred typical
/// answers, and 25 MB/s over a line with a round trip of 10 ms.
const SEND_BUFFER: usize = 256 * 1024;

/// The families of the connections that a socket takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Families {
    /// IPv4 only.
    V4,
    /// IPv6 only.
    V6,
    /// Both.
    Both,
}

impl Families {
    /// Returns those of a socket that [`Listener::bind`] has bound to `addr`.
    #[must_use]
    pub fn of(addr: SocketAddr) -> Self {
        match addr.ip() {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) if is_everywhere(addr) => Self::Both,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// Returns whether callers reach the socket at `ip`, if it is an address of this host.
    #[must_use]
    pub const fn include(self, ip: IpAddr) -> bool {
        matches!((self, ip), (Self::Both, _) | (Self::V4, IpAddr::V4(_)) | (Self::V6, IpAddr::V6(_)))
    }

    /// Returns those of two sockets on one port.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        if self == other { self } else { Self::Both }
    }

    /// Returns the words for them.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4 only",
            Self::V6 => "IPv6 only",
            Self::Both => "IPv4 and IPv6",
        }
    }
}

/// Returns true for `[::]`.
fn is_everywhere(addr: SocketAddr) -> bool {
    addr.is_ipv6() && addr.ip().is_unspecified()
}

/// Opens, binds and listens.
fn listen(addr: SocketAddr) -> std::io::Result<StdListener> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(addr), socket2::Type::STREAM, None)?;
    if is_everywhere(addr) {
        // else a setting of the host decides
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Returns true for the errors of a host whose kernel has no IPv6, or has it turned off.
fn lacks_ipv6(error: &std::io::Error) -> bool {
    use rustix::io::Errno;
    let errno = Errno::from_io_error(error);
    errno == Some(Errno::AFNOSUPPORT) || errno == Some(Errno::ADDRNOTAVAIL)
}

/// Returns what to do about an address that cannot be listened on.
fn advice(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            "; `ss -ltnp` shows the program that has it: end it, or choose another port"
        }
        std::io::ErrorKind::AddrNotAvailable => {
            "; `ip address` shows the addresses of this host: choose one of them"
        }
        std::io::ErrorKind::PermissionDenied => {
            "; choose a port above 1023, or give the program CAP_NET_BIND_SERVICE"
        }
        _ => "",
    }
}

/// A listening socket.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    addr: SocketAddr,
    /// True if systemd holds the socket too and will pass it to the next process.
    shared: bool,
    /// How TLS begins on its connections, if they have it.
    tls: Option<Acceptor>,
}

impl Listener {
    /// Binds an address. `[::]` takes connections of IPv4 too; on a host without IPv6 it is `0.0.0.0`.
    ///
    /// # Errors
    /// When it is in use or not of this host; the text names the address.
    pub fn bind(addr: SocketAddr) -> std::io::Result<Self> {
        let bound = match listen(addr) {
            Err(error) if is_everywhere(addr) && lacks_ipv6(&error) => {
                listen((Ipv4Addr::UNSPECIFIED, addr.port()).into())
            }
            bound => bound,
        };
        let bound = bound.and_then(|socket| Ok(Self { shared: false, ..Self::adopt(socket)? }));
        bound
            .map_err(|e| std::io::Error::new(e.kind(), format!("cannot listen on {addr}: {e}{}", advice(&e))))
    }

    /// Takes over a socket of systemd's that is already listening.
    ///
    /// # Errors
    /// When it is not a TCP listener.
    pub fn adopt(socket: StdListener) -> std::io::Result<Self> {
        socket.set_nonblocking(true)?;
        let socket = TcpListener::from_std(socket)?;
        let addr = socket.local_addr()?;
        Ok(Self { socket, addr, shared: true, tls: None })
    }

    /// Returns the same with TLS on its connections.
    #[must_use]
    pub fn with_tls(self, acceptor: Option<Acceptor>) -> Self {
        Self { tls: acceptor, ..self }
    }

    /// Returns how TLS begins on its connections, if they have it.
    #[must_use]
    pub fn tls(&self) -> Option<Acceptor> {
        self.tls.clone()
    }

    /// Returns the bound address.
    #[must_use]
    pub const fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Returns the families of the connections that it takes.
    #[must_use]
    pub fn families(&self) -> Families {
        match Families::of(self.addr) {
            // systemd may have bound it for IPv6 only
            Families::Both if socket2::SockRef::from(&self.socket).only_v6().unwrap_or(true) => Families::V6,
            families => families,
        }
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

    /// Polls for the next connection and its peer, with TCP_NODELAY: without it small answers wait 40 ms for an ack. It
    /// belongs to the runtime in whose context this is called.
    ///
    /// # Errors
    /// When none can be accepted now, for example because file descriptors are used up. A connection that has
    /// already ended is not an error.
    pub fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<std::io::Result<(TcpStream, SocketAddr)>> {
        loop {
            match ready!(self.socket.poll_accept(cx)) {
                // setting the option fails for a connection that has ended, which its task notices
                Ok((stream, peer)) => {
                    let _ = stream.set_nodelay(true);
                    return Poll::Ready(Ok((stream, peer)));
                }
                Err(error) if ended_early(&error) => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// Closes the socket and returns the connections that the kernel has already accepted; closing alone would
    /// reset them. Those of a shared socket wait there for the next process.
    #[must_use]
    pub fn close(self) -> Vec<(StdStream, SocketAddr)> {
        let mut waiting = Vec::new();
        if self.shared {
            return waiting;
        }
        // not tokio's accept: it stops early when its budget or its readiness flag runs out
        let Ok(socket) = self.socket.into_std() else { return waiting };
        while let Ok((stream, peer)) = socket.accept() {
            let adopted = stream.set_nonblocking(true).and_then(|()| stream.set_nodelay(true));
            waiting.extend(adopted.map(|()| (stream, peer)));
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
    use std::future::poll_fn;

    use super::*;

    #[tokio::test]
    async fn accepted_connections_have_nodelay() {
        let listener = Listener::bind(([127, 0, 0, 1], 0).into()).unwrap();
        let _client = TcpStream::connect(listener.addr()).await.unwrap();
        assert!(poll_fn(|cx| listener.poll_accept(cx)).await.unwrap().0.nodelay().unwrap());
    }

    #[tokio::test]
    async fn every_interface_means_both_families() {
        let listener = Listener::bind(([0_u16; 8], 0).into()).unwrap();
        // a machine without IPv6 falls back
        let families = if listener.addr().is_ipv6() { Families::Both } else { Families::V4 };
        assert_eq!(listener.families(), families);
        let v4 = SocketAddr::from(([127, 0, 0, 1], listener.addr().port()));
        let _client = TcpStream::connect(v4).await.unwrap();
        poll_fn(|cx| listener.poll_accept(cx)).await.unwrap();
        for (text, families) in [
            ("0.0.0.0:1", Families::V4),
            ("127.0.0.1:1", Families::V4),
            ("[::1]:1", Families::V6),
            ("[::]:1", Families::Both),
        ] {
            assert_eq!(Families::of(text.parse().unwrap()), families, "{text}");
        }
    }

    #[test]
    fn a_host_without_ipv6_is_told_from_a_taken_port() {
        let error = std::io::Error::from_raw_os_error;
        assert!(lacks_ipv6(&error(rustix::io::Errno::AFNOSUPPORT.raw_os_error())));
        assert!(!lacks_ipv6(&error(rustix::io::Errno::ADDRINUSE.raw_os_error())));
    }

    #[tokio::test]
    async fn a_taken_address_is_named() {
        let listener = Listener::bind(([127, 0, 0, 1], 0).into()).unwrap();
        let error = Listener::bind(listener.addr()).unwrap_err().to_string();
        assert!(error.contains(&listener.addr().to_string()), "{error}");
    }
}
