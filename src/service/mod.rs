//! The gRPC side of a service: its rpcs, health and reflection behind one function that takes a call on or
//! refuses it, gives it its context, its deadline, its metrics, and an answer even if the handler panics.

mod admit;
mod feed;
mod profile;
mod topic;

use std::convert::Infallible;
use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use http::{HeaderValue, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use tokio::time::Instant;
use tonic::Status;
use tonic::body::Body;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use tower::ServiceExt as _;

use crate::api::error::code_name;
use crate::api::error::{Code, Error};
use crate::api::headers::{INSTANCE, PUSHBACK, SERVICE, WRONG_SERVICE};
use crate::api::rpc::Rpc;
use crate::client::Client;
use crate::config::{Settings, StoreUrl};
use crate::context::{Context, grpc_timeout};
use crate::limit::{Limit, pushback};
use crate::server::metrics::Metrics;
use crate::store::{self, StoreError};
use crate::telemetry::log::LogThrottle;
use crate::telemetry::metrics::RpcDurations;
use crate::telemetry::trace::Tracer;
use crate::unanswered::Unanswered;
use admit::Admission;

/// One of the three services, over its store.
#[derive(Clone)]
pub enum Service {
    /// feed.Feed.
    Feed(Arc<dyn store::FeedStore>),
    /// profile.Profile, which calls feed.
    Profile(Arc<dyn store::ProfileStore>, Client),
    /// topic.Topic.
    Topic(Arc<dyn store::TopicStore>),
}

impl Service {
    /// Opens the feed service's store.
    ///
    /// # Errors
    /// [`StoreError::Open`].
    pub fn feed(url: &StoreUrl, metrics: &store::metrics::Metrics) -> Result<Self, StoreError> {
        Ok(Self::Feed(store::feed(url, metrics)?))
    }

    /// Opens the profile service's store. `client` must follow `feed`.
    ///
    /// # Errors
    /// [`StoreError::Open`].
    pub fn profile(
        url: &StoreUrl,
        metrics: &store::metrics::Metrics,
        client: Client,
    ) -> Result<Self, StoreError> {
        Ok(Self::Profile(store::profile(url, metrics)?, client))
    }

    /// Opens the topic service's store.
    ///
    /// # Errors
    /// [`StoreError::Open`].
    pub fn topic(url: &StoreUrl, metrics: &store::metrics::Metrics) -> Result<Self, StoreError> {
        Ok(Self::Topic(store::topic(url, metrics)?))
    }

    /// Returns the registry's name of the service.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Feed(_) => "feed",
            Self::Profile(..) => "profile",
            Self::Topic(_) => "topic",
        }
    }

    /// Returns the gRPC name of the service, which is also its name in health checks.
    #[must_use]
    pub const fn grpc_name(&self) -> &'static str {
        match self {
            Self::Feed(_) => "feed.Feed",
            Self::Profile(..) => "profile.Profile",
            Self::Topic(_) => "topic.Topic",
        }
    }

    /// Returns the health of the store.
    #[must_use]
    pub fn store(&self) -> &dyn store::Health {
        match self {
            Self::Feed(store) => store.as_ref(),
            Self::Profile(store, _) => store.as_ref(),
            Self::Topic(store) => store.as_ref(),
        }
    }
}

/// What answers the calls of one listener. Cheap to clone.
#[derive(Clone)]
pub struct Handler {
    routes: Routes,
    health: HealthReporter,
    name: &'static str,
    /// `<key prefix><service>`: calls that are meant for another one are refused.
    identity: HeaderValue,
    /// This instance's id, told in every answer.
    instance: HeaderValue,
    admission: Arc<Admission>,
    handled: Arc<RpcDurations>,
    tracer: Tracer,
    default_deadline: Duration,
    slow: Duration,
}

