//! The HTTP edge: every route in one list, and what surrounds each request: whether it is taken on, its
//! context, its limits, its headers, metrics and log line, and an answer even if a handler panics.

mod admit;
mod feed;
mod profile;
mod rate;
mod reply;
mod request;
mod topic;

use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use http::{HeaderMap, Method};
use http_body::Body as _;
use hyper::body::Incoming;
use tokio::time::Instant;
use tower::Service as _;
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::reply::Response;

use crate::api::error::{Code, Error};
use crate::api::headers::{DEGRADED, REQUEST_TIMEOUT};
use crate::client::Client;
use crate::config::Settings;
use crate::context::Context;
use crate::server::metrics::{Metrics, Requests, Target};
use crate::telemetry::trace::Tracer;
use crate::unanswered::Unanswered;
use admit::Admission;
use reply::Problem;
use request::{Limit, Request};

/// Longest path and query, bytes. Longer ones are 414.
const MAX_URI: usize = 8 * 1024;

/// What every handler needs.
#[derive(Clone)]
struct App {
    client: Client,
    body_timeout: Duration,
}

/// What answers the requests of the gateway. Cheap to clone.
#[derive(Clone)]
pub struct Gateway {
    routes: BoxedFilter<(Response,)>,
    admission: Arc<Admission>,
    requests: Requests,
    tracer: Tracer,
    deadline: Duration,
    slow: Duration,
}

/// The routes as metrics name them.
static ROUTES: [(&str, Method); 8] = [
    (feed::CREATE, Method::PUT),
    (feed::GET, Method::GET),
    (feed::DELETE, Method::DELETE),
    (profile::PUT, Method::PUT),
    (profile::GET, Method::GET),
    (topic::PUT, Method::PUT),
    (topic::VIEW, Method::GET),
    (topic::LIST, Method::GET),
];

impl Gateway {
    /// Builds the routes. `client` must follow feed, profile and topic. While `unsent`, the server's, is
    /// full, requests are refused.
    #[must_use]
    pub fn new(
        client: Client,
        metrics: &Metrics,
        tracer: Tracer,
        settings: &Settings,
        unsent: Arc<crate::limit::Limit>,
    ) -> Self {
        let app = Arc::new(App { client, body_timeout: settings.http.body_timeout });
        let routes = route(feed::CREATE, &Method::PUT, &app, feed::create)
            .or(route(feed::GET, &Method::GET, &app, feed::get))
            .unify()
            .or(route(feed::DELETE, &Method::DELETE, &app, feed::delete))
            .unify()
            .or(route(profile::PUT, &Method::PUT, &app, profile::put))
            .unify()
            .or(route(profile::GET, &Method::GET, &app, profile::get))
            .unify()
            .or(route(topic::PUT, &Method::PUT, &app, topic::put))
            .unify()
            .or(route(topic::VIEW, &Method::GET, &app, topic::view))
            .unify()
            .or(route(topic::LIST, &Method::GET, &app, topic::list))
            .unify()
            .or(warp::any().map(|| Problem::unknown_route().into_response()))
            .unify()
            .boxed();
        Self {
            routes,
            admission: Admission::new(&settings.http, unsent, metrics),
            requests: metrics.requests(&ROUTES),
            tracer,
            deadline: settings.client.deadline,
            slow: settings.log.slow,
        }
    }

