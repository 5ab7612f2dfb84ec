//! The second layer: when a read fails because no instance can answer it, the last good answer to the same
//! request is used instead. That answer says so (`x-degraded: stale`, `age` in seconds), is counted, and is
//! never older than `client.fallback_age_s`, nor older than an acknowledged write of the same records. A read that has
//! not been answered before fails. Answers are kept by [`crate::client::Client`], once they are decoded.
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
use crate::client::call::{Answer, Call, CallLayer, Outcome, Read};
use crate::client::policy::cache::Cache;

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
    cache: Cache,
    served: Arc<FallbackCounters>,
}

impl<S: CallLayer> Fallback<S> {
    /// Puts the cache behind `inner`.
    pub const fn new(inner: S, cache: Cache, served: Arc<FallbackCounters>) -> Self {
        Self { inner, cache, served }
    }
}

impl<S: CallLayer> CallLayer for Fallback<S> {
    async fn send(&self, call: Call) -> Outcome {
        if !call.rpc.policy().fallback {
            let about = call.about;
            let outcome = self.inner.send(call).await;
            if outcome.is_ok() {
                self.cache.note_write(about);
            }
            return outcome;
        }
        let reserve = (call.context.remaining() / 20).min(MAX_RESERVE);
        let deadline = call.context.deadline.checked_sub(reserve).unwrap_or_else(Instant::now);
        let (rpc, read) = (call.rpc, Read::begin(&call));
        let mut context = call.context.with_deadline(deadline);
        context.written = self.cache.written(&read);
        match self.inner.send(Call { context, ..call }).await {
            Err(failure) if matches!(failure.error.code, Code::Unavailable | Code::Timeout) => {
                let (answer, age) = self.cache.last(&read).ok_or(failure)?;
                if let Some(served) = &self.served[rpc] {
                    served.inc();
                }
                Ok(mark(answer, age))
            }
            Err(failure) => {
                if failure.error.code == Code::NotFound {
                    self.cache.forget(&read); // the earlier answer is wrong by now
                }
                Err(failure)
            }
            // a degraded answer is not a good one
            Ok(answer) if answer.headers.contains_key(DEGRADED) => Ok(answer),
            Ok(answer) => Ok(Answer { read: Some(read), ..answer }),
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
    use crate::api::subject::Subject;
    use crate::client::call::testing::{ScriptedEnd, call, failure};
    use crate::client::policy::deadline::Deadline;

    const LIMIT: Duration = Duration::from_secs(1);

    fn layer(end: &ScriptedEnd) -> (Fallback<ScriptedEnd>, IntCounter) {
        let counter = IntCounter::new("x", "x").unwrap();
        let served = PerRpc::from_fn(|_| Some(counter.clone()));
        let cache = Cache::new(1024 * 1024, Duration::from_mins(1));
        (Fallback::new(end.clone(), cache, Arc::new(served)), counter)
    }

    fn good() -> Answer {
        Answer { message: Bytes::from_static(b"good"), ..Answer::default() }
    }

    /// Sends a call and keeps its answer, as the client does.
    async fn send_and_keep<S: CallLayer>(layer: &Fallback<S>, call: Call) -> Answer {
        let answer = layer.send(call).await.unwrap();
        layer.cache.keep(answer.read.as_ref().unwrap(), &answer.message);
        answer
    }

    /// An end that is good once and then fails with a code.
    fn then(code: Code) -> ScriptedEnd {
        ScriptedEnd::new(move |n, _| async move { if n == 0 { Ok(good()) } else { Err(failure(code)) } })
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_good_answer_is_used_and_says_so() {
        for code in [Code::Unavailable, Code::Timeout] {
            let (layer, served) = layer(&then(code));
            let first = send_and_keep(&layer, call(Rpc::GetFeeds, LIMIT)).await;
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
            send_and_keep(&layer, call(Rpc::GetFeeds, LIMIT)).await;
            let failure = layer.send(call(Rpc::GetFeeds, LIMIT)).await.unwrap_err();
            assert_eq!((failure.error.code, served.get()), (code, 0));
        }
        // an answer that the service says is gone is not used later
        let codes = [Code::NotFound, Code::Unavailable];
        let end = ScriptedEnd::new(move |n, _| async move {
            if n == 0 { Ok(good()) } else { Err(failure(codes[n - 1])) }
        });
        let (layer, _) = layer(&end);
        send_and_keep(&layer, call(Rpc::GetFeeds, LIMIT)).await;
        for code in codes {
            let failure = layer.send(call(Rpc::GetFeeds, LIMIT)).await.unwrap_err();
            assert_eq!(failure.error.code, code);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_acknowledged_write_ends_the_fallback_and_is_told_to_the_service() {
        let about = [Some(Subject::Topic(1)), Some(Subject::Topics)];
        let written = Arc::new(std::sync::Mutex::new(None));
        let seen = written.clone();
        // the second read and the second write fail
        let end = ScriptedEnd::new(move |n, call| {
            *seen.lock().unwrap() = call.context.written;
            async move { if n == 1 || n == 3 { Err(failure(Code::Unavailable)) } else { Ok(good()) } }
        });
        let (layer, _) = layer(&end);
        let read = || Call { about: [Some(Subject::Topic(1)), None], ..call(Rpc::GetTopic, LIMIT) };
        let write = || Call { about, ..call(Rpc::PutTopic, LIMIT) };
        send_and_keep(&layer, read()).await;
        tokio::time::advance(Duration::from_secs(1)).await;
        layer.send(write()).await.unwrap_err();
        assert_eq!(*written.lock().unwrap(), None);
        layer.send(write()).await.unwrap();
        let acknowledged = Instant::now();
        tokio::time::advance(Duration::from_secs(1)).await;
        let failure = layer.send(read()).await.unwrap_err();
        assert_eq!(failure.error.code, Code::Unavailable, "the earlier answer is out of date");
        assert_eq!(*written.lock().unwrap(), Some(acknowledged));
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
        let cache = Cache::new(1024 * 1024, Duration::from_mins(1));
        let inner = Deadline::new(end, IntCounter::new("x", "x").unwrap());
        let (layer, served) = (Fallback::new(inner, cache, Arc::new(served)), counter);
        send_and_keep(&layer, call(Rpc::GetFeeds, LIMIT)).await;
        let slow = call(Rpc::GetFeeds, LIMIT);
        let deadline = slow.context.deadline;
        layer.send(slow).await.unwrap();
        assert!(Instant::now() < deadline);
        assert_eq!(served.get(), 1);
    }
}
