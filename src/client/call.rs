//! What goes down the call path and what comes back: a call, an answer, or a failure in terms that every
//! layer can judge.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::HeaderMap;
use tokio::time::Instant;

use crate::api::error::{Code, Error};
use crate::api::rpc::Rpc;
use crate::context::Context;

/// One call on its way. Cheap to clone: a retry sends the same bytes again.
#[derive(Clone, Debug)]
pub struct Call {
    /// Which rpc.
    pub rpc: Rpc,
    /// The request as it goes over the wire, with its length prefix.
    pub framed: Bytes,
    /// Deadline and ids. `previous_attempts` counts those of this call too.
    pub context: Context,
    /// How often the calls above had been tried when this one began.
    pub attempts_above: u32,
    /// When this attempt has taken so long that its instance is to blame; at the latest the deadline. The
    /// retry layer may then give it up.
    pub patience: Instant,
    /// Instances that have been tried, by number: others come first.
    pub tried: Vec<u64>,
    /// The number of the instance that has this attempt, 0 before there is one; shared by all clones of the
    /// call, so that a layer above knows it even of an attempt that it gives up.
    pub picked: Arc<AtomicU64>,
    /// True if the breaker lets it pass though it is open: every instance's is.
    pub forced: bool,
    /// True if the caller can do without an answer, and would rather not wait for one that will not come.
    pub optional: bool,
}

impl Call {
    /// Returns a call at its start.
    #[must_use]
    pub fn new(rpc: Rpc, framed: Bytes, context: Context) -> Self {
        Self {
            rpc,
            framed,
            patience: context.deadline,
            attempts_above: context.previous_attempts,
            context,
            tried: Vec::new(),
            picked: Arc::default(),
            forced: false,
            optional: false,
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
    /// How many attempts before this one a handler may have seen.
    pub earlier: u32,
}

/// How far a failed attempt got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// There was nobody to send it to.
    Nobody,
    /// It never left this process: no connection, or an instance at its limit. Free to go elsewhere.
    Kept,
    /// The peer says that no handler has seen it (refused stream, GOAWAY, another service).
    Unprocessed,
    /// A handler may have seen it: the connection broke, or what came back says nothing.
    Unknown,
    /// The peer answered with a status.
    Answered,
}

/// What a server says about another attempt (`grpc-retry-pushback-ms`, gRPC proposal A6): it sheds load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushback {
    /// None, please.
    Never,
    /// One after this time.
    After(Duration),
}

/// A failed attempt or call.
#[derive(Clone, Debug)]
pub struct Failure {
    /// What the caller is told; its code is what retry, breaker and metrics see.
    pub error: Error,
    /// How far it got.
    pub reach: Reach,
    /// The server's word on trying again, if it had one.
    pub pushback: Option<Pushback>,
    /// The connection that broke under the call, by number: many calls fail with it at once, but it is
    /// one failure.
    pub broken: Option<u64>,
}

impl Failure {
    /// Returns a failure that no attempt stands behind.
    #[must_use]
    pub const fn new(reach: Reach, error: Error) -> Self {
        Self { error, reach, pushback: None, broken: None }
    }

    /// Returns the failure of a call whose time is over.
    #[must_use]
    pub fn timeout(rpc: Rpc) -> Self {
        Self::new(
            Reach::Unknown,
            Error::new(Code::Timeout, format!("{} did not answer in time", rpc.service())),
        )
    }

    /// Returns true if a handler may have seen the attempt.
    #[must_use]
    pub const fn maybe_processed(&self) -> bool {
        matches!(self.reach, Reach::Unknown | Reach::Answered)
    }

    /// Returns true if the instance is to blame, after an attempt that `took` so long: it cannot serve. What
    /// a caller did wrong, its impatience, and load that an instance sheds, does not count.
    #[must_use]
    pub fn is_instances_fault(&self, took: Duration) -> bool {
        self.is_outage(took) && self.maybe_processed() && self.pushback.is_none()
    }