impl Handler {
    /// Builds the routes of a service; its health is NOT_SERVING until [`Self::set_serving`]. While
    /// `unsent`, the server's, is full, calls are refused.
    ///
    /// # Errors
    /// When the descriptors cannot be read.
    pub async fn new(
        service: &Service,
        identity: HeaderValue,
        instance: HeaderValue,
        metrics: &Metrics,
        tracer: Tracer,
        settings: &Settings,
        unsent: Arc<Limit>,
    ) -> anyhow::Result<Self> {
        use crate::api::proto::{DESCRIPTORS, feed::feed_server::FeedServer};
        use crate::api::proto::{profile::profile_server::ProfileServer, topic::topic_server::TopicServer};
        let (reporter, health) = tonic_health::server::health_reporter();
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .build_v1()?;
        let routes = match service.clone() {
            Service::Feed(store) => Routes::new(FeedServer::new(feed::Feed { store })),
            Service::Profile(store, client) => {
                let without_feeds = LogThrottle::default();
                Routes::new(ProfileServer::new(profile::Profile { store, client, without_feeds }))
            }
            Service::Topic(store) => Routes::new(TopicServer::new(topic::Topic { store })),
        };
        let handler = Self {
            routes: routes.add_service(health).add_service(reflection).prepare(),
            health: reporter,
            name: service.grpc_name(),
            identity,
            instance,
            admission: Admission::new(service.grpc_name(), &settings.grpc, unsent, metrics),
            handled: metrics.handled(service.name()),
            tracer,
            default_deadline: settings.client.deadline,
            slow: settings.log.slow,
        };
        handler.set_serving(false).await;
        Ok(handler)
    }

    /// Sets what health checks are told, for the service and for the whole server (`""`).
    pub async fn set_serving(&self, serving: bool) {
        let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
        self.health.set_service_status("", status).await;
        self.health.set_service_status(self.name, status).await;
    }

    /// Ends the streams of those who follow the health: a drain must not wait for them.
    pub async fn end_watches(&mut self) {
        self.health.clear_service_status("").await;
        self.health.clear_service_status(self.name).await;
    }

    /// Answers one call. Every failure becomes a gRPC status.
    ///
    /// *Cancellation*: a caller that hangs up drops the future, and the work with it.
    pub async fn call(self, request: Request<Incoming>, peer: IpAddr) -> Response<Body> {
        let begun = Instant::now();
        if request.headers().get(SERVICE).is_some_and(|meant| meant != self.identity) {
            let mut refusal = refusal(Error::unavailable("this is another service"));
            refusal.headers_mut().insert(WRONG_SERVICE, self.identity);
            return refusal;
        }
        let rpc = Rpc::of_path(request.uri().path());
        let limit = grpc_timeout(request.headers());
        let limit = limit.map_or(self.default_deadline, |limit| limit.min(MAX_DEADLINE));
        let mut context = Context::from_grpc(request.headers(), begun + limit, &self.tracer);
        // health checks and reflection are nobody's request
        let mut span = (rpc.is_ours()).then(|| {
            let mut span = context.trace.serve(|| rpc.path().trim_start_matches('/').into(), begun, peer);
            span.tag("instance", &self.instance);
            span.tag("attempt", u64::from(context.previous_attempts) + 1);
            span.tag("deadline_ms", limit);
            span
        });

        let unanswered = {
            let handled = self.handled.clone();
            Unanswered::new(move || handled.observe(rpc, tonic::Code::Cancelled, begun.elapsed()))
        };
        let answer = AssertUnwindSafe(self.answer(rpc, request, &context)).catch_unwind();
        let (mut response, overload) = match answer.await {
            Ok(Ok(response)) => (response, false),
            Ok(Err(error)) => {
                let overload = admit::is_overload(&error);
                let mut refusal = refusal(error);
                if overload {
                    refusal.headers_mut().insert(PUSHBACK, pushback());
                }
                (refusal, overload)
            }
            Err(_) => {
                let (request_id, trace_id) = context.ids();
                tracing::error!(rpc = rpc.path(), request_id, %trace_id, "handler panicked");
                (refusal(Error::new(Code::Internal, "the handler failed")), false)
            }
        };
        response.headers_mut().insert(INSTANCE, self.instance);
        let code = status_of(&response);
        unanswered.answered();
        self.handled.observe(rpc, code, begun.elapsed());
        if let Some(mut span) = span.take() {
            span.tag("grpc.status_code", code_name(code));
            if is_failure(code) {
                span.fail(code_name(code));
            }
            span.end();
        }
        log(rpc, &context, code, begun.elapsed(), overload, self.slow);
        response
    }

