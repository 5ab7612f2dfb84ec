//! Peers that misbehave: stand-ins for a service in trouble, registered where a good one would be.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

/// A listener with one kind of misbehaviour. Ends when dropped.
pub struct Peer {
    pub addr: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let addr = listener.local_addr().expect("its address");
    (listener, addr)
}

/// Takes connections and never says a word.
pub async fn silent() -> Peer {
    let (listener, addr) = listen().await;
    let task = tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            held.push(stream);
        }
    });
    Peer { addr, task }
}

/// Speaks HTTP/2 and refuses every call unprocessed, as a server that is full does.
pub async fn refusing() -> Peer {
    server(|_, mut respond| async move { respond.send_reset(h2::Reason::REFUSED_STREAM) }).await
}

/// Says that it serves, and answers no call.
pub async fn stalling() -> Peer {
    healthy(|_, respond| async move {
        let _held = respond;
        std::future::pending::<()>().await;
    })
    .await
}

/// A call as a peer sees it.
pub type Asked = http::Request<h2::RecvStream>;
/// What a peer answers it with.
pub type Respond = h2::server::SendResponse<Bytes>;

/// Says that it serves, and lets `answer` see to every other call.
pub async fn healthy<F>(answer: impl Fn(Asked, Respond) -> F + Clone + Send + 'static) -> Peer
where
    F: Future<Output = ()> + Send + 'static,
{
    healthy_with(h2::server::Builder::new(), answer).await
}

/// As [`healthy`], with settings of its connections.
pub async fn healthy_with<F>(
    settings: h2::server::Builder,
    answer: impl Fn(Asked, Respond) -> F + Clone + Send + 'static,
) -> Peer
where
    F: Future<Output = ()> + Send + 'static,
{
    server_with(settings, move |request, mut respond| {
        let health = request.uri().path().starts_with("/grpc.health.v1.Health/");
        let answer = (!health).then(|| answer.clone());
        async move {
            if let Some(answer) = answer {
                return answer(request, respond).await;
            }
            let head = http::Response::builder().header("content-type", "application/grpc");
            if let Ok(mut body) = respond.send_response(head.body(()).expect("a head"), false) {
                let _ = body.send_data(Bytes::from_static(&[0, 0, 0, 0, 2, 8, 1]), false);
                std::future::pending::<()>().await;
            }
        }
    })
    .await
}

/// Speaks HTTP/2 and lets `answer` see to every call.
pub async fn server<F>(answer: impl Fn(Asked, Respond) -> F + Clone + Send + 'static) -> Peer
where
    F: Future<Output = ()> + Send + 'static,
{
    server_with(h2::server::Builder::new(), answer).await
}

/// As [`server`], with settings of its connections.
pub async fn server_with<F>(
    settings: h2::server::Builder,
    answer: impl Fn(Asked, Respond) -> F + Clone + Send + 'static,
) -> Peer
where
    F: Future<Output = ()> + Send + 'static,
{
    let (listener, addr) = listen().await;
    let task = tokio::spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let (settings, answer) = (settings.clone(), answer.clone());
            let _ = stream.set_nodelay(true);
            connections.spawn(converse(settings, stream, answer));
        }
    });
    Peer { addr, task }
}

/// As [`server`], over TLS only.
pub async fn secured<F>(
    tls: TlsAcceptor,
    answer: impl Fn(Asked, Respond) -> F + Clone + Send + 'static,
) -> Peer
where
    F: Future<Output = ()> + Send + 'static,
{
    let (listener, addr) = listen().await;
    let task = tokio::spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let (tls, answer) = (tls.clone(), answer.clone());
            connections.spawn(async move {
                if let Ok(stream) = tls.accept(stream).await {
                    converse(h2::server::Builder::new(), stream, answer).await;
                }
            });
        }
    });
    Peer { addr, task }
}

/// Answers one request on each connection over TLS, with an empty page.
pub async fn secured_http1(tls: TlsAcceptor) -> Peer {
    let (listener, addr) = listen().await;
    let task = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = tls.accept(stream).await else { continue };
            let _ = stream.read(&mut [0; 4096]).await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
            let _ = stream.shutdown().await;
        }
    });
    Peer { addr, task }
}

/// Speaks HTTP/2 on a stream to its end.
async fn converse<F>(
    settings: h2::server::Builder,
    stream: impl AsyncRead + AsyncWrite + Unpin,
    answer: impl Fn(Asked, Respond) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let Ok(mut connection) = settings.handshake(stream).await else {
        return;
    };
    let mut calls = JoinSet::new();
    while let Some(Ok((request, respond))) = connection.accept().await {
        calls.spawn(answer(request, respond));
    }
}

