//! The server side of a service: its rpcs, health and reflection. Accepts or refuses each call, gives it its
//! context and deadline, and answers it by the rpc's implementation.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use tokio::time::Instant;
use tonic::Status;
use tonic::body::Body;
use tonic::service::Routes;
use tower::ServiceExt as _;

use super::failure::Failure;
use super::feed::Feed;
use super::health::Health;
use super::kind::Service;
use super::profile::Profile;
use super::receive::receive;
use super::reflection;
use super::topic::Topic;
use crate::api::error::{Code, Error, code_name};
use crate::api::headers::{INSTANCE, SERVICE, WRONG_SERVICE};
use crate::api::rpc::Rpc;
use crate::config::Settings;
use crate::context::{Context, MAX_DEADLINE, grpc_timeout};
use crate::server::UnsentLimit;
use crate::server::admission::Admission;
use crate::server::lifecycle::{Lifecycle, Outcome, Record};
use crate::server::metrics::Metrics;
use crate::telemetry::log::LogThrottle;
use crate::telemetry::metrics::RpcDurations;
use crate::telemetry::trace::Tracer;

/// Answers the calls of one listener. Cheap to clone.
#[derive(Clone)]
pub struct Handler {
    routes: Routes,
    health: Health,
    /// `<key prefix><service>`: calls that name another service are refused.
    identity: HeaderValue,
    /// The id of this instance, which every answer carries.
    instance: HeaderValue,
    admission: Arc<Admission>,
    handled: Arc<RpcDurations>,
    tracer: Tracer,
    default_deadline: Duration,
    slow: Duration,
}

impl Handler {
    /// Builds the routes of a service. Its health is NOT_SERVING until [`Self::set_serving`]. While `unsent`, the
    /// limit of its listener, is full, calls are refused.
    ///
    /// # Errors
    /// When the descriptors of the services cannot be read.
    pub fn new(
        service: &Service,
        identity: HeaderValue,
        instance: HeaderValue,
        metrics: &Metrics,
        tracer: Tracer,
        settings: &Settings,
        unsent: Arc<UnsentLimit>,
    ) -> anyhow::Result<Self> {
        use crate::api::proto::topic::topic_server::TopicServer;
        use crate::api::proto::{feed::feed_server::FeedServer, profile::profile_server::ProfileServer};
        let health = Health::new(service.grpc_name());
        let routes = match service.clone() {
            Service::Feed(store) => Routes::new(FeedServer::new(Feed { store })),
            Service::Profile(store, client) => {
                let without_feeds = LogThrottle::default();
                Routes::new(ProfileServer::new(Profile { store, client, without_feeds }))
            }
            Service::Topic(store) => Routes::new(TopicServer::new(Topic { store })),
        };
        let routes = reflection::add(routes.add_service(health.server()), service.descriptors())?;
        Ok(Self {
            routes: routes.prepare(),
            health,
            identity,
            instance,
            admission: Admission::grpc(service.grpc_name(), &settings.grpc, unsent, metrics),
            handled: metrics.handled(service.name()),
            tracer,
            default_deadline: settings.client.deadline,
            slow: settings.log.slow,
        })
    }

    /// Sets the health that checks and watches report, for the service and for the whole server (`""`).
    pub fn set_serving(&self, serving: bool) {
        self.health.set_serving(serving);
    }

    /// Ends the health watches, so that a drain does not wait for them.
    pub fn end_watches(&self) {
        self.health.end_watches();
    }

    /// Answers one call. Every failure becomes a gRPC status.
    ///
    /// *Cancellation*: a caller that hangs up drops the future, and the work with it.
    pub async fn call(self, request: Request<Incoming>, peer: IpAddr) -> Response<Body> {
        let begun = Instant::now();
        if request.headers().get(SERVICE).is_some_and(|named| named != self.identity) {
            let error = Error::unavailable("this is another service");
            let mut response = Failure::from(error).into_response();
            response.headers_mut().insert(WRONG_SERVICE, self.identity);
            return response;
        }
        let rpc = Rpc::of_path(request.uri().path());
        let time_limit = grpc_timeout(request.headers());
        let time_limit = time_limit.map_or(self.default_deadline, |limit| limit.min(MAX_DEADLINE));
        let context = Context::from_grpc(request.headers(), begun + time_limit, &self.tracer);
        let attempt = u64::from(context.previous_attempts) + 1;
        let record = CallRecord { handled: self.handled.clone(), rpc };
        // a stream lasts as long as its caller wants: it is never slow
        let slow = rpc.is_unary().then_some(self.slow);
        let mut lifecycle = Lifecycle::begin(record, context, begun, slow);
        // health checks and reflection belong to no user's request
        if rpc.is_ours() {
            let span = lifecycle.begin_span(|| rpc.path().trim_start_matches('/').into(), peer);
            span.tag("instance", &self.instance);
            span.tag("attempt", attempt);
            span.tag("deadline_ms", time_limit);
        }
        let answer = lifecycle.run(self.answer(rpc, request, lifecycle.context())).await;
        let answer = answer.unwrap_or_else(|panicked| Err(Error::from(panicked).into()));
        let (mut response, overloaded) = match answer {
            Ok(response) => (response, false),
            Err(failure) => {
                let overloaded = failure.is_overload();
                (failure.into_response(), overloaded)
            }
        };
        response.headers_mut().insert(INSTANCE, self.instance);
        let code = status_of(&response);
        lifecycle.tag("grpc.status_code", code_name(code));
        lifecycle.finish(code, overloaded);
        response
    }

