//! A collector of spans that behaves as told: takes them, takes long, or refuses. For what a real Zipkin
//! would not do on demand; what one makes of our spans, [`super::zipkin`] shows.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

/// What it does with a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// Reads it and keeps its spans.
    Keep,
    /// Takes it and forgets it.
    Discard,
    /// Takes it after this time.
    Slow(Duration),
    /// Answers 500.
    Refuse,
}

/// A collector. It ends when it is dropped.
pub struct Collector {
    pub addr: SocketAddr,
    seen: Arc<Seen>,
    _stop: DropGuard,
}

type Seen = Mutex<Vec<Value>>;

impl Collector {
    /// Starts it on a thread of its own, so that it stands in nobody's way.
    pub fn start(manner: Manner) -> Self {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let addr = socket.local_addr().expect("its address");
        socket.set_nonblocking(true).expect("a socket");
        let (seen, stop) = (Arc::<Seen>::default(), CancellationToken::new());
        let (kept, until) = (seen.clone(), stop.clone());
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async {
                let listener = TcpListener::from_std(socket).expect("a listener");
                let accept = async {
                    while let Ok((stream, _)) = listener.accept().await {
                        let seen = kept.clone();
                        let answer = service_fn(move |request| answer(request, manner, seen.clone()));
                        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), answer));
                    }
                };
                until.run_until_cancelled(accept).await;
            });
        });
        Self { addr, seen, _stop: stop.drop_guard() }
    }

    /// Returns the URL to send spans to.
    pub fn url(&self) -> String {
        format!("http://{}/api/v2/spans", self.addr)
    }

    /// Returns the spans that were kept.
    pub fn spans(&self) -> Vec<Value> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn answer(
    request: Request<Incoming>,
    manner: Manner,
    seen: Arc<Seen>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::ACCEPTED;
    let Ok(body) = request.into_body().collect().await else {
        return Ok(response);
    };
    let body = body.to_bytes();
    match manner {
        Manner::Keep => {
            let spans: Vec<Value> = serde_json::from_slice(&body).expect("an array of spans");
            seen.lock().unwrap_or_else(PoisonError::into_inner).extend(spans);
        }
        Manner::Discard => {}
        Manner::Slow(time) => tokio::time::sleep(time).await,
        Manner::Refuse => *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR,
    }
    Ok(response)
}
