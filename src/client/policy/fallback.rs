//! The second layer: when a read fails because nobody can answer, the last good answer stands in. It says
//! so (`x-degraded: stale`, `age` in seconds), is counted, and is never older than `client.fallback_age_s`.
//! Nothing is invented: a read that has not been answered before fails.
//!
//! The deadline below it is a little earlier, so that the fallback still arrives by the caller's: a second
//! [`crate::client::policy::deadline`] layer ends the call there.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, header};
use prometheus::IntCounter;
use tokio::time::Instant;

use crate::api::error::Code;
use crate::api::headers::DEGRADED;
use crate::api::rpc::PerRpc;
use crate::client::call::{Answer, Call, Outcome, Path, layer};
use crate::client::policy::cache::{Cache, Key};

/// What `x-degraded` says of an earlier answer.
const STALE: HeaderValue = HeaderValue::from_static("stale");
/// Time that is kept for the fallback itself: the answer must still arrive by the deadline. A twentieth of
/// what the call has, but at most this.
const RESERVE: Duration = Duration::from_millis(10);

/// `client_fallback_total` by rpc; one that has no fallback has no counter.
pub type Served = PerRpc<Option<IntCounter>>;

/// Stands in with the last good answer.
#[derive(Clone)]
pub struct Fallback<S> {
    inner: S,
    cache: Arc<Cache>,
    served: Arc<Served>,
}

impl<S: Path> Fallback<S> {
    /// Puts the cache behind `inner`.
    pub const fn new(inner: S, cache: Arc<Cache>, served: Arc<Served>) -> Self {
        Self { inner, cache, served }
    }

    async fn run(&self, call: Call) -> Outcome {
        if !call.rpc.policy().fallback {
            return self.inner.send(call).await;
        }
        let reserve = (call.context.remaining() / 20).min(RESERVE);
        let deadline = call.context.deadline.checked_sub(reserve).unwrap_or_else(Instant::now);
        let context = call.context.with_deadline(deadline);
        let (rpc, key) = (call.rpc, Key::from(&call));
        match self.inner.send(Call { context, patience: deadline, ..call }).await {
            Ok(answer) => {
                // a degraded answer is no good one
                if !answer.headers.contains_key(DEGRADED) {
                    self.cache.keep(&key, &answer);
                }
                Ok(answer)
            }
            Err(failure) if matches!(failure.error.code, Code::Unavailable | Code::Timeout) => {
                let (answer, age) = self.cache.last(&key).ok_or(failure)?;
                if let Some(served) = &self.served[rpc] {
                    served.inc();
                }
                Ok(mark(answer, age))
            }
            Err(failure) => {
                if failure.error.code == Code::NotFound {
                    self.cache.forget(&key); // what there was is there no more
                }
                Err(failure)
            }
        }
    }
}
layer!(Fallback<S>);

fn mark(mut answer: Answer, age: Duration) -> Answer {
    answer.headers.insert(DEGRADED, STALE);
    answer.headers.insert(header::AGE, HeaderValue::from(age.as_secs()));
    answer
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tower::Service as _;

    use super::*;
    use crate::api::rpc::Rpc;
    use crate::client::call::testing::{End, call, failure};
    use crate::client::policy::deadline::Deadline;

    const LIMIT: Duration = Duration::from_secs(1);

    fn layer(end: &End) -> (Fallback<End>, IntCounter) {
        let counter = IntCounter::new("x", "x").unwrap();
        let served = PerRpc::from_fn(|_| Some(counter.clone()));
        let cache = Arc::new(Cache::new(1024 * 1024, Duration::from_mins(1)));
        (Fallback::new(end.clone(), cache, Arc::new(served)), counter)
    }

    fn good() -> Answer {
        Answer { message: Bytes::from_static(b"good"), ..Answer::default() }
    }

    /// An end that is good once and then fails with a code.
    fn then(code: Code) -> End {
        End::new(move |n, _| async move { if n == 0 { Ok(good()) } else { Err(failure(code)) } })
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_good_answer_stands_in_and_says_so() {
        for code in [Code::Unavailable, Code::Timeout] {
            let (mut layer, served) = layer(&then(code));
            let first = layer.call(call(Rpc::GetFeeds, LIMIT)).await.unwrap();
            assert!(first.headers.is_empty());
            tokio::time::advance(Duration::from_millis(2900)).await;
            let stale = layer.call(call(Rpc::GetFeeds, LIMIT)).await.unwrap();
            assert_eq!(stale.message, first.message);
            assert_eq!(
                (&stale.headers[DEGRADED], &stale.headers[header::AGE]),
                (&STALE, &"2".parse().unwrap())
            );
            assert_eq!(served.get(), 1);
            // another request has had no answer
            let other = Call { framed: Bytes::from_static(b"other"), ..call(Rpc::GetFeeds, LIMIT) };
            assert_eq!(layer.call(other).await.unwrap_err().error.code, code);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_service_that_answers_is_believed() {
        for code in [Code::NotFound, Code::BadRequest, Code::Internal, Code::TooManyRequests] {
            let (mut layer, served) = layer(&then(code));
            layer.call(call(Rpc::GetFeeds, LIMIT)).await.unwrap();
            let failure = layer.call(call(Rpc::GetFeeds, LIMIT)).await.unwrap_err();
            assert_eq!((failure.error.code, served.get()), (code, 0));
        }
        // what it says is gone does not come back later
        let codes = [Code::NotFound, Code::Unavailable];
        let end =
            End::new(move |n, _| async move { if n == 0 { Ok(good()) } else { Err(failure(codes[n - 1])) } });
        let (mut layer, _) = layer(&end);
        layer.call(call(Rpc::GetFeeds, LIMIT)).await.unwrap();
        for code in codes {
            let failure = layer.call(call(Rpc::GetFeeds, LIMIT)).await.unwrap_err();
            assert_eq!(failure.error.code, code);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn writes_and_degraded_answers_are_not_kept() {
        let (mut layer, _) = layer(&then(Code::Unavailable));
        layer.call(call(Rpc::CreateFeed, LIMIT)).await.unwrap();
        layer.call(call(Rpc::CreateFeed, LIMIT)).await.unwrap_err();

        let end = End::new(|n, _| async move {
            match n {
                0 => Ok(mark(good(), Duration::ZERO)),
                _ => Err(failure(Code::Unavailable)),
            }
        });
        let (mut layer, _) = self::layer(&end);
        layer.call(call(Rpc::GetProfile, LIMIT)).await.unwrap();
        layer.call(call(Rpc::GetProfile, LIMIT)).await.unwrap_err();
    }

    #[tokio::test(start_paused = true)]
    async fn it_arrives_by_the_deadline() {
        let end = End::new(|n, _| async move {
            if n > 0 {
                std::future::pending::<()>().await;
            }
            Ok(good())
        });
        let counter = IntCounter::new("x", "x").unwrap();
        let served: Served = PerRpc::from_fn(|_| Some(counter.clone()));
        let cache = Arc::new(Cache::new(1024 * 1024, Duration::from_mins(1)));
        let inner = Deadline::new(end, IntCounter::new("x", "x").unwrap());
        let (mut layer, served) = (Fallback::new(inner, cache, Arc::new(served)), counter);
        layer.call(call(Rpc::GetFeeds, LIMIT)).await.unwrap();
        let slow = call(Rpc::GetFeeds, LIMIT);
        let deadline = slow.context.deadline;
        layer.call(slow).await.unwrap();
        assert!(Instant::now() < deadline);
        assert_eq!(served.get(), 1);
    }
}
