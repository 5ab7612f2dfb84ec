//! How this process calls services, in the order a call takes:
//!
//! deadline -> balance over the endpoint set -> one connection an instance. A call that no handler has
//! seen is tried once more elsewhere; every other failure is the caller's to see. Fallback, retries with
//! a budget and breakers have their places between these.

mod balance;
mod discover;
pub mod endpoint;
mod grpc;
mod health;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use tokio::time::Instant;

use crate::check::Check;
use crate::config;
use crate::context::Context;
use crate::error::{Code, Error};
use crate::metrics::Metrics;
use crate::registry::ViewHandle;
use crate::rpc::Rpc;

use endpoint::State;

pub use discover::Snapshot;
pub use health::{identity, probe};

/// A decoded answer.
#[derive(Clone, Debug)]
pub struct Reply<T> {
    /// The message.
    pub message: T,
    /// The initial metadata: `x-degraded` and the like.
    pub headers: HeaderMap,
}

/// Calls services by name. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    services: Arc<BTreeMap<&'static str, Service>>,
    metrics: Metrics,
}

/// How long after its start a client waits for the registry's first word before it says that nobody is
/// there.
const FIRST_VIEW: Duration = Duration::from_secs(1);

struct Service {
    started: Instant,
    set: discover::Set,
    balance: Box<dyn balance::Balance>,
}

impl Client {
    /// Begins to follow the services that this process calls and connects to their instances. `prefix`
    /// is that of their keys and part of their identity.
    /// Must be called inside a tokio runtime.
    #[must_use]
    pub fn new(
        services: &[&'static str],
        settings: &config::Client,
        prefix: &str,
        view: &ViewHandle,
        metrics: &Metrics,
    ) -> Self {
        let shared = Arc::new(settings.clone());
        let follow = |name: &&'static str| {
            let identity = identity(prefix, name);
            let set = discover::Set::follow(name, identity, shared.clone(), view.clone(), metrics.clone());
            let balance = balance::of(settings.balancer);
            (*name, Service { started: Instant::now(), set, balance })
        };
        Self { services: Arc::new(services.iter().map(follow).collect()), metrics: metrics.clone() }
    }

    /// Returns the endpoints of every service that is called, for `/status` and `/readyz`.
    #[must_use]
    pub fn snapshots(&self) -> BTreeMap<&'static str, Arc<Snapshot>> {
        let each = self.services.iter();
        each.map(|(name, service)| (*name, service.set.now())).collect()
    }

    /// Makes one call: checks the request, picks an instance, sends, decodes.
    ///
    /// *Cancellation*: dropping the future cancels the handler at the other end.
    ///
    /// # Errors
    /// [`Code::BadRequest`] for a request over its limits (nothing is sent), [`Code::Timeout`] at the
    /// context's deadline, [`Code::Unavailable`] if no instance can be called or the one that was called
    /// broke; else what the service said.
    pub async fn call<Q, A>(
        &self,
        rpc: &'static Rpc,
        request: &Q,
        context: &Context,
    ) -> Result<Reply<A>, Error>
    where
        Q: prost::Message + Check,
        A: prost::Message + Default,
    {
        request.check()?;
        let framed = grpc::frame(request)?;
        if context.remaining().is_zero() {
            return Err(timeout(rpc)); // nothing is sent that nobody waits for
        }
        let attempts = self.attempts(rpc, framed, context);
        let answer = match tokio::time::timeout_at(context.deadline, attempts).await {
            Ok(answer) => answer?,
            Err(_) => return Err(timeout(rpc)),
        };
        let message = A::decode(answer.message).map_err(|error| {
            tracing::error!(%error, rpc = rpc.path, "answer cannot be decoded");
            Error::unavailable(format!("{} gave a garbled answer", rpc.service))
        })?;
        Ok(Reply { message, headers: answer.headers })
    }

    async fn attempts(
        &self,
        rpc: &Rpc,
        framed: bytes::Bytes,
        context: &Context,
    ) -> Result<grpc::Answer, Error> {
        let Some(service) = self.services.get(rpc.service) else {
            return Err(Error::new(Code::Internal, format!("{} is not called here", rpc.service)));
        };
        let first = service.pick(rpc, None).await?;
        match self.attempt(&first, rpc, framed.clone(), context).await {
            Ok(answer) => Ok(answer),
            Err(grpc::Failure::Failed(error)) => Err(error),
            Err(grpc::Failure::NotSent(error)) => {
                let Ok(second) = service.pick(rpc, Some(&first)).await else {
                    return Err(error);
                };
                self.metrics.retry(rpc.service, "not_sent");
                match self.attempt(&second, rpc, framed, context).await {
                    Ok(answer) => Ok(answer),
                    Err(grpc::Failure::Failed(error) | grpc::Failure::NotSent(error)) => Err(error),
                }
            }
        }
    }

    async fn attempt(
        &self,
        endpoint: &endpoint::Endpoint,
        rpc: &Rpc,
        framed: bytes::Bytes,
        context: &Context,
    ) -> Result<grpc::Answer, grpc::Failure> {
        let begun = Instant::now();
        let _in_flight = endpoint.begin();
        let result = grpc::exchange(endpoint, rpc, framed, context).await;
        let code = match &result {
            Ok(_) => tonic::Code::Ok,
            Err(grpc::Failure::NotSent(error) | grpc::Failure::Failed(error)) => error.code.grpc(),
        };
        self.metrics.attempt(rpc.grpc_service, rpc.method, code, begun.elapsed());
        result
    }
}

impl Service {
    /// Returns the instance for the next attempt, another than `not` if there is one. Waits only while
    /// no instance is usable and a first connection is being opened.
    async fn pick(
        &self,
        rpc: &Rpc,
        not: Option<&Arc<endpoint::Endpoint>>,
    ) -> Result<Arc<endpoint::Endpoint>, Error> {
        let mut changes = self.set.changes();
        loop {
            let snapshot = self.set.now();
            let mut any = None;
            for _ in 0..snapshot.usable.len() {
                let Some(picked) = self.balance.pick(rpc, &snapshot.usable) else {
                    break;
                };
                // the connection may have broken since the snapshot
                if !matches!(picked.state(), State::Up | State::NotServing) {
                    continue;
                }
                if not.is_some_and(|not| Arc::ptr_eq(not, picked)) {
                    any = Some(picked);
                    continue;
                }
                return Ok(picked.clone());
            }
            if let Some(only) = any {
                return Ok(only.clone());
            }
            let none = || Error::unavailable(format!("no instance of {} can be called", rpc.service));
            if snapshot.connecting {
                changes.changed().await.map_err(|_| none())?;
                continue;
            }
            // a process that has just started is about to learn who is there
            let until = self.started + FIRST_VIEW;
            if snapshot.known || Instant::now() >= until {
                return Err(none());
            }
            if !matches!(tokio::time::timeout_at(until, changes.changed()).await, Ok(Ok(()))) {
                return Err(none());
            }
        }
    }
}

fn timeout(rpc: &Rpc) -> Error {
    Error::new(Code::Timeout, format!("{} did not answer in time", rpc.service))
}
