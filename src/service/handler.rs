//! The server side of a service: its rpcs, health and reflection. Accepts or refuses each call, gives it its
//! context and deadline, and answers it by the rpc's implementation.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt as _, Full};
use tokio::time::Instant;
use tonic::Status;
use tonic::body::Body;
use tonic::service::Routes;
use tower::ServiceExt as _;

use super::failure::Failure;
use super::feed::Feed;
use super::form;
use super::health::Health;
use super::kind::Service;
use super::profile::Profile;
use super::receive::{receive, receive_health_request};
use super::reflection;
use super::topic::Topic;
use crate::api::error::{Code, Error, code_name};
use crate::api::headers::{GRPC_TIMEOUT, INSTANCE, SERVICE, SUBJECT, WRONG_SERVICE};
use crate::api::rpc::Rpc;
use crate::config::Settings;
use crate::context::{Context, MAX_DEADLINE, grpc_timeout};
use crate::server::admission::Admission;
use crate::server::lifecycle::{Lifecycle, Outcome, Panicked, Record, guard};
use crate::server::metrics::Metrics;
use crate::server::pause::{Late, Pauses};
use crate::server::{Peer, RequestBody, UnsentLimit};
use crate::telemetry::log::LogThrottle;
use crate::telemetry::metrics::RpcDurations;
use crate::telemetry::trace::Tracer;