    /// Returns true if a call that `took` so long failed for want of somebody who can serve, whoever that is.
    #[must_use]
    pub fn is_outage(&self, took: Duration) -> bool {
        match self.error.code {
            Code::Unavailable | Code::Internal => true,
            Code::Timeout => took >= FAIR,
            Code::BadRequest | Code::NotFound | Code::TooManyRequests => false,
        }
    }
}

/// Time that an instance has a right to. A caller with a shorter deadline can make an attempt end earlier,
/// but not the instance look bad: else anyone could open the breakers with `x-request-timeout-ms: 1`.
pub const FAIR: Duration = Duration::from_millis(100);

/// What every layer returns.
pub type Outcome = Result<Answer, Failure>;
/// A call under way, as tower wants it. Dropping it cancels the call.
pub type Pending = BoxFuture<'static, Outcome>;

/// One layer of the call path with all below it. Always ready: where a layer would have to wait, it fails
/// at once instead, so that the layer above can act.
///
/// Each layer is a `tower::Service<Call>` too. Between themselves they call each other by this trait, which
/// needs no box and no clone of the layers below for each call.
pub trait Path: Send + Sync + 'static {
    /// Sends a call.
    ///
    /// *Cancellation*: dropping the future cancels the call, and the handler at the other end.
    fn send(&self, call: Call) -> impl Future<Output = Outcome> + Send;
}

/// Implements [`Path`] and `tower::Service<Call>` for a layer by its method `run(&self, Call) -> Outcome`.
macro_rules! layer {
    ($layer:ident $(<$inner:ident>)?) => {
        impl$(<$inner: $crate::client::call::Path>)? $crate::client::call::Path for $layer$(<$inner>)? {
            fn send(
                &self,
                call: $crate::client::call::Call,
            ) -> impl Future<Output = $crate::client::call::Outcome> + Send {
                self.run(call)
            }
        }

        impl$(<$inner: $crate::client::call::Path + Clone>)? tower::Service<$crate::client::call::Call>
            for $layer$(<$inner>)?
        {
            type Response = $crate::client::call::Answer;
            type Error = $crate::client::call::Failure;
            type Future = $crate::client::call::Pending;

            fn poll_ready(
                &mut self,
                _: &mut std::task::Context<'_>,
            ) -> std::task::Poll<Result<(), Self::Error>> {
                std::task::Poll::Ready(Ok(()))
            }

            fn call(&mut self, call: $crate::client::call::Call) -> Self::Future {
                let layer = self.clone();
                Box::pin(async move { layer.run(call).await })
            }
        }
    };
}
pub(super) use layer;

#[cfg(test)]
pub mod testing {
    //! A path's end that does as a test says.

    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use super::*;

    type Script = dyn Fn(usize, Call) -> Pending + Send + Sync;

    /// Answers the calls by a script; counts them.
    #[derive(Clone)]
    pub struct End {
        script: Arc<Script>,
        calls: Arc<AtomicUsize>,
    }

    impl End {
        pub fn new<F>(script: impl Fn(usize, Call) -> F + Send + Sync + 'static) -> Self
        where
            F: Future<Output = Outcome> + Send + 'static,
        {
            Self { script: Arc::new(move |n, call| Box::pin(script(n, call))), calls: Arc::default() }
        }

        pub fn calls(&self) -> usize {
            self.calls.load(Relaxed)
        }

        async fn run(&self, call: Call) -> Outcome {
            let n = self.calls.fetch_add(1, Relaxed);
            (self.script)(n, call).await
        }
    }
    layer!(End);

    pub fn failure(code: Code) -> Failure {
        Failure::new(Reach::Answered, Error::new(code, "scripted"))
    }

    pub fn call(rpc: Rpc, limit: Duration) -> Call {
        Call::new(rpc, Bytes::from_static(b"request"), Context::new(Instant::now() + limit))
    }
}
