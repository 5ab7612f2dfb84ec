//! From an accepted request to the handler of its route: one warp filter over the table of routes.

use std::time::Duration;

use bytes::Buf;
use futures_util::Stream;
use http::Method;
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::path::FullPath;
use warp::reply::Response;

use super::problem::Problem;
use super::request::{self, Accepted};
use super::routes::Route;
use crate::client::Client;
use crate::server::input;

/// Returns a filter that answers every request; the request's extensions must have [`Accepted`].
pub fn filter(client: Client, body_timeout: Duration) -> BoxedFilter<(Response,)> {
    let query = warp::query::raw().or(warp::any().map(String::new)).unify();
    warp::path::full()
        .and(warp::method())
        .and(warp::ext::get::<Accepted>())
        .and(query)
        .and(warp::body::stream())
        .then(move |path: FullPath, method, accepted, query, body| {
            let client = client.clone();
            async move {
                let answer = dispatch(client, body_timeout, path.as_str(), &method, accepted, query, body);
                answer.await.unwrap_or_else(Problem::into_response)
            }
        })
        .boxed()
}

async fn dispatch<S, B>(
    client: Client,
    body_timeout: Duration,
    path: &str,
    method: &Method,
    mut accepted: Accepted,
    query: String,
    body: S,
) -> Result<Response, Problem>
where
    S: Stream<Item = Result<B, warp::Error>>,
    B: Buf,
{
    let route = Route::find(path).ok_or_else(Problem::unknown_route)?;
    if !route.takes(method) {
        return Err(Problem::method_not_allowed(route.allow()));
    }
    if route.method != Method::PUT {
        let input = request::query(&query)?;
        if route.method != Method::GET {
            input::read_pending().await;
        }
        return (route.handler)(client, input, accepted.context).await;
    }
    let (input, _permit) = request::body(body, body_timeout, &mut accepted).await?;
    input::read_pending().await;
    (route.handler)(client, input, accepted.context).await
}
