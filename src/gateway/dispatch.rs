//! From an accepted request to the handler of its route: one warp filter over the table of routes.

use std::time::Duration;

use bytes::Buf;
use futures_util::Stream;
use http::Method;
use tokio::time::Instant;
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::path::FullPath;
use warp::reply::Response;

use super::problem::Problem;
use super::request::{self, Accepted, Fields};
use super::routes::Route;
use crate::client::Client;
use crate::server::Peer;

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
        check_owner(&accepted, &input)?;
        if route.method != Method::GET {
            begin_write(&mut accepted).await?;
        }
        return (route.handler)(client, input, accepted.context).await;
    }
    let (input, _permit) = request::body(body, body_timeout, &mut accepted).await?;
    check_owner(&accepted, &input)?;
    begin_write(&mut accepted).await?;
    (route.handler)(client, input, accepted.context).await
}

/// Checks that a request for a route that is for owners is about the user that asks.
fn check_owner(accepted: &Accepted, input: &Fields) -> Result<(), Problem> {
    let Some(owner) = &accepted.owner else { return Ok(()) };
    owner.check(input.peek_integer("user_id")?)
}

/// Lets a write begin, unless its caller may have given it up while this process paused: it must not come after what the
/// caller has written elsewhere since. What is read just after a pause counts as sent at its beginning, and a caller that
/// sends no more is taken for one that has hung up, also if its end comes while the write is made.
async fn begin_write(accepted: &mut Accepted) -> Result<(), Problem> {
    Peer::read_pending(accepted.peer.as_ref()).await;
    let Some(late) = accepted.pauses.late(accepted.caller.opened()) else { return Ok(()) };
    accepted.caller.note_old();
    let context = &mut accepted.context;
    context.deadline = context.deadline.checked_sub(late.waited).unwrap_or_else(Instant::now);
    context.shortened = true;
    if accepted.caller.has_ended() || accepted.context.remaining().is_zero() {
        return Err(Problem::late());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::config::{Role, Settings};
    use crate::context::Context;
    use crate::server::UnsentLimit;
    use crate::server::admission::Admission;
    use crate::server::metrics::Metrics;
    use crate::server::pause::Pauses;

    /// Its caller may have reset it right behind it.
    #[tokio::test(start_paused = true)]
    async fn a_write_over_http2_begins_once_what_has_arrived_was_read() {
        let settings = Settings::for_role(Role::Apigateway);
        let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
        let admission = Admission::http("apigateway", &settings.http, UnsentLimit::new(1024), &metrics);
        for (peer, waits) in [(None, false), (Some(Peer::unread()), true)] {
            let begun = Instant::now();
            let mut accepted = Accepted {
                context: Context::new(begun + Duration::from_mins(1)),
                time_limit: Duration::from_mins(1),
                length: None,
                expects: false,
                head: 0,
                peer,
                admission: admission.clone(),
                pauses: Pauses::watch(),
                caller: Arc::default(),
                owner: None,
                needs_permit: false,
            };
            assert!(begin_write(&mut accepted).await.is_ok());
            assert_eq!(begun.elapsed() > Duration::ZERO, waits);
        }
    }
}
