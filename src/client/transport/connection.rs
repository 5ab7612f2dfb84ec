//! Opens HTTP connections over the byte streams of a [`Connector`]. It sends nothing on them.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use http::HeaderValue;
use http_body_util::Full;
use hyper::client::conn::http1;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_util::task::AbortOnDropHandle;

use crate::api::error::chain;
use crate::coalesce::Coalesced;
use crate::config::{self, HostPort};
use crate::timeout::timeout;
use crate::tls::{Validity, unverified};

/// Calls that were given up and whose late answers are still recognised, per connection. By default h2
/// remembers 50 and, after 1024 answers to calls that it has forgotten, ends the connection and with it every
/// other call on it.
const MAX_RESETS: usize = 10_000;
/// HTTP/2 windows, bytes: the largest answer fits without a round trip.
const WINDOW: u32 = 4 * 1024 * 1024;

/// Sends requests on one connection. Cheap to clone.
pub type RequestSender = SendRequest<Full<Bytes>>;

/// Where a connection goes, and who must be there.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// The address, `10.0.0.1:9001`.
    pub addr: &'a str,
    /// The service; `None` for a gateway, whose port is open to everybody.
    pub service: Option<&'a str>,
}

/// Opens byte streams to instances. Production uses [`Tcp`], or TLS over it; tests may connect without a network.
pub trait Connect: Send + Sync + 'static {
    /// The byte stream.
    type Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static;

    /// Opens a stream. If it is one with TLS, the second value tells how long its peer's certificate counts.
    fn connect(
        &self,
        target: Target<'_>,
    ) -> impl Future<Output = io::Result<(Self::Stream, Option<Validity>)>> + Send;
}

/// Connects by TCP, with TCP_NODELAY: without it small requests wait 40 ms for an acknowledgement.
#[derive(Clone, Copy, Debug)]
pub struct Tcp;

impl Connect for Tcp {
    type Stream = TcpStream;

    async fn connect(&self, target: Target<'_>) -> io::Result<(TcpStream, Option<Validity>)> {
        Ok((Self::open(target.addr).await?, None))
    }
}

impl Tcp {
    /// Opens a stream to an address.
    pub async fn open(addr: &str) -> io::Result<TcpStream> {
        let stream = TcpStream::connect(addr).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

/// A [`Connect`] of any kind, and the connections that are offered to calls. Cheap to clone.
#[derive(Clone)]
pub struct Connector {
    open: Arc<dyn OpenHttp>,
    /// By address, with a number that tells whose it is.
    offered: Arc<Mutex<HashMap<String, (u64, RequestSender)>>>,
}

impl Default for Connector {
    /// Returns the connector of production, [`Tcp`].
    fn default() -> Self {
        Self::new(Tcp)
    }
}

impl Connector {
    /// Returns a connector that opens its streams by `connect`.
    #[must_use]
    pub fn new(connect: impl Connect) -> Self {
        Self { open: Arc::new(connect), offered: Arc::default() }
    }

    /// Lets [`Self::offered`] return a connection until the guard is dropped or another one is offered.
    pub fn offer(&self, addr: &str, number: u64, sender: RequestSender) -> Offer {
        self.connections().insert(addr.to_owned(), (number, sender));
        Offer { connector: self.clone(), addr: addr.to_owned(), number }
    }

    /// Returns an open connection to an address, if calls have one.
    #[must_use]
    pub fn offered(&self, addr: &str) -> Option<RequestSender> {
        self.connections().get(addr).map(|(_, sender)| sender.clone()).filter(|sender| !sender.is_closed())
    }

    fn connections(&self) -> MutexGuard<'_, HashMap<String, (u64, RequestSender)>> {
        self.offered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection that is offered to calls; see [`Connector::offer`].
pub struct Offer {
    connector: Connector,
    addr: String,
    number: u64,
}

impl Drop for Offer {
    fn drop(&mut self) {
        let mut connections = self.connector.connections();
        if connections.get(&self.addr).is_some_and(|(number, _)| *number == self.number) {
            connections.remove(&self.addr);
        }
    }
}

/// Hides the type of the streams. Only opening a connection goes through the trait object: the task that
/// drives the connection is of the stream's own type, so that no read or write is a dynamic call.
trait OpenHttp: Send + Sync {
    fn open<'a>(
        &'a self,
        target: Target<'a>,
        settings: &'a config::Client,
    ) -> BoxFuture<'a, Result<Http2Connection, String>>;

    fn open_http1<'a>(&'a self, addr: &'a str, https: bool)
    -> BoxFuture<'a, Result<Http1Connection, String>>;
}

impl<C: Connect> OpenHttp for C {
    fn open<'a>(
        &'a self,
        target: Target<'a>,
        settings: &'a config::Client,
    ) -> BoxFuture<'a, Result<Http2Connection, String>> {
        async move {
            let (stream, validity) = self.connect(target).await.map_err(|e| chain(&e))?;
            let handshake = Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .keep_alive_interval(settings.keepalive)
                .keep_alive_timeout(settings.keepalive_timeout)
                .max_concurrent_reset_streams(MAX_RESETS)
                .max_local_error_reset_streams(None)
                .initial_connection_window_size(WINDOW)
                .initial_stream_window_size(WINDOW)
                .handshake(TokioIo::new(Coalesced::new(stream)));
            let (sender, connection) = handshake.await.map_err(|e| chain(&e))?;
            let driver = AbortOnDropHandle::new(tokio::spawn(connection));
            Ok(Http2Connection { sender, driver, validity })
        }
        .boxed()
    }

