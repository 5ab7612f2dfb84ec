//! Opens byte streams to etcd. Every connection of the registry begins here, so that a simulation can replace it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use http::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use tokio::io::{AsyncRead, AsyncWrite};
use tower::Service as _;

/// A byte stream to a member.
pub trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Socket for T {}

/// Opens a byte stream to `host:port`. All connections to etcd are opened by one of these; a simulation passes its own.
pub type Dial = Arc<dyn Fn(&str) -> BoxFuture<'static, io::Result<Box<dyn Socket>>> + Send + Sync>;

/// Returns the dialer for TCP. It tries every address of a name, in at most `timeout` together.
pub fn tcp(timeout: Duration) -> Dial {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(timeout));
    Arc::new(move |addr| {
        let mut connector = connector.clone();
        let uri = format!("http://{addr}").parse::<Uri>().map_err(io::Error::other);
        Box::pin(async move {
            let connected = connector.call(uri?).await.map_err(io::Error::other)?;
            Ok(Box::new(connected.into_inner()) as Box<dyn Socket>)
        })
    })
}
