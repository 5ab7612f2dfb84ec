//! What goes down the call path and what comes back: a call, then an answer or a failure in terms that every
//! layer understands; and [`CallLayer`], the trait of all layers.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::api::error::{Code, Error};
use crate::api::rpc::Rpc;
use crate::api::subject::Subjects;
use crate::context::Context;

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
    /// How long the call had at its start.
    pub time_limit: Duration,
    /// Numbers of the instances that have been tried. The balancer prefers others.
    pub tried: Vec<u64>,
    /// True if this attempt races another one of the call. It goes only to an instance that was not tried and whose
    /// breaker is closed.
    pub hedge: bool,
    /// What is known of this attempt while it is under way. All clones of the call share it.
    pub attempt: Arc<Attempt>,
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
            time_limit: context.remaining(),
            about: [None; 2],
            inherited_attempts: context.previous_attempts,
            context,
            tried: Vec::new(),
            hedge: false,
            attempt: Arc::default(),
            ignore_breaker: false,
            best_effort: false,
        }
    }

    /// Notes the instance of this attempt among those that have been tried.
    pub fn note_tried(&mut self) {
        let picked = self.attempt.picked();
        if self.tried.last() != Some(&picked) {
            self.tried.push(picked);
        }
    }

    /// Returns true if an attempt that begins now has the time that calls have by default: its caller has not
    /// shortened it, and no earlier attempt has used more than a tenth. Only then its timeout is the instance's fault;
    /// else anyone could open the breakers with `x-request-timeout-ms: 1`.
    #[must_use]
    pub fn has_full_time(&self) -> bool {
        !self.context.shortened && self.context.remaining() * 10 >= self.time_limit * 9
    }
}

/// What the layers below tell the retry layer of an attempt that is under way, and the retry layer them.
#[derive(Debug, Default)]
pub struct Attempt {
    /// The number of the instance that has it, 0 before one is picked.
    picked: AtomicU64,
    /// True once another attempt of the call has won.
    lost: AtomicBool,
    /// Notified to have the connection that carries it checked.
    check: OnceLock<Arc<Notify>>,
}

impl Attempt {
    /// Returns the number of the instance that has it, 0 before one is picked.
    #[must_use]
    pub fn picked(&self) -> u64 {
        self.picked.load(Relaxed)
    }

    /// Notes which instance has it.
    pub fn set_picked(&self, number: u64) {
        self.picked.store(number, Relaxed);
    }

    /// Returns true if another attempt of the call has won: then its end says nothing of its caller or its instance.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.lost.load(Relaxed)
    }

    /// Notes that another attempt of the call has won.
    pub fn set_lost(&self) {
        self.lost.store(true, Relaxed);
    }

    /// Notes how the connection that carries it can be checked.
    pub fn set_check(&self, check: Arc<Notify>) {
        let _ = self.check.set(check);
    }

    /// Has the connection that carries it checked: it is slower than usual.
    pub fn check_connection(&self) {
        if let Some(check) = self.check.get() {
            check.notify_one();
        }
    }
}

/// What distinguishes reads: the rpc and the whole request.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// Which rpc.
    pub rpc: Rpc,
    /// The request as it goes over the wire.
    pub request: Bytes,
}

/// One read, as the cache of the fallback knows it.
#[derive(Clone, Debug)]
pub struct Read {
    /// What distinguishes it.
    pub key: Key,
    /// What it is about.
    pub about: Subjects,
    /// When it began.
    pub began: Instant,
    /// The last write that callers above know of.
    pub written: Option<Instant>,
}

impl Read {
    /// Returns the read that begins now with a call.
    #[must_use]
    pub fn begin(call: &Call) -> Self {
        let key = Key { rpc: call.rpc, request: call.framed.clone() };
        Self { key, about: call.about, began: Instant::now(), written: call.context.written }
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
    /// The read that it answers, if it may be kept for the fallback.
    pub read: Option<Read>,
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

    /// Returns true if the service itself has answered: no other instance would say anything else.
    #[must_use]
    pub const fn is_answer(&self) -> bool {
        matches!(self.error.code, Code::BadRequest | Code::NotFound)
    }

    /// Returns true if the instance is to blame for the failure of an attempt. It is not for what the caller did
    /// wrong, for a time limit that was shorter than usual (`full_time` is false), or for load that it sheds.
    #[must_use]
    pub fn is_instance_fault(&self, full_time: bool) -> bool {
        self.is_outage(full_time) && self.maybe_processed() && self.pushback.is_none()
    }

    /// Returns true if a call failed because the service could not serve it, whichever instance is to blame.
    /// `full_time` says whether it had the time that calls have by default.
    #[must_use]
    pub fn is_outage(&self, full_time: bool) -> bool {
        match self.error.code {
            Code::Unavailable | Code::Internal => true,
            Code::Timeout => full_time,
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

    use std::sync::atomic::AtomicUsize;

    use futures_util::future::BoxFuture;
    use tokio::time::Instant;

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
