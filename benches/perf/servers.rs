//! The small servers that our chain is compared with, one thread each as ours has.
//!
//! usage: serve warp|hyper|tonic|sink|slow ADDR

use std::convert::Infallible;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use microservice_app::api::proto::feed::feed_server::{Feed, FeedServer};
use microservice_app::api::proto::feed::{
    DeleteFeedRequest, DeleteFeedResponse, FeedRecord, GetFeedsRequest, GetFeedsResponse, OkResponse,
};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tonic::Status;
use warp::Filter as _;

use crate::stack::{CONTENT, FEEDS};

/// The slow service: so many calls at the same time, each for so long, make 1000 a second. As many more wait.
const PLACES: usize = 16;
const TIME: Duration = Duration::from_millis(16);
/// When its callers may come again.
const PUSHBACK_MS: &str = "100";

pub fn run(arguments: &[String]) -> ExitCode {
    let [name, addr] = arguments else { panic!("serve NAME ADDR") };
    let addr: SocketAddr = addr.parse().expect("an address");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let listener = TcpListener::bind(addr).await.expect("a free port");
        match name.as_str() {
            "warp" => serve_warp(listener).await,
            "hyper" => serve_hyper(listener, 200).await,
            "sink" => serve_hyper(listener, 202).await,
            "tonic" => serve_tonic(listener, None).await,
            "slow" => serve_tonic(listener, Some(Arc::new(Semaphore::new(PLACES)))).await,
            _ => panic!("there is no server {name}"),
        }
    });
    ExitCode::SUCCESS
}

async fn accept(listener: &TcpListener) -> TokioIo<tokio::net::TcpStream> {
    loop {
        if let Ok((stream, _)) = listener.accept().await {
            stream.set_nodelay(true).expect("a socket");
            return TokioIo::new(stream);
        }
    }
}

/// A filter of warp's that answers `hello`, on hyper's server, which our gateway uses too.
async fn serve_warp(listener: TcpListener) {
    let filter = warp::any().map(|| warp::reply::Response::new("hello".into()));
    let service = TowerToHyperService::new(warp::service(filter));
    loop {
        let stream = accept(&listener).await;
        tokio::spawn(http1::Builder::new().serve_connection(stream, service));
    }
}

/// hyper alone, which answers everything with `hello`.
async fn serve_hyper(listener: TcpListener, status: u16) {
    loop {
        let stream = accept(&listener).await;
        let answer = move |request: Request<Incoming>| async move {
            let _ = request.into_body().collect().await;
            let answer = Response::builder().status(status);
            Ok::<_, Infallible>(answer.body(Full::new(Bytes::from_static(b"hello"))).expect("an answer"))
        };
        tokio::spawn(http1::Builder::new().serve_connection(stream, service_fn(answer)));
    }
}

/// tonic's server with the feeds of one user.
struct Fixed {
    answer: GetFeedsResponse,
    /// Of the slow one.
    places: Option<Arc<Semaphore>>,
    waiting: Semaphore,
}

#[tonic::async_trait]
impl Feed for Fixed {
    async fn get_feeds(
        &self,
        _: tonic::Request<GetFeedsRequest>,
    ) -> Result<tonic::Response<GetFeedsResponse>, Status> {
        if let Some(places) = &self.places {
            let Ok(_waiting) = self.waiting.try_acquire() else {
                let mut status = Status::unavailable("overloaded");
                status
                    .metadata_mut()
                    .insert("grpc-retry-pushback-ms", PUSHBACK_MS.parse().expect("a number"));
                return Err(status);
            };
            let _place = places.acquire().await.expect("open");
            tokio::time::sleep(TIME).await;
        }
        Ok(tonic::Response::new(self.answer.clone()))
    }

    async fn create_feed(
        &self,
        _: tonic::Request<FeedRecord>,
    ) -> Result<tonic::Response<OkResponse>, Status> {
        Ok(tonic::Response::new(OkResponse {}))
    }

    async fn delete_feed(
        &self,
        _: tonic::Request<DeleteFeedRequest>,
    ) -> Result<tonic::Response<DeleteFeedResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }
}

async fn serve_tonic(listener: TcpListener, places: Option<Arc<Semaphore>>) {
    let feed = |id| FeedRecord { id, user_id: crate::stack::USER, content: "x".repeat(CONTENT) };
    let answer = GetFeedsResponse { feeds: (1..=FEEDS as i64).map(feed).collect(), shortened: false };
    let (_reporter, health) = tonic_health::server::health_reporter();
    let fixed = Fixed { answer, places, waiting: Semaphore::new(2 * PLACES) };
    let incoming = stream::unfold(listener, async |listener| {
        let accepted = listener.accept().await.map(|(stream, _)| {
            stream.set_nodelay(true).expect("a socket");
            stream
        });
        Some((accepted, listener))
    });
    let server = tonic::transport::Server::builder().add_service(health).add_service(FeedServer::new(fixed));
    server.serve_with_incoming(incoming).await.expect("it serves");
}
