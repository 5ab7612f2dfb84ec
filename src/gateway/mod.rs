//! The HTTP edge: accepts or refuses each request, gives it its context, and answers it by the handler of its
//! route, which calls the services.
//!
//! [`ROUTES`] is the table of routes. Connections, overload and what is recorded of a request are in
//! [`crate::server`].

mod answers;
mod dispatch;
mod feed;
mod json;
mod problem;
mod profile;
mod reply;
mod request;
mod routes;
mod topic;
mod unsupported;

#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Method, StatusCode};
use http_body::Body as _;
use tokio::time::Instant;
use tower::Service as _;
use warp::filters::BoxedFilter;
use warp::reply::Response;

pub use self::routes::{ROUTES, Route};

use self::problem::Problem;
use self::request::Accepted;
use crate::api::error::Error;
use crate::api::headers::{DEGRADED, REQUEST_TIMEOUT};
use crate::client::Client;
use crate::config::{Role, Settings};
use crate::context::Context;
use crate::limit::Permit;
use crate::server::admission::{Admission, Refusal};
use crate::server::lifecycle::{Lifecycle, Outcome, Panicked, Record, guard};
use crate::server::metrics::{Metrics, Requests, Target};
use crate::server::pause::Pauses;
use crate::server::strict;
use crate::server::{RequestBody, UnsentLimit};
use crate::telemetry::trace::Tracer;

/// Longest path and query, bytes. Longer ones are answered with 414.
const MAX_URI: usize = 8 * 1024;

/// Answers the requests of the gateway. Cheap to clone.
#[derive(Clone)]
pub struct Gateway {
    routes: BoxedFilter<(Response,)>,
    admission: Arc<Admission>,
    pauses: Arc<Pauses>,
    requests: Requests,
    tracer: Tracer,
    deadline: Duration,
    slow: Duration,
}

impl Gateway {
    /// Returns a gateway that calls services with `client`, which must follow feed, profile and topic. While
    /// `unsent`, the limit of its listeners, is full, requests are refused. Must be called inside a tokio runtime.
    #[must_use]
    pub fn new(
        client: Client,
        metrics: &Metrics,
        tracer: Tracer,
        settings: &Settings,
        unsent: Arc<UnsentLimit>,
    ) -> Self {
        let routes = ROUTES.each_ref().map(|route| (route.path, route.method.clone()));
        Self {
            routes: dispatch::filter(client, settings.http.body_timeout),
            admission: Admission::http(Role::Apigateway.name(), &settings.http, unsent, metrics),
            pauses: Pauses::watch(),
            requests: metrics.requests(&routes),
            tracer,
            deadline: settings.client.deadline,
            slow: settings.log.slow,
        }
    }

    /// Answers one request of the client at `peer`.
    ///
    /// *Cancellation*: a caller that hangs up drops the future, and the calls to services with it; the server decides what
    /// a hang-up is.
    pub async fn call(self, request: http::Request<RequestBody>, peer: IpAddr) -> Response {
        let begun = Instant::now();
        let target = self.requests.target(request.method(), request.uri().path());
        let record = HttpRecord { requests: self.requests.clone(), target };
        let failure = StatusCode::INTERNAL_SERVER_ERROR;
        let answered = guard(record, failure, begun, self.answer(request, peer, begun, target)).await;
        answered.unwrap_or_else(|context| {
            let problem = Problem::from(Error::from(Panicked));
            let mut response = Response::default();
            *response.status_mut() = failure;
            problem.write(&mut response, &context);
            reply::identify(&mut response, &context);
            response
        })
    }

    async fn answer(
        &self,
        request: http::Request<RequestBody>,
        peer: IpAddr,
        begun: Instant,
        target: Target,
    ) -> Response {
        let Target { route, method, .. } = target;
        let requested = requested_time_limit(request.headers());
        let time_limit = requested.clone().ok().flatten().unwrap_or(self.deadline).min(self.deadline);
        let context = Context::from_headers(request.headers(), begun + time_limit, &self.tracer)
            .with_limit(time_limit, self.deadline);
        let record = HttpRecord { requests: self.requests.clone(), target };
        let mut lifecycle = Lifecycle::begin(record, context, begun, Some(self.slow));
        let mut response = match self.admit(&request, peer) {
            // no span: a flood of refused requests must not become a flood of spans
            Err(refusal) => {
                request::discard_body(request).await;
                Problem::from(refusal).into_response()
            }
            Ok(permit) => {
                let span = lifecycle.begin_span(|| format!("{method} {route}").into(), peer);
                span.tag("http.method", method);
                span.tag("http.route", route);
                span.tag("deadline_ms", time_limit);
                match examine(&request).and(requested.map_err(Problem::from)) {
                    Ok(_) if strict::asks_about_the_server(&request) => reply::methods(routes::METHODS),
                    Ok(_) => self.dispatch(request, time_limit, permit, &lifecycle).await,
                    Err(problem) => {
                        drop(permit);
                        request::discard_body(request).await;
                        problem.into_response()
                    }
                }
            }
        };
        let problem = response.extensions_mut().remove::<Problem>();
        let overloaded = problem.as_ref().is_some_and(Problem::is_overload);
        if let Some(problem) = problem {
            problem.write(&mut response, lifecycle.context());
        }
        reply::identify(&mut response, lifecycle.context());
        lifecycle.tag("http.status_code", u64::from(response.status().as_u16()));
        if let Some(degraded) = response.headers().get(DEGRADED) {
            lifecycle.tag("degraded", degraded);
        }
        lifecycle.finish(response.status(), overloaded);
        response
    }

