//! TLS to etcd. It is not tonic's for one reason: in TLS 1.3 a server refuses a client's certificate when the handshake
//! is already over for the client, in an alert that is lost if the next write fails first. Here a write that fails
//! still reads what has arrived, so that a refused certificate can be told from an etcd that went away.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{AlertDescription, ClientConfig, Error};

use super::dial::Socket;

/// The authorities that this process trusts, and its own certificate. Cheap to clone.
#[derive(Clone)]
pub struct Tls {
    config: Arc<ClientConfig>,
    server_name: Option<ServerName<'static>>,
    alert: Alert,
}

/// The alert that ended a connection, if one did.
#[derive(Clone, Default)]
pub struct Alert(Arc<Mutex<Option<AlertDescription>>>);

impl Tls {
    /// Prepares TLS; `server_name` is the name that the certificate of etcd must have, by default its host's.
    ///
    /// # Errors
    /// That it is no name.
    pub fn new(mut config: ClientConfig, server_name: Option<&str>) -> Result<Self, String> {
        config.alpn_protocols = vec![b"h2".to_vec()];
        let server_name = server_name.map(name_of).transpose()?;
        Ok(Self { config: Arc::new(config), server_name, alert: Alert::default() })
    }

    /// Returns a copy for one connection, with an [`Alert`] of its own.
    pub fn for_one(&self) -> (Self, Alert) {
        let alert = Alert::default();
        (Self { alert: alert.clone(), ..self.clone() }, alert)
    }

    /// Begins TLS over a byte stream to `host:port`.
    ///
    /// # Errors
    /// When the stream breaks, when the server is not trusted, or when it does not speak HTTP/2.
    pub async fn handshake(self, addr: &str, socket: Box<dyn Socket>) -> io::Result<Stream> {
        let host = addr.rsplit_once(':').map_or(addr, |(host, _)| host);
        let name = self.server_name.map_or_else(|| name_of(host), Ok).map_err(io::Error::other)?;
        let tls = TlsConnector::from(self.config).connect(name, socket).await;
        let tls = tls.inspect_err(|error| self.alert.note(error))?;
        if tls.get_ref().1.alpn_protocol() != Some(b"h2") {
            return Err(io::Error::other("the server speaks TLS, but not HTTP/2"));
        }
        Ok(Stream { tls, alert: self.alert, failed: None })
    }
}

impl Alert {
    /// Returns the alert, if there was one.
    pub fn get(&self) -> Option<AlertDescription> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, error: &io::Error) {
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
        if let Some(Error::AlertReceived(alert)) = inner {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(*alert);
        }
    }
}

fn name_of(host: &str) -> Result<ServerName<'static>, String> {
    let bare = host.trim_matches(['[', ']']).to_owned();
    ServerName::try_from(bare).map_err(|error| format!("{host:?}: {error}"))
}

/// A connection that remembers the alert that ended it.
pub struct Stream {
    tls: TlsStream<Box<dyn Socket>>,
    alert: Alert,
    /// The error of a write that has failed, while the alert is awaited.
    failed: Option<io::Error>,
}

impl Stream {
    /// Returns the result of a write. After an error it first reads to the end of the stream, since an alert with the
    /// reason may be waiting. That ends, because a connection that cannot be written to any more will be closed.
    fn explain<T>(&mut self, context: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        let error = match written {
            Poll::Ready(Err(error)) => error,
            other => return other,
        };
        let mut space = [0; 1024];
        loop {
            let mut into = ReadBuf::new(&mut space);
            match Pin::new(&mut self.tls).poll_read(context, &mut into) {
                Poll::Ready(Ok(())) if !into.filled().is_empty() => {}
                Poll::Ready(Ok(())) => return Poll::Ready(Err(error)),
                Poll::Ready(Err(reason)) => {
                    self.alert.note(&reason);
                    return Poll::Ready(Err(reason));
                }
                Poll::Pending => {
                    self.failed = Some(error);
                    return Poll::Pending;
                }
            }
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = ready!(Pin::new(&mut self.tls).poll_read(context, into));
        Poll::Ready(read.inspect_err(|error| self.alert.note(error)))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = match self.failed.take() {
            Some(error) => Poll::Ready(Err(error)),
            None => Pin::new(&mut self.tls).poll_write(context, bytes),
        };
        self.explain(context, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = match self.failed.take() {
            Some(error) => Poll::Ready(Err(error)),
            None => Pin::new(&mut self.tls).poll_flush(context),
        };
        self.explain(context, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_shutdown(context)
    }
}
