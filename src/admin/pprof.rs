//! `/debug/pprof/profile?seconds=N`: one CPU profile of the process at a time, for callers on this host.
//!
//! The profile is taken by `profiler`, on a thread of its own. A program that was built without the feature
//! `cpu-profile` has no profiler and answers 501.

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use http::{HeaderValue, StatusCode, header};
use tokio::sync::Semaphore;
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::reply::Response;

use super::peer::Peer;
#[cfg(feature = "cpu-profile")]
use super::profiler;
use super::reply::{Refusal, text};

/// Takes a profile until its argument returns, and returns the profile as a file. Its argument blocks, and returns
/// false when nobody wants the profile any more.
type Profiler = fn(&dyn Fn() -> bool) -> Result<Vec<u8>, String>;

/// The profiler of this program, if it has one.
#[cfg(feature = "cpu-profile")]
const PROFILER: Option<Profiler> = Some(profiler::take);
#[cfg(not(feature = "cpu-profile"))]
const PROFILER: Option<Profiler> = None;

/// Range of `seconds`.
const SECONDS: std::ops::RangeInclusive<u64> = 1..=60;
/// Default of `seconds`.
const DEFAULT_SECONDS: u64 = 10;

const NO_CPU: &str = "CPU profiles are not in this program: it was built without the feature cpu-profile";
const NO_HEAP: &str = "\
heap profiles are not in this program: they would slow down every allocation. Attach heaptrack to the process
(Debian and nixpkgs: heaptrack), wait, press Ctrl-C, then look at what it wrote:

  heaptrack --pid PID
  heaptrack_print heaptrack.*
";

/// Returns the routes below `/debug/pprof`.
pub fn routes() -> BoxedFilter<(Response,)> {
    routes_with(PROFILER)
}

fn routes_with(profiler: Option<Profiler>) -> BoxedFilter<(Response,)> {
    let one = Arc::new(Semaphore::new(1));
    let profile = warp::path!("debug" / "pprof" / "profile")
        .and(warp::ext::get::<Peer>())
        .and(warp::query::raw().or(warp::any().map(String::new)).unify())
        .then(move |peer, query: String| {
            let one = one.clone();
            async move { cpu(profiler, peer, &query, one).await.unwrap_or_else(Response::from) }
        });
    let heap =
        warp::path!("debug" / "pprof" / "heap").map(|| text(StatusCode::NOT_IMPLEMENTED, NO_HEAP.to_owned()));
    profile.or(heap).unify().boxed()
}

/// Answers a request for a CPU profile.
///
/// *Cancellation*: ends the profile; the next caller can have one.
async fn cpu(
    profiler: Option<Profiler>,
    peer: Peer,
    query: &str,
    one: Arc<Semaphore>,
) -> Result<Response, Refusal> {
    peer.local()?;
    let take = profiler.ok_or_else(|| Refusal(StatusCode::NOT_IMPLEMENTED, NO_CPU.to_owned()))?;
    let time = seconds(query).map_err(|reason| Refusal(StatusCode::BAD_REQUEST, reason))?;
    let busy = |_| Refusal(StatusCode::CONFLICT, "another profile is being taken".to_owned());
    let permit = one.try_acquire_owned().map_err(busy)?;
    let (caller, gone) = channel::<()>();
    let taken = tokio::task::spawn_blocking(move || {
        let profile = take(&|| gone.recv_timeout(time) == Err(RecvTimeoutError::Timeout));
        drop(permit); // after the profiler has stopped
        profile
    });
    let failed = |reason: String| Refusal(StatusCode::SERVICE_UNAVAILABLE, format!("no profile: {reason}"));
    let taken = taken.await.map_err(|error| failed(error.to_string()))?.map_err(failed)?;
    drop(caller); // held until here: its end tells the thread that the caller has gone
    let mut response = Response::new(taken.into());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    let name = HeaderValue::from_static("attachment; filename=\"profile.pb.gz\"");
    headers.insert(header::CONTENT_DISPOSITION, name);
    Ok(response)
}

/// Reads `seconds=N`, the only parameter.
fn seconds(query: &str) -> Result<Duration, String> {
    let mut seconds = None;
    for part in query.split('&').filter(|part| !part.is_empty()) {
        let value = part.strip_prefix("seconds=").ok_or_else(|| {
            let name: String = part.split('=').next().unwrap_or_default().chars().take(64).collect();
            format!("{name:?} is not known here, want seconds")
        })?;
        if seconds.replace(value).is_some() {
            return Err("seconds: is given twice".to_owned());
        }
    }
    let Some(value) = seconds else {
        return Ok(Duration::from_secs(DEFAULT_SECONDS));
    };
    let (low, high) = (SECONDS.start(), SECONDS.end());
    let digits = value.bytes().all(|b| b.is_ascii_digit()); // not `+5`
    match value.parse() {
        Ok(seconds) if digits && SECONDS.contains(&seconds) => Ok(Duration::from_secs(seconds)),
        _ => Err(format!("seconds: must be an integer from {low} to {high}")),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http_body_util::{BodyExt as _, Empty};
    use tower::Service as _;

    use super::*;

    #[test]
    fn seconds_are_read_and_what_is_wrong_is_named() {
        assert_eq!(seconds(""), Ok(Duration::from_secs(DEFAULT_SECONDS)));
        assert_eq!(seconds("seconds=1"), Ok(Duration::from_secs(1)));
        assert_eq!(seconds("&seconds=60&"), Ok(Duration::from_mins(1)));
        for wrong in ["0", "61", "", "-1", "+5", "1.5", "x", "99999999999999999999"] {
            let error = seconds(&format!("seconds={wrong}")).unwrap_err();
            assert_eq!(error, "seconds: must be an integer from 1 to 60", "{wrong:?}");
        }
        assert!(seconds("seconds=1&seconds=2").unwrap_err().starts_with("seconds: "));
        assert!(seconds("hz=5").unwrap_err().contains("\"hz\""));
    }

    /// Returns the status and the text of an answer to a caller on this host.
    async fn get(routes: BoxedFilter<(Response,)>, path: &str) -> (StatusCode, String) {
        let mut request = http::Request::get(path).body(Empty::<Bytes>::new()).unwrap();
        request.extensions_mut().insert(Peer([127, 0, 0, 1].into()));
        let response = warp::service(routes).call(request).await.unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn a_program_without_a_profiler_says_so() {
        let routes = routes_with(None);
        let answer = get(routes, "/debug/pprof/profile?seconds=1").await;
        assert_eq!(answer, (StatusCode::NOT_IMPLEMENTED, format!("{NO_CPU}\n")));
        let routes = routes_with(Some(|wait| Ok(format!("waited: {}", wait()).into_bytes())));
        let answer = get(routes, "/debug/pprof/profile?seconds=1").await;
        assert_eq!(answer, (StatusCode::OK, "waited: true".to_owned()));
    }

    #[test]
    fn the_feature_decides_whether_there_is_a_profiler() {
        assert_eq!(PROFILER.is_some(), cfg!(feature = "cpu-profile"));
    }
}
