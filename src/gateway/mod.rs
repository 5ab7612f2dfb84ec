//! The HTTP edge: accepts or refuses each request, gives it its context, and answers it by the handler of its
//! route, which calls the services.
//!
//! [`ROUTES`] is the table of routes. Connections, overload and what is recorded of a request are in
//! [`crate::server`].

// public for the benches
#[doc(hidden)]
pub mod answers;
mod auth;
mod cors;
mod dispatch;
mod feed;
mod headers;
mod json;
mod kind;
mod metrics;
pub mod openapi;
mod pages;
mod parameter;
mod problem;
mod profile;
mod record;
mod reply;
// public for the fuzz targets
#[doc(hidden)]
pub mod request;
mod routes;
mod topic;
mod unsupported;

#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::uri::Scheme;
use http::{HeaderValue, Method, StatusCode, header};
use http_body::Body as _;
use tokio::time::Instant;
use tower::Service as _;
use warp::filters::BoxedFilter;
use warp::reply::Response;

pub use self::auth::Auth;
pub use self::kind::KINDS;
pub use self::metrics::Metrics;
pub use self::pages::{PAGES, Page};
#[doc(hidden)]
pub use self::problem::Problem;
pub use self::routes::{ROUTES, Route};

use self::auth::Caller;
use self::cors::Cors;
use self::pages::Described;
use self::record::HttpRecord;
use self::request::Accepted;
use crate::api::error::Error;
use crate::api::headers::DEGRADED;
use crate::client::Client;
use crate::config::{HostName, Role, Settings, Switch};
use crate::context::Context;
use crate::limit::Permit;
use crate::server::admission::{Admission, Refusal, head_bytes};
use crate::server::lifecycle::{Lifecycle, Panicked, guard};
use crate::server::metrics::{self as server_metrics, Requests, Target};
use crate::server::pause::Pauses;
use crate::server::strict;
use crate::server::{MAX_HEADERS, Peer, RequestBody, TooManyFields, UnsentLimit};
use crate::telemetry::trace::Tracer;

/// Longest path and query, bytes. Longer ones are answered with 414.
const MAX_URI: usize = 8 * 1024;

/// Answers the requests of the gateway on one thread.
#[derive(Clone)]
pub struct Gateway {
    routes: BoxedFilter<(Response,)>,
    admission: Arc<Admission>,
    pauses: Arc<Pauses>,
    requests: Requests,
    /// Who may call what, if callers need tokens.
    auth: Option<Arc<Auth>>,
    /// The description of the API that says so.
    description: Option<Arc<Described>>,
    /// The rules for pages of other origins, if there are any.
    cors: Option<Arc<Cors>>,
    /// What callers speak.
    scheme: Scheme,
    /// The names under which it is asked; any, if there are none.
    hosts: Arc<[HostName]>,
    /// What browsers are told about HTTPS, if anything.
    hsts: Option<HeaderValue>,
    /// True if the files in [`PAGES`] are served.
    docs: bool,
    tracer: Tracer,
    deadline: Duration,
    body_timeout: Duration,
    slow: Duration,
}

impl Gateway {
    /// Returns a gateway that calls services with `client`, which must follow feed, profile and topic; callers have the
    /// access that `auth` gives them, or any if there is none. While `unsent`, the limit of its listeners, is full,
    /// requests are refused. Must be called inside a tokio runtime.
    #[must_use]
    pub fn new(
        client: Client,
        auth: Option<Arc<Auth>>,
        metrics: &server_metrics::Metrics,
        tracer: Tracer,
        settings: &Settings,
        unsent: Arc<UnsentLimit>,
    ) -> Self {
        let docs = settings.http.docs == Switch::On;
        Self {
            routes: dispatch::filter(client, settings.http.body_timeout),
            body_timeout: settings.http.body_timeout,
            admission: Admission::http(Role::Apigateway.name(), &settings.http, unsent, metrics),
            pauses: Pauses::watch(),
            requests: metrics.requests(&counted(docs)),
            cors: Cors::new(&settings.http.cors_origins, auth.is_some()).map(Arc::new),
            description: auth.as_deref().map(|auth| Arc::new(Described::new(openapi::with_access(auth)))),
            auth,
            scheme: if settings.http.tls_cert_file.is_some() { Scheme::HTTPS } else { Scheme::HTTP },
            hosts: settings.http.hosts.clone().into(),
            hsts: reply::hsts(settings.http.hsts),
            docs,
            tracer,
            deadline: settings.client.deadline,
            slow: settings.log.slow,
        }
    }

