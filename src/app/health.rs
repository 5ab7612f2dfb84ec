//! Asks the admin listener of a process: `check-health`, for container engines, which have no other client in the image,
//! and `status`.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Longest time that the answer may take. `/readyz` itself takes at most 1.5 s.
const LIMIT: Duration = Duration::from_secs(2);

/// Most bytes of an answer that are read: many more than `/status` has with a thousand instances.
const MOST: usize = 8 * 1024 * 1024;

/// What a process said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status, 200 for a healthy process.
    pub status: StatusCode,
    /// What it said: for `/readyz` the reasons, a line each.
    pub text: String,
}

/// Asks the admin listener that is bound to `addr` for a path, such as `/readyz`; shows `token` if it is given.
///
/// *Cancellation*: the connection is closed.
///
/// # Errors
/// Why there is no answer within 2 s.
pub async fn ask(addr: SocketAddr, path: &str, token: Option<&str>) -> anyhow::Result<Answer> {
    let addr = reachable(addr);
    anyhow::ensure!(
        addr.port() != 0,
        "admin.addr has port 0: nobody knows the port that the process has taken"
    );
    let asked = tokio::time::timeout(LIMIT, exchange(addr, path, token)).await;
    let answer = asked.unwrap_or_else(|_| Err(anyhow::anyhow!("no answer within {LIMIT:?}")));
    answer.with_context(|| format!("http://{addr}{path}"))
}

/// Returns the address at which this host reaches a listener.
fn reachable(addr: SocketAddr) -> SocketAddr {
    if addr.ip().is_unspecified() {
        // a listener on [::] takes IPv4 too, and a host may have no IPv6
        return (Ipv4Addr::LOCALHOST, addr.port()).into();
    }
    addr
}

async fn exchange(addr: SocketAddr, path: &str, token: Option<&str>) -> anyhow::Result<Answer> {
    let stream = TcpStream::connect(addr).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // the sender is dropped at its end, and with it the connection ends
    let asking = async move {
        let mut request = Request::get(path).header(http::header::HOST, addr.to_string());
        if let Some(token) = token {
            request = request.header(http::header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request.body(Empty::<Bytes>::new())?;
        let (head, body) = sender.send_request(request).await?.into_parts();
        let body = Limited::new(body, MOST).collect().await.map_err(anyhow::Error::from_boxed)?.to_bytes();
        Ok(Answer { status: head.status, text: String::from_utf8_lossy(&body).into_owned() })
    };
    let (answer, _) = tokio::join!(asking, connection);
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_every_interface_is_reached_over_loopback() {
        for (bound, reached) in [
            ("[::]:6060", "127.0.0.1:6060"),
            ("0.0.0.0:6060", "127.0.0.1:6060"),
            ("[::1]:6060", "[::1]:6060"),
            ("10.1.2.3:6060", "10.1.2.3:6060"),
        ] {
            let bound: SocketAddr = bound.parse().unwrap();
            assert_eq!(reachable(bound).to_string(), reached);
        }
    }
}
