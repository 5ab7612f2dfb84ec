//! A small HTTP client, and raw bytes for what no client would send.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

/// What came back.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: String,
}

impl Answer {
    /// Returns the body as JSON; panics if it is none.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// Returns a header's text; panics if it is not there.
    pub fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name).unwrap_or_else(|| panic!("no {name} in {self:?}"));
        value.to_str().expect("a header of text")
    }

    /// Returns what a degraded answer says that it is, empty for a whole one.
    pub fn degraded(&self) -> &str {
        if self.headers.contains_key("x-degraded") { self.header("x-degraded") } else { "" }
    }
}

/// A kept-alive connection.
pub struct Connection(SendRequest<Full<Bytes>>);

impl Connection {
    pub async fn open(addr: SocketAddr) -> std::io::Result<Self> {
        let stream = TcpStream::connect(addr).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(std::io::Error::other)?;
        tokio::spawn(connection);
        Ok(Self(sender))
    }

    /// Sends one request and reads the whole answer.
    pub async fn send(&mut self, request: Request<Full<Bytes>>) -> std::io::Result<Answer> {
        let exchange = async {
            self.0.ready().await?;
            let response = self.0.send_request(request).await?;
            let (head, body) = response.into_parts();
            let body = body.collect().await?.to_bytes();
            Ok::<_, hyper::Error>(Answer {
                status: head.status,
                headers: head.headers,
                body: String::from_utf8_lossy(&body).into_owned(),
            })
        };
        let limited = tokio::time::timeout(Duration::from_secs(20), exchange).await;
        limited.map_err(std::io::Error::other)?.map_err(std::io::Error::other)
    }

    pub async fn get(&mut self, path: &str) -> std::io::Result<Answer> {
        self.send(request("GET", path, "")).await
    }
}

/// Returns a request. The admin port answers some paths only under a name of its own.
pub fn request(method: &str, path: &str, body: &str) -> Request<Full<Bytes>> {
    Request::builder()
        .method(method)
        .uri(path)
        .header("host", "localhost")
        .body(Full::new(Bytes::from(body.to_owned())))
        .expect("a valid request")
}

/// Sends one request on a connection of its own.
pub async fn send(addr: SocketAddr, request: Request<Full<Bytes>>) -> std::io::Result<Answer> {
    Connection::open(addr).await?.send(request).await
}

pub async fn get(addr: SocketAddr, path: &str) -> Answer {
    send(addr, request("GET", path, "")).await.unwrap_or_else(|e| panic!("GET {path}: {e}"))
}

pub async fn put(addr: SocketAddr, path: &str, body: &str) -> Answer {
    send(addr, request("PUT", path, body)).await.unwrap_or_else(|e| panic!("PUT {path}: {e}"))
}

/// Sends bytes and returns everything that comes back until the other side closes.
pub async fn raw(addr: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(addr).await.expect("it listens");
    // the other side may answer and close before it has read all
    let _ = stream.write_all(bytes).await;
    let mut out = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut out)).await;
    read.expect("the connection is closed in time").ok();
    String::from_utf8_lossy(&out).into_owned()
}

/// Returns the status, the value of a header and the body of a raw answer; status 0 for none.
pub fn parse(raw: &str) -> (u16, HeaderMap, String) {
    let (head, body) = raw.split_once("\r\n\r\n").unwrap_or((raw, ""));
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|code| code.parse().ok());
    let mut headers = HeaderMap::new();
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        let name = http::HeaderName::from_bytes(name.as_bytes()).expect("a header name");
        headers.append(name, value.trim().parse().expect("a header value"));
    }
    (status.unwrap_or(0), headers, body.to_owned())
}

/// Opens a connection with a small receive buffer.
pub async fn small(addr: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(addr).await.unwrap()
}

/// Stores so much content that an answer fills every buffer on its way.
pub async fn fill(gateway: SocketAddr, user: i64) {
    let content = "x".repeat(32 * 1024);
    for id in 1..=60 {
        let body = format!(r#"{{"id":{id},"user_id":{user},"content":"{content}"}}"#);
        assert_eq!(put(gateway, "/api/feed/create_feed", &body).await.status, 200);
    }
}