/// Says that it serves, answers every call well, and says GOAWAY without an error after every `calls`-th one of a
/// connection, as a server does that limits the age of its connections.
pub async fn leaving(calls: usize) -> Peer {
    let (listener, addr) = listen().await;
    let task = tokio::spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let _ = stream.set_nodelay(true);
            connections.spawn(async move {
                let Ok(mut connection) = h2::server::handshake(stream).await else {
                    return;
                };
                let (mut watches, mut answered) = (Vec::new(), 0);
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    if request.uri().path().starts_with("/grpc.health.v1.Health/") {
                        let head = http::Response::builder().header("content-type", "application/grpc");
                        if let Ok(mut body) = respond.send_response(head.body(()).expect("a head"), false) {
                            let _ = body.send_data(Bytes::from_static(&[0, 0, 0, 0, 2, 8, 1]), false);
                            watches.push(body);
                        }
                        continue;
                    }
                    fine(&mut respond);
                    answered += 1;
                    if answered == calls {
                        watches.clear(); // else the connection would stay open for them
                        connection.graceful_shutdown();
                    }
                }
            });
        }
    });
    Peer { addr, task }
}

/// Answers a call with a status and nothing else.
pub fn say(respond: &mut Respond, code: tonic::Code, more: &[(&'static str, &str)]) {
    let mut head = http::Response::builder()
        .header("content-type", "application/grpc")
        .header("grpc-status", code as i32);
    for (name, value) in more {
        head = head.header(*name, *value);
    }
    let _ = respond.send_response(head.body(()).expect("a head"), true);
}

/// Answers a call with an empty message, which every rpc of ours can read.
pub fn fine(respond: &mut Respond) {
    let head = http::Response::builder().header("content-type", "application/grpc");
    let Ok(mut body) = respond.send_response(head.body(()).expect("a head"), false) else {
        return;
    };
    let _ = body.send_data(Bytes::from_static(&[0; 5]), false);
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let _ = body.send_trailers(trailers);
}

/// How a connection dies under a call.
#[derive(Clone, Copy, Debug)]
pub enum Break {
    /// It is closed.
    Close,
    /// The server says GOAWAY with an error.
    Goaway,
    /// It is closed in the middle of the body.
    MidAnswer,
    /// The body ends without a status.
    NoTrailers,
    /// What comes is no message.
    Garbage,
    /// Nothing comes any more, and the connection stays open.
    Freeze,
}

/// Says that it serves, and breaks under every other call.
pub async fn breaking(how: Break) -> Peer {
    let (listener, addr) = listen().await;
    let task = tokio::spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            connections.spawn(async move {
                let Ok(mut connection) = h2::server::handshake(stream).await else {
                    return;
                };
                let mut watches = Vec::new();
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    let head = http::Response::builder().header("content-type", "application/grpc");
                    let head = head.body(()).expect("a head");
                    if request.uri().path().starts_with("/grpc.health.v1.Health/") {
                        if let Ok(mut body) = respond.send_response(head, false) {
                            let _ = body.send_data(Bytes::from_static(&[0, 0, 0, 0, 2, 8, 1]), false);
                            watches.push(body);
                        }
                        continue;
                    }
                    match how {
                        Break::Close => return,
                        Break::Freeze => std::future::pending().await,
                        Break::Goaway => connection.abrupt_shutdown(h2::Reason::INTERNAL_ERROR),
                        Break::MidAnswer => {
                            if let Ok(mut body) = respond.send_response(head, false) {
                                let _ = body.send_data(Bytes::from_static(&[0, 0, 0, 0, 9, 1]), false);
                                let drained = std::future::poll_fn(|cx| connection.poll_closed(cx));
                                let _ =
                                    tokio::time::timeout(std::time::Duration::from_millis(50), drained).await;
                            }
                            return;
                        }
                        Break::NoTrailers => {
                            if let Ok(mut body) = respond.send_response(head, false) {
                                let _ = body.send_data(Bytes::from_static(&[0; 5]), true);
                            }
                        }
                        Break::Garbage => {
                            if let Ok(mut body) = respond.send_response(head, false) {
                                let _ = body.send_data(Bytes::from_static(b"<html>no such thing"), false);
                                let mut trailers = HeaderMap::new();
                                trailers.insert("grpc-status", HeaderValue::from_static("0"));
                                let _ = body.send_trailers(trailers);
                            }
                        }
                    }
                }
            });
        }
    });
    Peer { addr, task }
}
