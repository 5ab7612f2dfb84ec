//! The second layer: when a read fails because no instance can answer it, the last good answer to the same
//! request is used instead. That answer says so (`x-degraded: stale`, `age` in seconds), is counted, and is
//! never older than `client.fallback_age_s`. A read that has not been answered before fails.
//!
//! The layers below get a slightly earlier deadline, so that the fallback still arrives by the caller's
//! deadline: a second [`crate::client::policy::deadline`] layer ends the call then.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, header};
use prometheus::IntCounter;
use tokio::time::Instant;

use crate::api::error::Code;
use crate::api::headers::DEGRADED;
use crate::api::rpc::PerRpc;
use crate::client::call::{Answer, Call, CallLayer, Outcome};
use crate::client::policy::cache::{Cache, Key};

/// Value of `x-degraded` on an earlier answer.
const STALE: HeaderValue = HeaderValue::from_static("stale");
/// Time that is reserved for the fallback, so that it still arrives by the deadline: a twentieth of what the
/// call has left, but at most this.
const MAX_RESERVE: Duration = Duration::from_millis(10);

/// `client_fallback_total` by rpc; an rpc without fallback has no counter.
pub type FallbackCounters = PerRpc<Option<IntCounter>>;

/// Answers failed reads with the last good answer.
pub struct Fallback<S> {
    inner: S,
    cache: Arc<Cache>,
    served: Arc<FallbackCounters>,
}

impl<S: CallLayer> Fallback<S> {
    /// Puts the cache behind `inner`.
    pub const fn new(inner: S, cache: Arc<Cache>, served: Arc<FallbackCounters>) -> Self {
        Self { inner, cache, served }
    }
}

impl<S: CallLayer> CallLayer for Fallback<S> {
    async fn send(&self, call: Call) -> Outcome {
        if !call.rpc.policy().fallback {
            return self.inner.send(call).await;
        }
        let reserve = (call.context.remaining() / 20).min(MAX_RESERVE);
        let deadline = call.context.deadline.checked_sub(reserve).unwrap_or_else(Instant::now);
        let context = call.context.with_deadline(deadline);
        let (rpc, key) = (call.rpc, Key::from(&call));
        match self.inner.send(Call { context, ..call }).await {
            Ok(answer) => {
                // a degraded answer is not a good one
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
                    self.cache.forget(&key); // the earlier answer is wrong by now
                }
                Err(failure)
            }
        }
    }
}

fn mark(mut answer: Answer, age: Duration) -> Answer {
    answer.headers.insert(DEGRADED, STALE);
    answer.headers.insert(header::AGE, HeaderValue::from(age.as_secs()));
    answer
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::api::rpc::Rpc;
    use crate::client::call::testing::{ScriptedEnd, call, failure};
    use crate::client::policy::deadline::Deadline;

    const LIMIT: Duration = Duration::from_secs(1);

    fn layer(end: &ScriptedEnd) -> (Fallback<ScriptedEnd>, IntCounter) {
        let counter = IntCounter::new("x", "x").unwrap();
        let served = PerRpc::from_fn(|_| Some(counter.clone()));
        let cache = Arc::new(Cache::new(1024 * 1024, Duration::from_mins(1)));
        (Fallback::new(end.clone(), cache, Arc::new(served)), counter)
    }

    fn good() -> Answer {
        Answer { message: Bytes::from_static(b"good"), ..Answer::default() }
    }

    /// An end that is good once and then fails with a code.
    fn then(code: Code) -> ScriptedEnd {
        ScriptedEnd::new(move |n, _| async move { if n == 0 { Ok(good()) } else { Err(failure(code)) } })
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_good_answer_is_used_and_says_so() {
        for code in [Code::Unavailable, Code::Timeout] {
            let (layer, served) = layer(&then(code));
            let first = layer.send(call(Rpc::GetFeeds, LIMIT)).await.unwrap();
            assert!(first.headers.is_empty());
            tokio::time::advance(Duration::from_millis(2900)).await;
            let stale = layer.send(call(Rpc::GetFeeds, LIMIT)).await.unwrap();
            assert_eq!(stale.message, first.message);
            assert_eq!(
                (&stale.headers[DEGRADED], &stale.headers[header::AGE]),
                (&STALE, &"2".parse().unwrap())
            );
            assert_eq!(served.get(), 1);
            // another request has not been answered before
            let other = Call { framed: Bytes::from_static(b"other"), ..call(Rpc::GetFeeds, LIMIT) };
            assert_eq!(layer.send(other).await.unwrap_err().error.code, code);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_of_the_service_is_not_replaced() {
        for code in [Code::NotFound, Code::BadRequest, Code::Internal, Code::TooManyRequests] {
            let (layer, served) = layer(&then(code));
            layer.send(call(Rpc::GetFeeds, LIMIT)).await.unwrap();
            let failure = layer.send(call(Rpc::GetFeeds, LIMIT)).await.unwrap_err();
            assert_eq!((failure.error.code, served.get()), (code, 0));
        }
        // an answer that the service says is gone is not used later
        let codes = [Code::NotFound, Code::Unavailable];
        let end = ScriptedEnd::new(move |n, _| async move {
            if n == 0 { Ok(good()) } else { Err(failure(codes[n - 1])) }
        });
        let (layer, _) = layer(&end);
        layer.send(call(Rpc::GetFeeds, LIMIT)).await.unwrap();
        for code in codes {
            let failure = layer.send(call(Rpc::GetFeeds, LIMIT)).await.unwrap_err();
            assert_eq!(failure.error.code, code);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn writes_and_degraded_answers_are_not_kept() {
        let (layer, _) = layer(&then(Code::Unavailable));
        layer.send(call(Rpc::CreateFeed, LIMIT)).await.unwrap();
        layer.send(call(Rpc::CreateFeed, LIMIT)).await.unwrap_err();

        let end = ScriptedEnd::new(|n, _| async move {
            match n {
                0 => Ok(mark(good(), Duration::ZERO)),
                _ => Err(failure(Code::Unavailable)),
            }
        });
        let (layer, _) = self::layer(&end);
        layer.send(call(Rpc::GetProfile, LIMIT)).await.unwrap();
        layer.send(call(Rpc::GetProfile, LIMIT)).await.unwrap_err();
    }

    #[tokio::test(start_paused = true)]
    async fn it_arrives_by_the_deadline() {
        let end = ScriptedEnd::new(|n, _| async move {
            if n > 0 {
                std::future::pending::<()>().await;
            }
            Ok(good())
        });
        let counter = IntCounter::new("x", "x").unwrap();
        let served: FallbackCounters = PerRpc::from_fn(|_| Some(counter.clone()));
        let cache = Arc::new(Cache::new(1024 * 1024, Duration::from_mins(1)));
        let inner = Deadline::new(end, IntCounter::new("x", "x").unwrap());
        let (layer, served) = (Fallback::new(inner, cache, Arc::new(served)), counter);
        layer.send(call(Rpc::GetFeeds, LIMIT)).await.unwrap();
        let slow = call(Rpc::GetFeeds, LIMIT);
        let deadline = slow.context.deadline;
        layer.send(slow).await.unwrap();
        assert!(Instant::now() < deadline);
        assert_eq!(served.get(), 1);
    }
}