    /// Returns the same for another thread, which calls services with `client`; `self` is that of the thread that accepts
    /// connections. Must be called inside the runtime of that thread. The limits hold for all threads together.
    #[must_use]
    pub fn on_thread(&self, client: Client, metrics: &server_metrics::Metrics) -> Self {
        Self {
            routes: dispatch::filter(client, self.body_timeout),
            pauses: self.pauses.watch_another(),
            requests: metrics.requests(&counted(self.docs)),
            ..self.clone()
        }
    }

    /// Answers one request of the client at `peer`.
    ///
    /// *Cancellation*: a caller that hangs up drops the future, and the calls to services with it; the server decides what
    /// a hang-up is.
    pub async fn call(self: Arc<Self>, request: http::Request<RequestBody>, peer: IpAddr) -> Response {
        let begun = Instant::now();
        let target = self.requests.target(request.method(), request.uri().path());
        let record = HttpRecord { requests: self.requests.clone(), target };
        let failure = StatusCode::INTERNAL_SERVER_ERROR;
        let origin = self.cors.as_ref().and_then(|cors| cors.allowed(request.headers()));
        let preflight =
            origin.is_some() && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
        let answered =
            guard(record, failure, begun, self.answer(request, peer, begun, target, preflight)).await;
        let mut response = answered.unwrap_or_else(|context| {
            let problem = Problem::from(Error::from(Panicked));
            let mut response = Response::default();
            *response.status_mut() = failure;
            problem.write(&mut response, &context);
            reply::identify(&mut response, &context);
            response
        });
        if let Some(cors) = &self.cors {
            cors.mark(&mut response, origin);
        }
        if let Some(hsts) = &self.hsts {
            response.headers_mut().insert(header::STRICT_TRANSPORT_SECURITY, hsts.clone());
        }
        response
    }

