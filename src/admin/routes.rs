//! The paths of the admin listener, in one table.

use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt as _;
use http::uri::Scheme;
use http::{HeaderName, HeaderValue, Request, StatusCode, header};
use tower::Service as _;
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::reply::Response;

use super::page::Pages;
use super::peer::Peer;
use super::reply::{failed, text};
use super::state::State;
use super::system::{self, Part, SystemPage};
use super::token::Token;
use super::{loglevel, origin, pprof, readyz, status, targets};
use crate::server::{RequestBody, strict};

/// The methods of all paths, and OPTIONS of the server itself.
const METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, OPTIONS, PUT");

/// What keeps pages of other sites from loading an answer as a part of theirs.
const PRIVATE: [(HeaderName, HeaderValue); 2] = [
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (HeaderName::from_static("cross-origin-resource-policy"), HeaderValue::from_static("same-origin")),
];

/// Paths that the page of the system loads; an answer 404 does not list them.
const PARTS: [&str; 3] = ["/page.css", "/page.js", "/icon.svg"];

/// A path, and what answers requests for it.
type Route = (&'static str, BoxedFilter<(Response,)>);

/// Returns every path, in the order in which an answer 404 lists them.
fn table(state: &Arc<State>) -> [Route; 11] {
    let pages = Pages::new(state.clone());
    let (ready, threads) = (state.clone(), state.threads.clone());
    let (process, view) = (state.clone(), state.view.clone());
    let (system, traces) = (SystemPage::new(state.clone()), state.clone());
    let query = warp::query::raw().or(warp::any().map(String::new)).unify();
    let part = |part: Part| read(warp::any().map(move || part.answer()));
    [
        ("/", read(warp::header::headers_cloned().map(move |headers| system.answer(&headers)))),
        ("/page.css", part(Part::Style)),
        ("/page.js", part(Part::Script)),
        ("/icon.svg", part(Part::Icon)),
        ("/trace", read(query.map(move |query: String| system::trace(&traces, &query)))),
        ("/metrics", read(warp::any().then(move || pages.clone().answer()))),
        (
            "/livez",
            read(warp::any().then(move || {
                let threads = threads.clone();
                async move { readyz::live(&threads).await }
            })),
        ),
        (
            "/readyz",
            read(warp::any().then(move || {
                let state = ready.clone();
                async move { readyz::answer(&state).await }
            })),
        ),
        ("/status", read(warp::any().map(move || status::answer(&process)))),
        ("/sd/targets", read(warp::any().map(move || targets::answer(view.as_ref())))),
        ("/loglevel", loglevel::answers(state.level.clone())),
    ]
}

/// Restricts an answer to GET and HEAD.
fn read(
    answer: impl Filter<Extract = (Response,), Error = std::convert::Infallible> + Clone + Send + Sync + 'static,
) -> BoxedFilter<(Response,)> {
    warp::get().or(warp::head()).unify().and(answer).boxed()
}

/// Matches a whole path.
fn exactly(path: &'static str) -> BoxedFilter<()> {
    let segments = path.split('/').filter(|segment| !segment.is_empty());
    let all = segments.fold(warp::any().boxed(), |before, segment| before.and(warp::path(segment)).boxed());
    all.and(warp::path::end()).boxed()
}

/// Answers the requests of an admin listener. Cheap to clone.
#[derive(Clone)]
pub struct Handler {
    routes: BoxedFilter<(Response,)>,
    names: Arc<[String]>,
    token: Option<Arc<Token>>,
}

impl Handler {
    /// Returns a handler for a process.
    #[must_use]
    pub fn new(state: &Arc<State>) -> Self {
        let (names, token) = (state.names.clone().into(), state.token.clone());
        let table = table(state);
        let paths = table.iter().map(|(path, _)| *path).filter(|path| !PARTS.contains(path));
        let paths = paths.collect::<Vec<_>>().join(", ");
        let hint = format!("want GET {paths} or /debug/pprof/profile\n");
        let unknown = warp::any().map(move || text(StatusCode::NOT_FOUND, hint.clone())).boxed();
        let profiles = warp::get().or(warp::head()).unify().and(pprof::routes()).boxed();
        let routes = table
            .into_iter()
            .rev()
            .fold(profiles, |others, (path, answer)| exactly(path).and(answer).or(others).unify().boxed());
        Self { routes: routes.or(unknown).unify().boxed(), names, token }
    }

    /// Answers one request of the caller at `peer`. A panic is logged, and answered.
    pub async fn call(self, request: Request<RequestBody>, peer: IpAddr) -> Response {
        // a handler that panicked is dropped: nothing sees its state any more
        let answered = AssertUnwindSafe(self.answer(request, peer)).catch_unwind().await;
        answered.unwrap_or_else(|_| {
            tracing::error!("handler of the admin listener panicked");
            failed()
        })
    }

    async fn answer(self, mut request: Request<RequestBody>, peer: IpAddr) -> Response {
        if let Err(malformed) = strict::check(&request, &Scheme::HTTP) {
            let reason = format!("{}: {}\n", malformed.field, malformed.detail);
            let mut response = text(malformed.status, reason);
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            return response;
        }
        let for_any_host = origin::is_for_any_host(&request);
        if let Err(refusal) = origin::check(&request, for_any_host, &self.names) {
            return refusal.into();
        }
        let token = self.token.as_ref().filter(|_| !for_any_host);
        if let Some(unauthorized) = token.and_then(|token| token.refuse(&request)) {
            return secured(unauthorized);
        }
        if strict::asks_about_the_server(&request) {
            let mut response = Response::default();
            response.headers_mut().insert(header::ALLOW, METHODS);
            return response;
        }
        request.extensions_mut().insert(Peer(peer));
        match warp::service(self.routes).call(request).await {
            Ok(response) if !for_any_host => secured(response),
            Ok(response) => response,
        }
    }
}

/// Keeps an answer out of caches, and out of pages of other sites.
fn secured(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    headers.extend(PRIVATE.map(|(name, value)| (Some(name), value)));
    response
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::server::listener::Listener;
    use crate::server::metrics::Metrics;
    use crate::server::{Limits, Protocol, Stop, UnsentLimit, serve};

    #[tokio::test]
    async fn a_panic_in_a_route_is_answered_with_500() {
        let routes = warp::any().map(|| -> Response { panic!("a defect") }).boxed();
        let handler = Handler { routes, names: Arc::default(), token: None };
        let listener = Listener::bind(([127, 0, 0, 1], 0).into()).unwrap();
        let addr = listener.addr();
        let write_timeout = Duration::from_secs(10);
        let limits = Limits { max_connections: 1, write_timeout, unsent: UnsentLimit::new(1024) };
        let stop = Stop { begin: CancellationToken::new(), grace: Duration::ZERO };
        let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
        let protocol = Protocol::Http1 { header_timeout: Duration::from_secs(10) };
        let answer = move |request, peer| handler.clone().call(request, peer);
        tokio::spawn(async move { serve(listener, protocol, limits, &metrics, answer, stop).await });
        let mut stream = tokio::net::TcpStream::connect(addr).await.unwrap();
        stream
            .write_all(b"GET /livez HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            .await
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 500 "), "{answer}");
        assert!(answer.ends_with("\r\n\r\nthe handler failed\n"), "{answer}");
    }
}
