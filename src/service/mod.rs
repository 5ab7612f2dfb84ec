//! The gRPC side of a service: its rpcs, health and reflection behind one function that gives each call
//! its context, its deadline, its metrics, and an answer even if the handler panics.

mod feed;
mod profile;
mod topic;

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use http::{HeaderValue, Request, Response};
use hyper::body::Incoming;
use tokio::time::Instant;
use tonic::Status;
use tonic::body::Body;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use tower::ServiceExt as _;

use crate::client::Client;
use crate::config::StoreUrl;
use crate::context::{Context, INSTANCE, SERVICE, WRONG_SERVICE, grpc_timeout};
use crate::error::{Code, Error};
use crate::metrics::Metrics;
use crate::rpc::{self, Rpc};
use crate::store::{self, StoreError};

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
    pub fn feed(url: &StoreUrl) -> Result<Self, StoreError> {
        Ok(Self::Feed(store::feed(url)?))
    }

    /// Opens the profile service's store. `client` must follow `feed`.
    ///
    /// # Errors
    /// [`StoreError::Open`].
    pub fn profile(url: &StoreUrl, client: Client) -> Result<Self, StoreError> {
        Ok(Self::Profile(store::profile(url)?, client))
    }

    /// Opens the topic service's store.
    ///
    /// # Errors
    /// [`StoreError::Open`].
    pub fn topic(url: &StoreUrl) -> Result<Self, StoreError> {
        Ok(Self::Topic(store::topic(url)?))
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
    metrics: Metrics,
    default_deadline: Duration,
}

impl Handler {
    /// Builds the routes of a service; its health is NOT_SERVING until [`Self::set_serving`].
    ///
    /// # Errors
    /// When the descriptors cannot be read.
    pub async fn new(
        service: &Service,
        identity: HeaderValue,
        instance: HeaderValue,
        metrics: &Metrics,
        default_deadline: Duration,
    ) -> anyhow::Result<Self> {
        use crate::proto::{DESCRIPTORS, feed::feed_server::FeedServer};
        use crate::proto::{profile::profile_server::ProfileServer, topic::topic_server::TopicServer};
        let (reporter, health) = tonic_health::server::health_reporter();
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .build_v1()?;
        let routes = match service.clone() {
            Service::Feed(store) => Routes::new(FeedServer::new(feed::Feed { store })),
            Service::Profile(store, client) => {
                Routes::new(ProfileServer::new(profile::Profile { store, client }))
            }
            Service::Topic(store) => Routes::new(TopicServer::new(topic::Topic { store })),
        };
        let handler = Self {
            routes: routes.add_service(health).add_service(reflection).prepare(),
            health: reporter,
            name: service.grpc_name(),
            identity,
            instance,
            metrics: metrics.clone(),
            default_deadline,
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
    pub async fn call(self, mut request: Request<Incoming>) -> Response<Body> {
        let begun = Instant::now();
        if request.headers().get(SERVICE).is_some_and(|meant| meant != self.identity) {
            let mut refusal = refusal(Error::unavailable("this is another service"));
            refusal.headers_mut().insert(WRONG_SERVICE, self.identity);
            return refusal;
        }
        let rpc = rpc::by_path(request.uri().path());
        let limit = grpc_timeout(request.headers());
        let limit = limit.map_or(self.default_deadline, |limit| limit.min(MAX_DEADLINE));
        let context = Context::from_grpc(request.headers(), begun + limit);
        request.extensions_mut().insert(context.clone());

        let answer = AssertUnwindSafe(self.routes.oneshot(request)).catch_unwind();
        let answer = async {
            if rpc.unary {
                tokio::time::timeout_at(context.deadline, answer).await.ok()
            } else {
                Some(answer.await) // a stream lives as long as its caller
            }
        };
        let result: Result<Response<Body>, Infallible> = match answer.await {
            Some(Ok(response)) => response,
            Some(Err(_)) => {
                tracing::error!(rpc = rpc.path, "handler panicked");
                Ok(refusal(Error::new(Code::Internal, "the handler failed")))
            }
            None => Ok(refusal(Error::new(Code::Timeout, "the deadline has passed"))),
        };
        let Ok(mut response) = result;
        response.headers_mut().insert(INSTANCE, self.instance);
        let code = status_of(&response);
        self.metrics.grpc(rpc.grpc_service, rpc.method, code, begun.elapsed());
        log(rpc, &context, code, begun.elapsed());
        response
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

fn log(rpc: &Rpc, context: &Context, code: tonic::Code, took: Duration) {
    let code = crate::metrics::code_name(code);
    let (request_id, trace_id) = (&context.request_id, &context.trace_id);
    let ms = took.as_millis();
    if matches!(code, "INTERNAL" | "UNKNOWN" | "UNAVAILABLE" | "DEADLINE_EXCEEDED") {
        tracing::info!(rpc = rpc.path, code, duration_ms = ms, ?request_id, ?trace_id, "call failed");
    } else {
        tracing::debug!(rpc = rpc.path, code, duration_ms = ms, ?request_id, ?trace_id, "call");
    }
}

/// Returns the context that [`Handler::call`] put into a request.
fn context<T>(request: &tonic::Request<T>) -> Context {
    let given = request.extensions().get::<Context>();
    given.cloned().unwrap_or_else(|| Context::new(Instant::now() + MAX_DEADLINE))
}