    /// Answers one request of the client at `peer`.
    pub async fn call(self, mut request: http::Request<Incoming>, peer: IpAddr) -> Response {
        let begun = Instant::now();
        let target = self.requests.target(request.method(), request.uri().path());
        let Target { route, method, .. } = target;
        let limit = time_limit(request.headers());
        let allowed = limit.clone().ok().flatten().unwrap_or(self.deadline).min(self.deadline);
        let mut context = Context::from_headers(request.headers(), begun + allowed, &self.tracer);
        let too_long = request.uri().path_and_query().is_some_and(|uri| uri.as_str().len() > MAX_URI);

        let unanswered = {
            let requests = self.requests.clone();
            Unanswered::new(move || requests.hung_up(target, begun.elapsed()))
        };
        let has_body = !request.body().is_end_stream();
        let admitted = self.admission.admit(peer, request.method(), request.headers(), has_body);
        // what is refused at the door is counted; a flood of it must not become a flood of spans
        let mut span = admitted.is_ok().then(|| {
            let mut span = context.trace.serve(|| format!("{method} {route}").into(), begun, peer);
            span.tag("http.method", method);
            span.tag("http.route", route);
            span.tag("deadline_ms", allowed);
            span
        });
        let mut response = match admitted {
            Err(problem) => {
                request::discard_all(request).await;
                problem.into_response()
            }
            Ok(_) if too_long => Problem::uri_too_long(MAX_URI).into_response(),
            Ok(place) => {
                if let Err(error) = limit {
                    Problem::from(error).into_response()
                } else {
                    request.extensions_mut().insert(context.clone());
                    request.extensions_mut().insert(Limit(allowed));
                    request.extensions_mut().insert(place);
                    self.route(request, route, &context).await
                }
            }
        };
        let overload = response.extensions().get::<Problem>().is_some_and(Problem::is_overload);
        reply::complete(&mut response, &context);
        let (status, took) = (response.status(), begun.elapsed());
        unanswered.answered();
        self.requests.observe(target, status, took);
        let (status, ms) = (status.as_u16(), took.as_millis());
        if let Some(mut span) = span.take() {
            span.tag("http.status_code", u64::from(status));
            if let Some(degraded) = response.headers().get(DEGRADED) {
                span.tag("degraded", degraded);
            }
            if status >= 500 {
                span.fail(response.status().canonical_reason().unwrap_or("error"));
            }
            span.end();
        }
        let (request_id, trace_id) = context.ids();
        // refusals for overload are counted, and told of together
        if (status >= 500 && !overload) || took >= self.slow {
            tracing::info!(route, method, status, duration_ms = ms, request_id, %trace_id, "request");
        } else {
            tracing::debug!(route, method, status, duration_ms = ms, request_id, %trace_id, "request");
        }
        response
    }

    async fn route(
        &self,
        request: http::Request<Incoming>,
        route: &'static str,
        context: &Context,
    ) -> Response {
        let mut filters = warp::service(self.routes.clone());
        match AssertUnwindSafe(filters.call(request)).catch_unwind().await {
            Ok(Ok(response)) => response,
            Err(_) => {
                let (request_id, trace_id) = context.ids();
                tracing::error!(route, request_id, %trace_id, "handler panicked");
                Problem::from(Error::new(Code::Internal, "the handler failed")).into_response()
            }
        }
    }
}

/// One route: an exact path, one method (GET implies HEAD), a handler whose failures are replies.
fn route<H, F>(path: &'static str, method: &Method, app: &Arc<App>, handler: H) -> BoxedFilter<(Response,)>
where
    H: Fn(Arc<App>, Request) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Result<Response, Problem>> + Send + 'static,
{
    let (method, app) = (method.clone(), app.clone());
    warp::path::full()
        .and_then(move |full: warp::path::FullPath| async move {
            if full.as_str() == path { Ok(()) } else { Err(warp::reject::not_found()) }
        })
        .untuple_one()
        .and(request::filter())
        .then(move |request: Request| {
            let (method, app, handler) = (method.clone(), app.clone(), handler.clone());
            async move {
                let head = method == Method::GET && request.method == Method::HEAD;
                if request.method != method && !head {
                    return Problem::method_not_allowed(&method).into_response();
                }
                handler(app, request).await.unwrap_or_else(Problem::into_response)
            }
        })
        .boxed()
}

/// Returns the caller's time limit, if it set one.
fn time_limit(headers: &HeaderMap) -> Result<Option<Duration>, Error> {
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