/// Answers the calls of one listener on one thread. Cheap to clone.
#[derive(Clone)]
pub struct Handler {
    routes: Routes,
    health: Health,
    /// `<key prefix><service>`: calls that name another service are refused.
    identity: HeaderValue,
    /// The id of this instance, which every answer carries.
    instance: HeaderValue,
    admission: Arc<Admission>,
    pauses: Arc<Pauses>,
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
        let health = Health::new(service.grpc_name());
        Ok(Self {
            routes: routes(service, &health)?,
            health,
            identity,
            instance,
            admission: Admission::grpc(service.grpc_name(), &settings.grpc, unsent, metrics),
            pauses: Pauses::watch(),
            handled: metrics.handled(service.name()),
            tracer,
            default_deadline: settings.client.deadline,
            slow: settings.log.slow,
        })
    }

    /// Returns the same for another thread, which has `service`; `self` is that of the thread that accepts connections.
    /// Must be called inside the runtime of that thread. Health and limits hold for all threads together.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn on_thread(&self, service: &Service, metrics: &Metrics) -> anyhow::Result<Self> {
        Ok(Self {
            routes: routes(service, &self.health)?,
            // a copy: every answer clones it, and the count of clones is not to be shared by threads
            instance: HeaderValue::from_bytes(self.instance.as_bytes())?,
            pauses: self.pauses.watch_another(),
            handled: metrics.handled(service.name()),
            ..self.clone()
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
    pub async fn call(self: Arc<Self>, request: Request<RequestBody>, peer: IpAddr) -> Response<Body> {
        let begun = Instant::now();
        let rpc = Rpc::of_path(request.uri().path());
        let record = CallRecord { handled: self.handled.clone(), rpc };
        let answered =
            guard(record, tonic::Code::Internal, begun, self.serve(rpc, request, peer, begun)).await;
        answered.unwrap_or_else(|_| Failure::from(Error::from(Panicked)).into_response())
    }

    async fn serve(
        &self,
        rpc: Rpc,
        mut request: Request<RequestBody>,
        peer: IpAddr,
        begun: Instant,
    ) -> Response<Body> {
        if let Err(status) = form::check(&request) {
            return form::refusal(status);
        }
        if request.headers().get(SERVICE).is_some_and(|named| named != self.identity) {
            let error = Error::unavailable("this is another service");
            let mut response = Failure::from(error).into_response();
            response.headers_mut().insert(WRONG_SERVICE, self.identity.clone());
            return response;
        }
        let proven = request.extensions().get::<Peer>().is_some_and(|peer| peer.caller().is_some());
        keep_proven_subject(request.headers_mut(), proven);
        let time_limit = grpc_timeout(request.headers());
        let time_limit = time_limit.map_or(self.default_deadline, |limit| limit.min(MAX_DEADLINE));
        // a write that its caller has given up must not come after what the caller has written since
        let late = if rpc.is_write() { self.pauses.late(request.body().input().opened()) } else { None };
        let time_limit = time_limit.saturating_sub(late.map_or(Duration::ZERO, |late| late.waited));
        let context = Context::from_grpc(request.headers(), begun + time_limit, &self.tracer)
            .with_limit(time_limit, self.default_deadline)
            .with_subject(request.headers());
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
        let answer = lifecycle.run(self.answer(rpc, request, late, lifecycle.context())).await;
        let answer = answer.unwrap_or_else(|panicked| Err(Error::from(panicked).into()));
        let (mut response, overloaded) = match answer {
            Ok(response) => (response, false),
            Err(failure) => {
                let overloaded = failure.is_overload();
                (failure.into_response(), overloaded)
            }
        };
        response.headers_mut().insert(INSTANCE, self.instance.clone());
        let code = status_of(&response);
        lifecycle.tag("grpc.status_code", code_name(code));
        lifecycle.finish(code, overloaded);
        response
    }

    /// Answers a call if it is accepted. Its deadline bounds the work, except on streams.
    async fn answer(
        &self,
        rpc: Rpc,
        request: Request<RequestBody>,
        late: Option<Late>,
        context: &Context,
    ) -> Result<Response<Body>, Failure> {
        if !rpc.is_unary() {
            let permit = self.admission.acquire_stream()?;
            let response = self.answer_other(rpc, request, context).await?;
            return Ok(response.map(|body| {
                Body::new(body.map_frame(move |frame| {
                    let _held = &permit;
                    frame
                }))
            }));
        }
        if request.headers().contains_key(GRPC_TIMEOUT) && grpc_timeout(request.headers()).is_none() {
            // the caller's deadline would be replaced by a longer one
            return Err(Error::bad("grpc-timeout", "must be one number of up to 8 digits and a unit").into());
        }
        if context.remaining().is_zero() {
            let refusal = self.admission.deadline_passed();
            return Err(late.map_or(refusal.into(), |late| Failure::Late { retry_after: late.retry_after }));
        }
        let answer = async {
            if !rpc.is_ours() {
                return self.answer_other(rpc, request, context).await;
            }
            let (head, body) = request.into_parts();
            let (message, _permit) = receive(&self.admission, &head, body).await?;
            if rpc.is_write() {
                Peer::read_pending(head.extensions.get()).await;
            }
            if context.remaining().is_zero() {
                return Err(self.admission.deadline_passed().into());
            }
            let request = Request::from_parts(head, Body::new(Full::new(message)));
            Ok(self.handle(request, context).await)
        };
        let late = |_| Err(Error::new(Code::Timeout, "the deadline has passed").into());
        tokio::time::timeout_at(context.deadline, std::pin::pin!(answer)).await.unwrap_or_else(late)
    }

    /// Answers a call that is not one of our services': a service that refuses calls for overload still tells its health.
    async fn answer_other(
        &self,
        rpc: Rpc,
        request: Request<RequestBody>,
        context: &Context,
    ) -> Result<Response<Body>, Failure> {
        if !matches!(rpc, Rpc::HealthCheck | Rpc::HealthWatch) {
            return Ok(self.handle(request.map(Body::new), context).await);
        }
        let (head, body) = request.into_parts();
        let message = receive_health_request(body).await?;
        Ok(self.handle(Request::from_parts(head, Body::new(Full::new(message))), context).await)
    }

    async fn handle(&self, mut request: Request<Body>, context: &Context) -> Response<Body> {
        request.extensions_mut().insert(context.clone());
        let answer: Result<_, Infallible> = self.routes.clone().oneshot(request).await;
        match answer {
            Ok(response) => response,
        }
    }
}

/// Returns the rpcs of a service, of its health and of reflection.
fn routes(service: &Service, health: &Health) -> anyhow::Result<Routes> {
    use crate::api::proto::topic::topic_server::TopicServer;
    use crate::api::proto::{feed::feed_server::FeedServer, profile::profile_server::ProfileServer};
    let routes = match service.clone() {
        Service::Feed(store) => Routes::new(FeedServer::new(Feed { store })),
        Service::Profile(store, client) => {
            let without_feeds = LogThrottle::default();
            Routes::new(ProfileServer::new(Profile { store, client, without_feeds }))
        }
        Service::Topic(store) => Routes::new(TopicServer::new(Topic { store })),
    };
    Ok(reflection::add(routes.add_service(health.server()), service.descriptors())?.prepare())
}

/// Removes who asked, unless it is the word of a caller that may call this service and has proved who it is: without
/// certificates anybody can write the header.
fn keep_proven_subject(headers: &mut HeaderMap, proven: bool) {
    if !proven {
        headers.remove(SUBJECT);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::measure_future;

    /// The future of a call is allocated for each call, and copied.
    #[test]
    fn the_future_of_a_call_is_small() {
        let size = measure_future(Handler::call);
        assert!(size <= 5 * 1024, "{size} bytes");
    }

    #[test]
    fn who_asked_counts_only_from_a_caller_with_a_certificate() {
        for (proven, left) in [(true, 1), (false, 0)] {
            let mut headers = HeaderMap::from_iter([(SUBJECT, HeaderValue::from_static("ada"))]);
            keep_proven_subject(&mut headers, proven);
            assert_eq!(headers.len(), left);
        }
    }
}