    /// Answers a call if it is accepted. Its deadline bounds the work, except on streams.
    async fn answer(
        &self,
        rpc: Rpc,
        request: Request<Incoming>,
        context: &Context,
    ) -> Result<Response<Body>, Failure> {
        if !rpc.is_unary() {
            let permit = self.admission.acquire_stream()?;
            let response = self.handle(request.map(Body::new), context).await;
            return Ok(response.map(|body| {
                Body::new(body.map_frame(move |frame| {
                    let _held = &permit;
                    frame
                }))
            }));
        }
        if context.remaining().is_zero() {
            return Err(self.admission.deadline_passed().into());
        }
        let answer = async {
            if !rpc.is_ours() {
                // a service that refuses calls for overload still tells its health
                return Ok(self.handle(request.map(Body::new), context).await);
            }
            let (head, body) = request.into_parts();
            let (message, _permit) = receive(&self.admission, &head, body).await?;
            if context.remaining().is_zero() {
                return Err(self.admission.deadline_passed().into());
            }
            let request = Request::from_parts(head, Body::new(Full::new(message)));
            Ok(self.handle(request, context).await)
        };
        let late = |_| Err(Error::new(Code::Timeout, "the deadline has passed").into());
        tokio::time::timeout_at(context.deadline, answer).await.unwrap_or_else(late)
    }

    async fn handle(&self, mut request: Request<Body>, context: &Context) -> Response<Body> {
        request.extensions_mut().insert(context.clone());
        let answer: Result<_, Infallible> = self.routes.clone().oneshot(request).await;
        match answer {
            Ok(response) => response,
        }
    }
}

/// Returns the status of a response. Our handlers put a failure into the head; a status in the trailers is OK.
fn status_of(response: &Response<Body>) -> tonic::Code {
    Status::from_header_map(response.headers()).map_or(tonic::Code::Ok, |status| status.code())
}

/// What is recorded of a call over gRPC.
struct CallRecord {
    handled: Arc<RpcDurations>,
    rpc: Rpc,
}

impl Record for CallRecord {
    type Status = tonic::Code;

    fn failure(code: tonic::Code) -> Option<&'static str> {
        use tonic::Code::{DeadlineExceeded, Internal, Unavailable, Unknown};
        matches!(code, Internal | Unknown | Unavailable | DeadlineExceeded).then(|| code_name(code))
    }

    fn observe(&self, code: tonic::Code, took: Duration) {
        self.handled.observe(self.rpc, code, took);
    }

    fn observe_hang_up(&self, took: Duration) {
        self.handled.observe(self.rpc, tonic::Code::Cancelled, took);
    }

    fn log(&self, outcome: Outcome, code: tonic::Code, took: Duration, context: &Context) {
        let (rpc, code, ms) = (self.rpc.path(), code_name(code), took.as_millis());
        let (request_id, trace_id) = context.ids();
        match outcome {
            Outcome::Failed => {
                tracing::info!(rpc, code, duration_ms = ms, request_id, %trace_id, "call failed");
            }
            Outcome::Slow => {
                tracing::info!(rpc, code, duration_ms = ms, request_id, %trace_id, "slow call");
            }
            Outcome::Usual => {
                tracing::debug!(rpc, code, duration_ms = ms, request_id, %trace_id, "call");
            }
        }
    }

    fn log_panic(&self, context: &Context) {
        let (request_id, trace_id) = context.ids();
        tracing::error!(rpc = self.rpc.path(), request_id, %trace_id, "handler panicked");
    }
}