    /// Accepts a request or refuses it. Returns its permit; none for a request that gets it once its body is
    /// complete.
    fn admit(&self, request: &http::Request<RequestBody>, peer: IpAddr) -> Result<Option<Permit>, Refusal> {
        self.admission.check_rate(peer, request.headers())?;
        self.admission.check_memory(None)?;
        // only the body of a PUT is read
        if request.method() == Method::PUT && !request.body().is_end_stream() {
            self.admission.check_in_flight()?;
            return Ok(None);
        }
        self.admission.acquire().map(Some)
    }

    /// Answers an accepted request, and gives its permit back.
    async fn dispatch(
        &self,
        mut request: http::Request<RequestBody>,
        time_limit: Duration,
        permit: Option<Permit>,
        lifecycle: &Lifecycle<HttpRecord>,
    ) -> Response {
        let accepted = Accepted {
            context: lifecycle.context().clone(),
            time_limit,
            length: request.body().size_hint().exact(),
            admission: self.admission.clone(),
            pauses: self.pauses.clone(),
            caller: request.body().input(),
            needs_permit: permit.is_none(),
        };
        request.extensions_mut().insert(accepted);
        // warp calls the filter before it returns a future: both are within the guard against panics
        let answer = async { warp::service(self.routes.clone()).call(request).await };
        match lifecycle.run(answer).await {
            Ok(Ok(response)) => response,
            Err(panicked) => Problem::from(Error::from(panicked)).into_response(),
        }
    }
}

/// Checks the head of a request: its form, and that it asks for nothing that its route does not do. Whether there is such
/// a route is not decided here.
fn examine(request: &http::Request<RequestBody>) -> Result<(), Problem> {
    if request.uri().path_and_query().is_some_and(|uri| uri.as_str().len() > MAX_URI) {
        return Err(Problem::uri_too_long(MAX_URI));
    }
    strict::check(request)?;
    match Route::find(request.uri().path()) {
        Some(route) if route.takes(request.method()) => unsupported::check(request),
        None if strict::asks_about_the_server(request) => unsupported::check(request),
        _ => Ok(()),
    }
}

/// Returns the time limit that the caller set, if it set one.
fn requested_time_limit(headers: &HeaderMap) -> Result<Option<Duration>, Error> {
    let mut given = headers.get_all(REQUEST_TIMEOUT).iter();
    let Some(value) = given.next() else {
        return Ok(None);
    };
    let millis = value.to_str().ok().and_then(|text| text.parse::<u64>().ok());
    match millis {
        Some(millis @ 1..=600_000) if given.next().is_none() => Ok(Some(Duration::from_millis(millis))),
        _ => Err(Error::bad(REQUEST_TIMEOUT.as_str().to_owned(), "must be one integer from 1 to 600000")),
    }
}

/// What is recorded of a request over HTTP.
struct HttpRecord {
    requests: Requests,
    target: Target,
}

impl Record for HttpRecord {
    type Status = StatusCode;

    fn failure(status: StatusCode) -> Option<&'static str> {
        status.is_server_error().then(|| status.canonical_reason().unwrap_or("error"))
    }

    fn observe(&self, status: StatusCode, took: Duration) {
        self.requests.observe(self.target, status, took);
    }

    fn observe_hang_up(&self, took: Duration) {
        self.requests.hung_up(self.target, took);
    }

    fn log(&self, outcome: Outcome, status: StatusCode, took: Duration, context: &Context) {
        let Target { route, method, .. } = self.target;
        let (status, ms, (request_id, trace_id)) = (status.as_u16(), took.as_millis(), context.ids());
        match outcome {
            Outcome::Failed | Outcome::Slow => {
                tracing::info!(route, method, status, duration_ms = ms, request_id, %trace_id, "request");
            }
            Outcome::Usual => {
                tracing::debug!(route, method, status, duration_ms = ms, request_id, %trace_id, "request");
            }
        }
    }

    fn log_panic(&self, context: &Context) {
        let (route, (request_id, trace_id)) = (self.target.route, context.ids());
        tracing::error!(route, request_id, %trace_id, "handler panicked");
    }
}
