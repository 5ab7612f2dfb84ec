//! The paths of the admin listener, in one table.

use std::net::IpAddr;
use std::sync::Arc;

use http::StatusCode;
use hyper::body::Incoming;
use tower::Service as _;
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::reply::Response;

use super::page::Pages;
use super::peer::Peer;
use super::reply::text;
use super::state::State;
use super::{loglevel, pprof, readyz, status, targets};

/// A path, and what answers requests for it.
type Route = (&'static str, BoxedFilter<(Response,)>);

/// Returns every path, in the order in which an answer 404 lists them.
fn table(state: &Arc<State>) -> [Route; 6] {
    let pages = Pages::new(state.clone());
    let ready = state.clone();
    let (process, view) = (state.clone(), state.view.clone());
    [
        ("/metrics", read(warp::any().then(move || pages.clone().answer()))),
        ("/livez", read(warp::any().map(|| text(StatusCode::OK, "ok\n".to_owned())))),
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
    let segments = path.split('/').skip(1);
    let all = segments.fold(warp::any().boxed(), |before, segment| before.and(warp::path(segment)).boxed());
    all.and(warp::path::end()).boxed()
}

/// Answers the requests of an admin listener. Cheap to clone.
#[derive(Clone)]
pub struct Handler(BoxedFilter<(Response,)>);

impl Handler {
    /// Returns a handler for a process.
    #[must_use]
    pub fn new(state: State) -> Self {
        let table = table(&Arc::new(state));
        let paths = table.iter().map(|(path, _)| *path).collect::<Vec<_>>().join(", ");
        let hint = format!("want GET {paths} or /debug/pprof/profile\n");
        let unknown = warp::any().map(move || text(StatusCode::NOT_FOUND, hint.clone())).boxed();
        let profiles = warp::get().or(warp::head()).unify().and(pprof::routes()).boxed();
        let routes = table
            .into_iter()
            .rev()
            .fold(profiles, |others, (path, answer)| exactly(path).and(answer).or(others).unify().boxed());
        Self(routes.or(unknown).unify().boxed())
    }

    /// Answers one request of the caller at `peer`.
    pub async fn call(self, mut request: http::Request<Incoming>, peer: IpAddr) -> Response {
        if request.uri().path().is_empty() {
            // `CONNECT host:port` and `GET host:port`, on which warp's path filter panics (warp#1166)
            return text(StatusCode::BAD_REQUEST, "the target must be a path, such as /status\n".to_owned());
        }
        request.extensions_mut().insert(Peer(peer));
        match warp::service(self.0).call(request).await {
            Ok(response) => response,
        }
    }
}
