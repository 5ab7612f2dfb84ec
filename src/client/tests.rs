//! The whole client over in-memory streams: neither a socket nor real time is used.

use std::convert::Infallible;
use std::io;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message as _;
use tokio::io::DuplexStream;
use tokio::task::AbortHandle;

use super::*;
use crate::api::headers::DEGRADED;
use crate::api::proto::topic::{ListTopicsRequest, ListTopicsResponse};
use crate::client::call::Answer;
use crate::client::call::testing::{self, ScriptedEnd, failure};
use crate::registry::{Instance, Local, Registry as _};
use crate::tls::Validity;

const ADDR: &str = "nowhere:1";

/// Connects to a gRPC server at the other end of an in-memory stream.
#[derive(Clone, Default)]
struct InMemory {
    /// The address of each connection that was asked for, and the task of its server.
    opened: Arc<Mutex<Vec<(String, AbortHandle)>>>,
}

impl InMemory {
    fn opened(&self) -> Vec<(String, AbortHandle)> {
        self.opened.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Connect for InMemory {
    type Stream = DuplexStream;

    async fn connect(&self, target: Target<'_>) -> io::Result<(DuplexStream, Option<Validity>)> {
        let (ours, peers) = tokio::io::duplex(64 * 1024);
        let server = http2::Builder::new(TokioExecutor::new());
        let server = tokio::spawn(server.serve_connection(TokioIo::new(peers), service_fn(answer)));
        let opened = (target.addr.to_owned(), server.abort_handle());
        self.opened.lock().unwrap_or_else(PoisonError::into_inner).push(opened);
        Ok((ours, None))
    }
}

/// Answers the rpcs of topic, each with the same fields; every other rpc, health among them, is unimplemented.
async fn answer(request: Request<Incoming>) -> Result<Response<BoxBody<Bytes, Infallible>>, Infallible> {
    let known = Rpc::of_path(request.uri().path()).service() == "topic";
    let status = if known { tonic::Code::Ok } else { tonic::Code::Unimplemented };
    let status = (HeaderName::from_static("grpc-status"), HeaderValue::from(status as i32));
    let trailers = HeaderMap::from_iter([status]);
    if !known {
        let (mut head, body) = Response::new(Full::default().boxed()).into_parts();
        head.headers = trailers;
        return Ok(Response::from_parts(head, body));
    }
    let message = wire::frame(&ListTopicsResponse { next: 7, ..ListTopicsResponse::default() });
    let body = Full::new(message.expect("a short message"));
    Ok(Response::new(body.with_trailers(std::future::ready(Some(Ok(trailers)))).boxed()))
}

/// A garbled answer does not replace the last good one, and a degraded one is not kept.
#[tokio::test(start_paused = true)]
async fn only_whole_answers_are_kept_for_the_fallback() {
    let end = ScriptedEnd::new(|n, _| async move {
        let next = if n == 0 { 7 } else { 8 };
        let message = ListTopicsResponse { next, ..ListTopicsResponse::default() }.encode_to_vec().into();
        match n {
            0 => Ok(Answer { message, ..Answer::default() }),
            1 => Ok(Answer { message: Bytes::from_static(b"\xff"), ..Answer::default() }),
            2 => Ok(Answer {
                message,
                headers: HeaderMap::from_iter([(DEGRADED, HeaderValue::from_static("x"))]),
                ..Answer::default()
            }),
            _ => Err(failure(Code::Unavailable)),
        }
    });
    let cache = Cache::new(1024 * 1024, Duration::from_mins(1));
    let path = Fallback::new(end, cache.clone(), Arc::default());
    let list = async || {
        let request = ListTopicsRequest { after: 0, size: 1 };
        let call = testing::call(Rpc::ListTopics, Duration::from_secs(1));
        super::exchange::<ListTopicsResponse>(&path, &cache, Call { about: request.about(), ..call }).await
    };
    let next = |reply: Result<Reply<ListTopicsResponse>, Error>| reply.map(|reply| reply.message.next).ok();
    assert_eq!(next(list().await), Some(7));
    assert_eq!(next(list().await), None, "garbled");
    assert_eq!(next(list().await), Some(8), "degraded");
    assert_eq!(next(list().await), Some(7), "the last whole one");
}

#[tokio::test(start_paused = true)]
async fn a_client_calls_over_the_streams_of_its_connector() {
    let (connect, registry) = (InMemory::default(), Local::default());
    let _registered = registry.register(Instance::bare("topic", ADDR));
    let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
    let connector = Connector::new(connect.clone());
    let settings = config::Client::default();
    let client = Client::new(&["topic"], &settings, "/services/", &registry.view(), &metrics, &connector);
    let list = async || {
        let context = Context::new(Instant::now() + Duration::from_secs(2));
        let reply: Result<Reply<ListTopicsResponse>, _> =
            client.call(Rpc::ListTopics, &ListTopicsRequest { after: 0, size: 1 }, &context).await;
        reply.map(|reply| reply.message.next)
    };
    assert_eq!(list().await.unwrap(), 7);
    let opened = connect.opened();
    assert_eq!(opened.iter().map(|(addr, _)| addr.as_str()).collect::<Vec<_>>(), [ADDR]);

    // a connection that breaks is opened again by the same connector: at once if a call on it was answered, else
    // after a wait in tokio's time
    let lose_newest = async || {
        let (begun, opened) = (Instant::now(), connect.opened());
        opened.last().unwrap().1.abort();
        while connect.opened().len() == opened.len() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        begun.elapsed()
    };
    let wait = lose_newest().await;
    assert!(wait < Duration::from_millis(25), "{wait:?}");
    let wait = lose_newest().await;
    assert!(wait >= Duration::from_millis(25), "{wait:?}");
    assert_eq!(list().await.unwrap(), 7);

    // a probe uses it, too, first on the connection that calls use: a peer without a health service serves as long as
    // it answers
    let probe = probe(settings, "/services/".to_owned(), connector.clone());
    let instance = Arc::new(Instance::bare("topic", ADDR));
    probe(instance.clone()).await.unwrap();
    assert_eq!(connect.opened().len(), 3);
    drop(client);
    let closed = async {
        while connector.offered(ADDR).is_some() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), closed).await.expect("nobody calls on it any more");
    probe(instance).await.unwrap();
    assert_eq!(connect.opened().len(), 4, "it has one of its own");
}