    /// Answers a call, or says why it was not begun or not ended.
    async fn answer(
        &self,
        rpc: Rpc,
        request: Request<Incoming>,
        context: &Context,
    ) -> Result<Response<Body>, Error> {
        if !rpc.is_unary() {
            // a stream lives as long as its caller
            let permit = self.admission.stream()?;
            let response = self.handle(request.map(Body::new), context).await;
            return Ok(response.map(|body| {
                Body::new(body.map_frame(move |frame| {
                    let _held = &permit;
                    frame
                }))
            }));
        }
        let late = || Error::new(Code::Timeout, "the deadline has passed");
        if context.remaining().is_zero() {
            self.admission.late();
            return Err(late()); // nobody waits for it
        }
        let answer = async {
            if !rpc.is_ours() {
                return Ok(self.handle(request.map(Body::new), context).await);
            }
            let (head, body) = request.into_parts();
            let (message, _place) = self.admission.receive(body).await?;
            if context.remaining().is_zero() {
                self.admission.late();
                return Err(late());
            }
            let request = Request::from_parts(head, Body::new(Full::new(message)));
            Ok(self.handle(request, context).await)
        };
        tokio::time::timeout_at(context.deadline, answer).await.unwrap_or_else(|_| Err(late()))
    }

    async fn handle(&self, mut request: Request<Body>, context: &Context) -> Response<Body> {
        request.extensions_mut().insert(context.clone());
        let answer: Result<_, Infallible> = self.routes.clone().oneshot(request).await;
        match answer {
            Ok(response) => response,
        }
    }
}

/// Longest deadline that a caller can ask for.
const MAX_DEADLINE: Duration = Duration::from_mins(10);

fn refusal(error: Error) -> Response<Body> {
    Status::from(error).into_http()
}

/// Returns the status if the head tells it; a body with its status in the trailers is a success of ours.
fn status_of(response: &Response<Body>) -> tonic::Code {
    Status::from_header_map(response.headers()).map_or(tonic::Code::Ok, |status| status.code())
}

/// Refusals for overload are counted, and told of together.
fn log(rpc: Rpc, context: &Context, code: tonic::Code, took: Duration, overload: bool, slow: Duration) {
    let (name, (request_id, trace_id)) = (code_name(code), context.ids());
    let ms = took.as_millis();
    // a stream may take as long as it likes
    let slow = rpc.is_unary() && took >= slow;
    if is_failure(code) && !overload {
        tracing::info!(rpc = rpc.path(), code = name, duration_ms = ms, request_id, %trace_id, "call failed");
    } else if slow {
        tracing::info!(rpc = rpc.path(), code = name, duration_ms = ms, request_id, %trace_id, "slow call");
    } else {
        tracing::debug!(rpc = rpc.path(), code = name, duration_ms = ms, request_id, %trace_id, "call");
    }
}

/// Returns true for the codes that say that the service, not the caller, did not do its part.
const fn is_failure(code: tonic::Code) -> bool {
    matches!(
        code,
        tonic::Code::Internal
            | tonic::Code::Unknown
            | tonic::Code::Unavailable
            | tonic::Code::DeadlineExceeded
    )
}

/// Returns the context that [`Handler::call`] put into a request.
fn context<T>(request: &tonic::Request<T>) -> Context {
    let given = request.extensions().get::<Context>();
    given.cloned().unwrap_or_else(|| Context::new(Instant::now() + MAX_DEADLINE))
}