    fn open_http1<'a>(
        &'a self,
        addr: &'a str,
        https: bool,
    ) -> BoxFuture<'a, Result<Http1Connection, String>> {
        async move {
            let (stream, _) = self.connect(Target { addr, service: None }).await.map_err(|e| chain(&e))?;
            if !https {
                return Http1Connection::over(stream).await;
            }
            let host = addr.parse::<HostPort>()?.host;
            let host = host.trim_matches(['[', ']']).to_owned(); // of an IPv6 address
            let name = ServerName::try_from(host).map_err(|e| e.to_string())?;
            let connector = unverified::connector().map_err(|e| e.to_string())?;
            Http1Connection::over(connector.connect(name, stream).await.map_err(|e| chain(&e))?).await
        }
        .boxed()
    }
}

/// An open HTTP/2 connection. The peer may not have sent anything on it yet.
pub struct Http2Connection {
    /// Sends requests on it.
    pub sender: RequestSender,
    /// The task that drives the connection, and ends with it.
    pub driver: AbortOnDropHandle<hyper::Result<()>>,
    /// How long the certificate of the peer counts, if it has shown one.
    pub validity: Option<Validity>,
}

/// An open HTTP/1.1 connection.
pub struct Http1Connection {
    /// Sends requests on it.
    pub sender: http1::SendRequest<Full<Bytes>>,
    /// The task that drives the connection, and ends with it.
    pub driver: AbortOnDropHandle<hyper::Result<()>>,
}

impl Http1Connection {
    async fn over(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Result<Self, String> {
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|e| chain(&e))?;
        Ok(Self { sender, driver: AbortOnDropHandle::new(tokio::spawn(connection)) })
    }
}

/// How the connections to the instances of one service are opened.
#[derive(Clone)]
pub struct Dialer {
    /// Opens the byte streams.
    pub connector: Connector,
    /// Time limits and keepalive.
    pub settings: Arc<config::Client>,
    /// Which service an instance must be, `<key prefix><service>`.
    pub identity: HeaderValue,
    /// The same without the prefix; its certificate must say so, where it shows one.
    pub service: Arc<str>,
}

impl Dialer {
    /// Opens one HTTP/2 connection to an instance of the service, within `client.connect_timeout_ms`.
    ///
    /// # Errors
    /// Why there is no connection, for operators.
    pub async fn connect(&self, addr: &str) -> Result<Http2Connection, String> {
        let limit = self.settings.connect_timeout;
        let target = Target { addr, service: Some(&self.service) };
        let opened = timeout(limit, self.connector.open.open(target, &self.settings)).await;
        opened.unwrap_or_else(|_| Err(format!("no connection within {limit:?}")))
    }

    /// Opens one HTTP/1.1 connection to a gateway, within `client.connect_timeout_ms`; with `https` by TLS, where the gateway
    /// is not verified.
    ///
    /// # Errors
    /// Why there is no connection, for operators.
    pub async fn connect_http1(&self, addr: &str, https: bool) -> Result<Http1Connection, String> {
        let limit = self.settings.connect_timeout;
        let opened = timeout(limit, self.connector.open.open_http1(addr, https)).await;
        opened.unwrap_or_else(|_| Err(format!("no connection within {limit:?}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn tcp_connections_have_nodelay() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = Tcp::open(&listener.local_addr().unwrap().to_string()).await.unwrap();
        assert!(stream.nodelay().unwrap());
    }
}
