//! What goes down the call path and what comes back: a call, then an answer or a failure in terms that every
//! layer understands; and [`CallLayer`], the trait of all layers.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use tokio::time::Instant;

use crate::api::error::{Code, Error};
use crate::api::rpc::Rpc;
use crate::api::subject::Subjects;
use crate::context::Context;

/// Time that an instance always gets before a timeout counts as its failure. A caller with a shorter deadline
/// can end an attempt earlier, but not make the instance look bad: else anyone could open the breakers with
/// `x-request-timeout-ms: 1`.
pub const MIN_TIME_TO_ANSWER: Duration = Duration::from_millis(100);

/// One call on its way down. Cheap to clone: a retry sends the same bytes again.
#[derive(Clone, Debug)]
pub struct Call {
    /// Which rpc.
    pub rpc: Rpc,
    /// The request as it goes over the wire, with its length prefix.
    pub framed: Bytes,
    /// What the request is about.
    pub about: Subjects,
    /// Deadline and ids. `previous_attempts` includes the attempts of this call.
    pub context: Context,
    /// The part of `context.previous_attempts` that was made above this call, by the callers of this process.
    pub inherited_attempts: u32,
    /// When this attempt has taken so long that its instance is to blame; at the latest the deadline. The
    /// retry layer may then give the attempt up.
    pub attempt_deadline: Instant,
    /// Numbers of the instances that have been tried. The balancer prefers others.
    pub tried: Vec<u64>,
    /// The number of the instance that has this attempt, 0 before one is picked. All clones of the call share
    /// it, so that the retry layer can read it even of an attempt that it gives up.
    pub picked: Arc<AtomicU64>,
    /// True if an open breaker lets the call through, because the breakers of all instances are open.
    pub ignore_breaker: bool,
    /// True if the caller can do without an answer and prefers a failure at once to a wait that is likely to
    /// be in vain.
    pub best_effort: bool,
}

impl Call {
    /// Returns a call at its start.
    #[must_use]
    pub fn new(rpc: Rpc, framed: Bytes, context: Context) -> Self {
        Self {
            rpc,
            framed,
            about: [None; 2],
            attempt_deadline: context.deadline,
            inherited_attempts: context.previous_attempts,
            context,
            tried: Vec::new(),
            picked: Arc::default(),
            ignore_breaker: false,
            best_effort: false,
        }
    }
}

/// A successful answer.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// The encoded message.
    pub message: Bytes,
    /// The initial metadata.
    pub headers: HeaderMap,
    /// How many earlier attempts of the call a handler may have executed.
    pub earlier_executions: u32,
}

/// How far a failed attempt got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// There is no instance to send it to.
    NoEndpoint,
    /// It never left this process: no connection, or an instance at its limit. Another instance may get it.
    NotSent,
    /// The peer says that no handler has seen it (refused stream, GOAWAY, another service).
    Unprocessed,
    /// A handler may have seen it: the connection broke, or the answer cannot be understood.
    Unknown,
    /// The peer answered with a status.
    Answered,
}

/// What a server that sheds load says about another attempt (`grpc-retry-pushback-ms`, gRPC proposal A6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushback {
    /// None may follow.
    Never,
    /// One may follow after this time.
    After(Duration),
}

/// A failed attempt or call.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The error that the caller gets. Retry, breaker and metrics decide by its code.
    pub error: Error,
    /// How far the attempt got.
    pub delivery: Delivery,
    /// What the server says about another attempt, if it does.
    pub pushback: Option<Pushback>,
    /// The number of the connection that broke under the attempt. All calls on a connection fail together
    /// when it breaks; the breaker counts them as one failure.
    pub broken_connection: Option<u64>,
}

impl Failure {
    /// Returns a failure without pushback or broken connection.
    #[must_use]
    pub const fn new(delivery: Delivery, error: Error) -> Self {
        Self { error, delivery, pushback: None, broken_connection: None }
    }

    /// Returns the failure of a call whose deadline has passed.
    #[must_use]
    pub fn timeout(rpc: Rpc) -> Self {
        Self::new(
            Delivery::Unknown,
            Error::new(Code::Timeout, format!("{} did not answer in time", rpc.service())),
        )
    }

    /// Returns true if a handler may have seen the attempt.
    #[must_use]
    pub const fn maybe_processed(&self) -> bool {
        matches!(self.delivery, Delivery::Unknown | Delivery::Answered)
    }

    /// Returns true if the instance is to blame for the failure of an attempt that `took` so long. It is not
    /// for what the caller did wrong, for a deadline that was too short, or for load that it sheds.
    #[must_use]
    pub fn is_instance_fault(&self, took: Duration) -> bool {
        self.is_outage(took) && self.maybe_processed() && self.pushback.is_none()
    }

    /// Returns true if a call that `took` so long failed because the service could not serve it, whichever
    /// instance is to blame.
    #[must_use]
    pub fn is_outage(&self, took: Duration) -> bool {
        match self.error.code {
            Code::Unavailable | Code::Internal => true,
            Code::Timeout => took >= MIN_TIME_TO_ANSWER,
            Code::BadRequest | Code::NotFound | Code::TooManyRequests => false,
        }
    }
}

/// What every layer returns.
pub type Outcome = Result<Answer, Failure>;

/// One layer of the call path with all layers below it.
///
/// A layer never waits to become ready: where it could not go on, it fails at once, so that the layer above
/// can decide what to do.
///
/// This is not `tower::Service`, for two reasons. The future of a `Service` must not borrow the service. So each
/// layer would clone the layers below it and, as an async block has no name, box its future: for ten layers ten
/// clones and ten heap allocations a call. Here all layers of a call are one future, without a box. And its
/// `poll_ready` would not be true: whether a call can be made depends on the call (its rpc, the instances that
/// it has tried), which `poll_ready` does not see.
pub trait CallLayer: Send + Sync + 'static {
    /// Sends a call.
    ///
    /// *Cancellation*: dropping the future cancels the call, and the handler at the other end.
    fn send(&self, call: Call) -> impl Future<Output = Outcome> + Send;
}

#[cfg(test)]
pub mod testing {
    //! An end of the call path that answers by a script.

    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use futures_util::future::BoxFuture;

    use super::*;

    type Script = dyn Fn(usize, Call) -> BoxFuture<'static, Outcome> + Send + Sync;

    /// Answers calls by a script, which gets the number of the call, and counts them.
    #[derive(Clone)]
    pub struct ScriptedEnd {
        script: Arc<Script>,
        calls: Arc<AtomicUsize>,
    }

    impl ScriptedEnd {
        pub fn new<F>(script: impl Fn(usize, Call) -> F + Send + Sync + 'static) -> Self
        where
            F: Future<Output = Outcome> + Send + 'static,
        {
            Self { script: Arc::new(move |n, call| Box::pin(script(n, call))), calls: Arc::default() }
        }

        pub fn calls(&self) -> usize {
            self.calls.load(Relaxed)
        }
    }

    impl CallLayer for ScriptedEnd {
        async fn send(&self, call: Call) -> Outcome {
            let n = self.calls.fetch_add(1, Relaxed);
            (self.script)(n, call).await
        }
    }

    pub fn failure(code: Code) -> Failure {
        Failure::new(Delivery::Answered, Error::new(code, "scripted"))
    }

    pub fn call(rpc: Rpc, limit: Duration) -> Call {
        Call::new(rpc, Bytes::from_static(b"request"), Context::new(Instant::now() + limit))
    }
}
