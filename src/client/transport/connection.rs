//! Opens one HTTP/2 connection, and hears the peer's first word on it.

use bytes::Bytes;
use http::HeaderValue;
use http_body_util::Full;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_util::task::AbortOnDropHandle;

use crate::api::error::chain;
use crate::client::transport::health::{self, Greeting};
use crate::config;

/// Calls that were given up and whose late answers are still recognised, per connection. h2 remembers 50
/// by default and, after 1024 answers to calls that it forgot, ends the connection for everyone on it.
const MAX_RESETS: usize = 10_000;
/// HTTP/2 windows: a largest answer fits without a round trip.
const WINDOW: u32 = 4 * 1024 * 1024;

/// A connection on which the peer has answered.
pub struct Opened {
    /// Sends requests on it.
    pub sender: SendRequest<Full<Bytes>>,
    /// Ends with it. A task of its own drives it, so that calls in flight finish whoever lets go of it.
    pub ended: JoinHandle<hyper::Result<()>>,
    /// The peer's first word.
    pub greeting: Greeting,
}

/// Opens a connection and asks for the peer's health, both within the time limit of the settings.
pub async fn open(addr: &str, identity: &HeaderValue, settings: &config::Client) -> Result<Opened, String> {
    let limit = settings.connect_timeout;
    let open = async {
        let (sender, connection) = connect(addr, settings).await?;
        let driver = AbortOnDropHandle::new(tokio::spawn(connection));
        let greeting = health::greet(sender.clone(), addr, identity).await?;
        Ok(Opened { sender, ended: driver.detach(), greeting })
    };
    let opened = tokio::time::timeout(limit, open).await;
    opened.unwrap_or_else(|_| Err(format!("connected, but not a word within {limit:?}")))
}

/// Drives a connection; ends with it.
pub type Connecting = hyper::client::conn::http2::Connection<TokioIo<TcpStream>, Full<Bytes>, TokioExecutor>;

/// Opens one HTTP/2 connection, within the time limit of the settings.
pub async fn connect(
    addr: &str,
    settings: &config::Client,
) -> Result<(SendRequest<Full<Bytes>>, Connecting), String> {
    let open = async {
        let stream = dial(addr).await.map_err(|e| chain(&e))?;
        let handshake = Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(settings.keepalive)
            .keep_alive_timeout(settings.keepalive_timeout)
            .max_concurrent_reset_streams(MAX_RESETS)
            .max_local_error_reset_streams(None)
            .initial_connection_window_size(WINDOW)
            .initial_stream_window_size(WINDOW)
            .handshake(TokioIo::new(stream));
        handshake.await.map_err(|e| chain(&e))
    };
    let limit = settings.connect_timeout;
    let opened = tokio::time::timeout(limit, open).await;
    opened.unwrap_or_else(|_| Err(format!("no connection within {limit:?}")))
}

/// Opens a TCP connection with TCP_NODELAY: without it small requests wait 40 ms for an ack.
async fn dial(addr: &str) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect(addr).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn dialled_connections_have_nodelay() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = dial(&listener.local_addr().unwrap().to_string()).await.unwrap();
        assert!(stream.nodelay().unwrap());
    }
}
