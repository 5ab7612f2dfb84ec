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
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{AlertDescription, ClientConfig, Error, RootCertStore};

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

/// The part of the credentials that cannot be used.
#[derive(Debug)]
pub enum Part {
    /// The certificates of the authorities.
    Authorities,
    /// The certificate of this process.
    Certificate,
    /// The key of this process, or that it does not belong to the certificate.
    Key,
    /// The name that the certificate of etcd must have.
    ServerName,
}

impl Tls {
    /// Prepares TLS from PEM; `own` is the certificate of this process and its key.
    ///
    /// # Errors
    /// Which part cannot be used and why. The text never quotes what the part holds.
    pub fn new(
        authorities: &[u8],
        own: Option<(&[u8], &[u8])>,
        server_name: Option<&str>,
    ) -> Result<Self, (Part, String)> {
        let mut roots = RootCertStore::empty();
        for authority in chain(authorities, || Part::Authorities)? {
            roots.add(authority).map_err(|error| (Part::Authorities, error.to_string()))?;
        }
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| (Part::Authorities, error.to_string()))?
            .with_root_certificates(roots);
        let mut config = match own {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let certificate = chain(certificate, || Part::Certificate)?;
                let key = PrivateKeyDer::from_pem_slice(key)
                    .map_err(|_| (Part::Key, "holds no private key in PEM form".to_owned()))?;
                builder
                    .with_client_auth_cert(certificate, key)
                    .map_err(|error| (Part::Key, error.to_string()))?
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        let server_name = server_name.map(|name| name_of(name).map_err(|error| (Part::ServerName, error)));
        Ok(Self { config: Arc::new(config), server_name: server_name.transpose()?, alert: Alert::default() })
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

fn chain(pem: &[u8], part: fn() -> Part) -> Result<Vec<CertificateDer<'static>>, (Part, String)> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match read {
        Ok(chain) if chain.is_empty() => Err((part(), "holds no certificate in PEM form".to_owned())),
        Ok(chain) => Ok(chain),
        Err(_) => Err((part(), "is damaged PEM".to_owned())),
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
