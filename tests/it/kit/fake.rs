//! A topic service that behaves as told: slow, failing, limited to so many workers. It speaks through
//! tonic like the real one and records every call that reaches it.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::{HeaderValue, Request};
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use microservice_app::api::proto::topic::topic_server::{Topic, TopicServer};
use microservice_app::api::proto::topic::{
    GetTopicRequest, GetTopicResponse, ListTopicsRequest, ListTopicsResponse, OkResponse, PutTopicRequest,
};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::service::Routes;
use tonic::{Response, Status};
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use tower::ServiceExt as _;

/// Most calls that are recorded; the count goes on.
const MAX_SEEN: usize = 1_000_000;

/// What a fake does with a call.
#[derive(Clone, Debug)]
pub struct Behaviour {
    /// Time to an answer.
    pub delay: Duration,
    /// Share of calls that fail, 0 to 1, and how.
    pub failing: f64,
    pub code: tonic::Code,
    /// The one method that this is about; all if there is none.
    pub only: Option<&'static str>,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self { delay: Duration::ZERO, failing: 0.0, code: tonic::Code::Internal, only: None }
    }
}

/// One call as its handler saw it.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: &'static str,
    /// `grpc-previous-rpc-attempts`.
    pub previous_attempts: u32,
    /// `x-msa-subject`.
    pub subject: Option<String>,
    pub began: Instant,
    /// When the handler ended, by an answer or because its caller gave up.
    pub ended: Option<Instant>,
    pub answered: bool,
}

/// A service. It ends, and its connections with it, when it is dropped.
pub struct Fake {
    pub addr: SocketAddr,
    /// What it tells as its id.
    pub id: String,
    shared: Arc<Shared>,
    health: HealthReporter,
    stop: CancellationToken,
    _guard: DropGuard,
}

struct Shared {
    behaviour: Mutex<Behaviour>,
    seen: Mutex<Vec<Seen>>,
    workers: Semaphore,
}

impl Shared {
    fn seen(&self) -> std::sync::MutexGuard<'_, Vec<Seen>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Fake {
    /// Starts one that answers at once.
    pub async fn start() -> Self {
        Self::start_with(Behaviour::default(), Semaphore::MAX_PERMITS).await
    }

    /// Starts one with a behaviour and so many calls at the same time; the others wait.
    pub async fn start_with(behaviour: Behaviour, workers: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let addr = listener.local_addr().expect("its address");
        let id = format!("{:016x}", rand::random::<u64>());
        let shared = Arc::new(Shared {
            behaviour: Mutex::new(behaviour),
            seen: Mutex::default(),
            workers: Semaphore::new(workers),
        });
        let (health, service) = tonic_health::server::health_reporter();
        health.set_service_status("", ServingStatus::Serving).await;
        let routes = Routes::new(TopicServer::new(Handler(shared.clone()))).add_service(service).prepare();
        let stop = CancellationToken::new();
        tokio::spawn(accept(listener, routes, id.clone(), stop.clone()));
        Self { addr, id, shared, health, _guard: stop.clone().drop_guard(), stop }
    }

    /// Changes what it does with the calls to come.
    pub fn behave(&self, behaviour: Behaviour) {
        *self.shared.behaviour.lock().unwrap_or_else(PoisonError::into_inner) = behaviour;
    }

    /// Returns the calls that reached it.
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.seen().clone()
    }

    /// Returns how many calls reached it.
    pub fn calls(&self) -> usize {
        self.shared.seen().len()
    }

    /// Has it say that it does not serve. It still answers whoever calls, so that a call which should not
    /// come is seen.
    pub async fn retire(&self) {
        self.health.set_service_status("", ServingStatus::NotServing).await;
    }

    /// Ends it as a crash does: the listener and every connection are gone.
    pub fn kill(&self) {
        self.stop.cancel();
    }
}

async fn accept(listener: TcpListener, routes: Routes, id: String, stop: CancellationToken) {
    while let Some(Ok((stream, _))) = stop.run_until_cancelled(listener.accept()).await {
        let connection = serve(stream, routes.clone(), id.clone());
        tokio::spawn(stop.clone().run_until_cancelled_owned(connection));
    }
}

async fn serve(stream: TcpStream, routes: Routes, id: String) {
    let _ = stream.set_nodelay(true);
    let id = HeaderValue::from_str(&id).expect("hex digits");
    let service = tower::service_fn(move |request: Request<hyper::body::Incoming>| {
        let (routes, id) = (routes.clone(), id.clone());
        async move {
            let mut response = routes.oneshot(request).await?;
            response.headers_mut().insert("x-msa-instance", id);
            Ok::<_, std::convert::Infallible>(response)
        }
    });
    let connection = http2::Builder::new(TokioExecutor::new())
        .max_pending_accept_reset_streams(10_000)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
    let _ = connection.await;
}

#[derive(Clone)]
struct Handler(Arc<Shared>);

/// Notes the end of a call, also of one that is given up.
struct Noted {
    shared: Arc<Shared>,
    place: usize,
    answered: bool,
}

impl Drop for Noted {
    fn drop(&mut self) {
        if let Some(seen) = self.shared.seen().get_mut(self.place) {
            seen.ended = Some(Instant::now());
            seen.answered = self.answered;
        }
    }
}

impl Handler {
    async fn behave<T>(&self, method: &'static str, request: &tonic::Request<T>) -> Result<(), Status> {
        let previous = request.metadata().get("grpc-previous-rpc-attempts");
        let subject = request.metadata().get("x-msa-subject");
        let subject = subject.and_then(|subject| Some(subject.to_str().ok()?.to_owned()));
        let mut noted = {
            let mut all = self.0.seen();
            let place = all.len();
            if place < MAX_SEEN {
                all.push(Seen {
                    method,
                    previous_attempts: previous.and_then(|n| n.to_str().ok()?.parse().ok()).unwrap_or(0),
                    subject,
                    began: Instant::now(),
                    ended: None,
                    answered: false,
                });
            }
            Noted { shared: self.0.clone(), place, answered: false }
        };
        let _worker = self.0.workers.acquire().await.map_err(|_| Status::unavailable("it ends"))?;
        let behaviour = self.0.behaviour.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if behaviour.only.is_none_or(|only| only == method) {
            if !behaviour.delay.is_zero() {
                tokio::time::sleep(behaviour.delay).await;
            }
            noted.answered = true;
            if rand::random::<f64>() < behaviour.failing {
                return Err(Status::new(behaviour.code, "told to fail"));
            }
        }
        noted.answered = true;
        Ok(())
    }
}

#[tonic::async_trait]
impl Topic for Handler {
    async fn get_topic(
        &self,
        request: tonic::Request<GetTopicRequest>,
    ) -> Result<Response<GetTopicResponse>, Status> {
        self.behave("GetTopic", &request).await?;
        let topic_id = request.get_ref().topic_id;
        let (subject, content) = ("subject".to_owned(), "content".to_owned());
        Ok(Response::new(GetTopicResponse { topic_id, subject, content }))
    }

    async fn put_topic(
        &self,
        request: tonic::Request<PutTopicRequest>,
    ) -> Result<Response<OkResponse>, Status> {
        self.behave("PutTopic", &request).await?;
        Ok(Response::new(OkResponse {}))
    }

    async fn list_topics(
        &self,
        request: tonic::Request<ListTopicsRequest>,
    ) -> Result<Response<ListTopicsResponse>, Status> {
        self.behave("ListTopics", &request).await?;
        Ok(Response::new(ListTopicsResponse { topics: Vec::new(), next: 0 }))
    }
}
