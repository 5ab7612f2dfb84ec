//! Who calls: HTTP/1.1 over a pool of connections, one channel of tonic's, or our client.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::LocalBoxFuture;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use microservice_app::api::proto::feed::GetFeedsRequest;
use microservice_app::api::proto::feed::feed_client::FeedClient;
use microservice_app::api::received::Feeds;
use microservice_app::api::rpc::Rpc;
use microservice_app::client::{self, Client, Connector};
use microservice_app::config::Settings;
use microservice_app::context::Context;
use microservice_app::registry::{Instance, Local, Registration, Registry as _};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tonic::transport::Channel;

use super::{Kind, Load};
use crate::stack::{FEEDS, USER};

/// Makes one call.
pub trait Caller {
    /// Returns an error unless the answer is good and whole.
    fn call(&self) -> LocalBoxFuture<'_, Result<(), String>>;
}

/// Returns the caller of a load once it has had a first answer.
pub async fn open(load: &Load) -> Rc<dyn Caller> {
    let caller: Rc<dyn Caller> = match load.kind {
        Kind::Http => Rc::new(Http { addr: load.addr, path: load.path.clone(), idle: RefCell::default() }),
        Kind::Tonic => Rc::new(Tonic::open(load.addr).await),
        Kind::Client => Rc::new(Ours::open(load.addr)),
    };
    let mut last = Ok(());
    for _ in 0..200 {
        last = caller.call().await;
        if last.is_ok() {
            return caller;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("no answer from {}: {last:?}", load.addr);
}

struct Http {
    addr: SocketAddr,
    path: String,
    idle: RefCell<Vec<SendRequest<Empty<Bytes>>>>,
}

impl Http {
    async fn connect(&self) -> Result<SendRequest<Empty<Bytes>>, String> {
        let stream = TcpStream::connect(self.addr).await.map_err(|error| error.to_string())?;
        stream.set_nodelay(true).map_err(|error| error.to_string())?;
        let (sender, connection) =
            handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
        tokio::spawn(connection);
        Ok(sender)
    }
}

impl Caller for Http {
    fn call(&self) -> LocalBoxFuture<'_, Result<(), String>> {
        Box::pin(async {
            let idle = self.idle.borrow_mut().pop().filter(|sender| !sender.is_closed());
            let mut sender = if let Some(sender) = idle { sender } else { self.connect().await? };
            let request = Request::get(&self.path).header("host", "localhost").body(Empty::new());
            sender.ready().await.map_err(|error| error.to_string())?;
            let answer = sender.send_request(request.expect("a request")).await;
            let (head, body) = answer.map_err(|error| error.to_string())?.into_parts();
            let body = body.collect().await.map_err(|error| error.to_string())?.to_bytes();
            self.idle.borrow_mut().push(sender);
            match head.headers.get("x-degraded") {
                None if head.status == StatusCode::OK => Ok(()),
                None => {
                    let body = String::from_utf8_lossy(&body);
                    let line = body.split_whitespace().collect::<Vec<_>>().join(" ");
                    Err(format!("{}: {line}", head.status))
                }
                Some(degraded) => Err(format!("{}, degraded: {degraded:?}", head.status)),
            }
        })
    }
}

const REQUEST: GetFeedsRequest = GetFeedsRequest { user_id: USER, size: FEEDS as i64, before: 0 };

struct Tonic(FeedClient<Channel>);

impl Tonic {
    async fn open(addr: SocketAddr) -> Self {
        let channel = Channel::from_shared(format!("http://{addr}")).expect("an address").connect().await;
        Self(FeedClient::new(channel.expect("it listens")))
    }
}

impl Caller for Tonic {
    fn call(&self) -> LocalBoxFuture<'_, Result<(), String>> {
        Box::pin(async {
            let answer = self.0.clone().get_feeds(REQUEST).await.map_err(|status| status.to_string())?;
            whole(answer.get_ref().feeds.len())
        })
    }
}

struct Ours {
    client: Client,
    _registration: Registration,
}

impl Ours {
    fn open(addr: SocketAddr) -> Self {
        let (registry, settings) = (Local::default(), Settings::default());
        let registration = registry.register(Instance::bare("feed", &addr.to_string()));
        let metrics = client::metrics::Metrics::register(&prometheus::Registry::new()).expect("metrics");
        let prefix = &settings.registry.prefix;
        let client = Client::new(
            &["feed"],
            &settings.client,
            prefix,
            &registry.view(),
            &metrics,
            &Connector::default(),
        );
        Self { client, _registration: registration }
    }
}

impl Caller for Ours {
    fn call(&self) -> LocalBoxFuture<'_, Result<(), String>> {
        Box::pin(async {
            let context = Context::new(Instant::now() + Duration::from_secs(2));
            let answer = self.client.call::<_, Feeds>(Rpc::GetFeeds, &REQUEST, &context).await;
            whole(answer.map_err(|error| error.to_string())?.message.feeds.len())
        })
    }
}

fn whole(feeds: usize) -> Result<(), String> {
    if feeds == FEEDS { Ok(()) } else { Err(format!("{feeds} of {FEEDS} feeds")) }
}