    async fn answer(
        &self,
        request: http::Request<RequestBody>,
        peer: IpAddr,
        begun: Instant,
        target: Target,
        preflight: bool,
    ) -> Response {
        let Target { route, method, .. } = target;
        let requested = request::time_limit(request.headers());
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
                let examined = self.examine(&request).and_then(|resource| {
                    requested?;
                    self.without_handler(resource, &request, preflight).transpose()
                });
                match examined {
                    Ok(Some(response)) => response,
                    Ok(None) => match self.authenticate(&request).await {
                        Ok(caller) => self.dispatch(request, time_limit, permit, caller, &lifecycle).await,
                        Err(problem) => refuse(problem, permit, request).await,
                    },
                    Err(problem) => refuse(problem, permit, request).await,
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

    /// Checks the head of a request: its form, and that it asks for nothing that its resource does not do. Returns the
    /// resource; whether it takes the method is not decided here.
    fn examine(&self, request: &http::Request<RequestBody>) -> Result<Resource, Problem> {
        if request.uri().path_and_query().is_some_and(|uri| uri.as_str().len() > MAX_URI) {
            return Err(Problem::uri_too_long(MAX_URI));
        }
        if request.extensions().get::<TooManyFields>().is_some() {
            return Err(Problem::too_many_fields(MAX_HEADERS));
        }
        strict::check(request, &self.scheme)?;
        strict::check_name(request, &self.hosts)?;
        let resource = self.find(request);
        let method = request.method();
        let takes = match resource {
            Resource::Server => true,
            Resource::Route(route) => route.takes(method) || *method == Method::OPTIONS,
            Resource::Page(_) => method.is_safe(),
            Resource::Unknown => false,
        };
        if takes {
            unsupported::check(request)?;
        }
        Ok(resource)
    }

    fn find(&self, request: &http::Request<RequestBody>) -> Resource {
        let path = request.uri().path();
        if let Some(route) = Route::find(path) {
            return Resource::Route(route);
        }
        if strict::asks_about_the_server(request) {
            return Resource::Server;
        }
        Page::find(path).filter(|_| self.docs).map_or(Resource::Unknown, Resource::Page)
    }

    /// Answers what needs no handler: OPTIONS, and files.
    fn without_handler(
        &self,
        resource: Resource,
        request: &http::Request<RequestBody>,
        preflight: bool,
    ) -> Option<Result<Response, Problem>> {
        let allow = match resource {
            Resource::Server => routes::METHODS,
            Resource::Route(route) if *request.method() == Method::OPTIONS => route.allow(),
            Resource::Page(_) if *request.method() == Method::OPTIONS => routes::READ_METHODS,
            Resource::Page(page) => return Some(page.answer(request, self.description.as_deref())),
            Resource::Route(_) | Resource::Unknown => return None,
        };
        let mut response = reply::methods(allow);
        if let Some(cors) = self.cors.as_ref().filter(|_| preflight) {
            cors.permit(&mut response, allow);
        }
        Some(Ok(response))
    }

    /// Accepts a request or refuses it. Returns its permit; none for a request that gets it once its body is
    /// complete.
    fn admit(&self, request: &http::Request<RequestBody>, peer: IpAddr) -> Result<Option<Permit>, Refusal> {
        self.admission.check_rate(peer, request.headers())?;
        self.admission.check_memory(request.extensions().get::<Peer>())?;
        // only the body of a PUT is read
        if request.method() == Method::PUT && !request.body().is_end_stream() {
            self.admission.check_in_flight()?;
            return Ok(None);
        }
        self.admission.acquire().map(Some)
    }

    /// Returns who sends a request that a handler is to answer: nobody if callers need no token for it.
    async fn authenticate(&self, request: &http::Request<RequestBody>) -> Result<Option<Caller>, Problem> {
        let Some(auth) = &self.auth else { return Ok(None) };
        match Route::find(request.uri().path()) {
            Some(route) if route.takes(request.method()) => auth.check(route, request.headers()).await,
            // it is answered with 404 or 405
            _ => Ok(None),
        }
    }

    /// Answers an accepted request, and gives its permit back.
    async fn dispatch(
        &self,
        mut request: http::Request<RequestBody>,
        time_limit: Duration,
        permit: Option<Permit>,
        caller: Option<Caller>,
        lifecycle: &Lifecycle<HttpRecord>,
    ) -> Response {
        let mut context = lifecycle.context().clone();
        let (subject, owner) = caller.map(|caller| (caller.subject, caller.owner)).unzip();
        context.subject = subject;
        let accepted = Accepted {
            context,
            owner: owner.flatten(),
            time_limit,
            length: request.body().size_hint().exact(),
            expects: request.headers().contains_key(header::EXPECT),
            head: if permit.is_some() { 0 } else { head_bytes(request.uri(), request.headers()) },
            peer: request.extensions().get::<Peer>().cloned(),
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

/// Returns the routes that are counted, with the files in [`PAGES`] if they are served.
fn counted(docs: bool) -> Vec<(&'static str, Method)> {
    let routes = ROUTES.iter().map(|route| (route.path, route.method.clone()));
    let pages = PAGES.iter().filter(|_| docs).map(|page| (page.path, Method::GET));
    routes.chain(pages).collect()
}

/// Answers a request that its head has made pointless.
async fn refuse(problem: Problem, permit: Option<Permit>, request: http::Request<RequestBody>) -> Response {
    drop(permit);
    request::discard_body(request).await;
    problem.into_response()
}

/// What a request is about.
#[derive(Clone, Copy)]
enum Resource {
    /// The server itself: `OPTIONS *`.
    Server,
    /// A route.
    Route(&'static Route),
    /// A file.
    Page(&'static Page),
    /// Nothing that is there.
    Unknown,
}
