//! How this process calls services: the call path. A call takes it from top to bottom, its outcome back up:
//!
//! ```text
//! Client::call        checks and encodes the request
//!   Deadline          ends the call at its deadline
//!   Fallback          uses the last good answer if there is no new one        (policy::cache)
//!   Deadline          ends the call a little earlier, so that the fallback still arrives
//!   BestEffort        fails best-effort calls at once while the service is out
//!   Retry             makes further attempts                    (policy::budget, race and hedge)
//!   Balancer          sends each attempt to one instance     (balance::pick, balance::discover)
//!
//!   of each instance (balance::endpoint):
//!   CircuitBreaker    refuses calls after too many failures        (balance::breaker, ejection)
//!   ConcurrencyLimit  refuses calls above the in-flight limit
//!   Measure           measures each attempt                                   (balance::load)
//!   Exchange          sends the request, reads the answer      (transport::pool, wire, outcome)
//! ```
//!
//! Each layer implements `call::CallLayer` in a file of its own. No layer queues calls: where it could not go
//! on it fails at once. `policy` imports from `balance`, and `balance` from `transport`, never the other way.
//! What each rpc allows is in [`crate::api::rpc`].

// these three are public for the benches
#[doc(hidden)]
pub mod balance;
#[doc(hidden)]
pub mod call;
mod gauges;
pub mod metrics;
#[doc(hidden)]
pub mod policy;
mod shared;
pub mod status;
mod transport;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use tokio::time::Instant;

use crate::api::error::{Code, Error};
use crate::api::headers::service_identity;
use crate::api::received::{Received, receive};
use crate::api::rpc::Rpc;
use crate::api::subject::About;
use crate::api::validate::Validate;
use crate::config;
use crate::context::Context;
use crate::registry::ViewHandle;

use balance::balancer::Balancer;
use balance::breaker::{BreakerSettings, Breakers};
use balance::discover::{EndpointSet, Snapshot};
use balance::ejection::EjectionLimit;
use call::{Call, CallLayer};
use metrics::{Metrics, ServiceMetrics};
use policy::best_effort::BestEffort;
use policy::budget::Budget;
use policy::cache::Cache;
use policy::deadline::Deadline;
use policy::fallback::Fallback;
use policy::retry::Retry;
use policy::retry_policy::RetryPolicy;
use shared::Limits;
use transport::connection::Dialer;
use transport::wire;

pub use shared::Shared;
pub use transport::connection::{Connect, Connector, Target, Tcp};
pub use transport::probe::probe;
pub use transport::secured::Secured;

/// Longest time for which best-effort calls of a service are suspended. It is short because only the probe of
/// such a call finds out that the service is back.
const MAX_BEST_EFFORT_BACKOFF: Duration = Duration::from_secs(5);

/// A decoded answer.
#[derive(Clone, Debug)]
pub struct Reply<T> {
    /// The message.
    pub message: T,
    /// The initial metadata: `x-degraded` and the like.
    pub headers: HeaderMap,
    /// True if an earlier attempt of this call may have been executed already.
    pub repeated: bool,
}

/// Calls services by name, on one thread. Cheap to clone.
#[derive(Clone)]
pub struct Client(Arc<Inner>);

struct Inner {
    services: BTreeMap<&'static str, Service>,
    cache: Cache,
    /// What it shares with the clients of other threads.
    shared: Arc<Shared>,
}

/// The layers of the call path that all calls of one service take.
type ServicePath = Deadline<Fallback<Deadline<BestEffort<Retry<Balancer>>>>>;

/// One service that is called.
struct Service {
    endpoints: EndpointSet,
    path: ServicePath,
    /// The breakers of best-effort calls.
    best_effort: Arc<Breakers>,
    metrics: Arc<ServiceMetrics>,
    /// That of retries.
    budget: Arc<Budget>,
}

impl Service {
    fn new(name: &'static str, limits: &Limits, shared: &Shared, cache: Cache, metrics: &Metrics) -> Self {
        let metrics = Arc::new(metrics.service(name));
        let (settings, view) = (shared.settings.clone(), shared.view.clone());
        let dialer = Dialer {
            connector: shared.connector.clone(),
            settings: settings.clone(),
            identity: service_identity(&shared.prefix, name),
            service: Arc::from(name),
        };
        let in_flight = limits.in_flight.clone();
        let endpoints = EndpointSet::follow(name, dialer, view, metrics.endpoint.clone(), in_flight);
        let best_effort = Arc::new(Breakers::new(
            BreakerSettings::from(&*settings).capped(MAX_BEST_EFFORT_BACKOFF),
            Arc::new(EjectionLimit::unbounded(metrics.endpoint.breaker_refused.clone())),
            metrics.best_effort_transitions.clone(),
        ));
        // from the last layer to the first
        let path = Balancer::new(endpoints.clone(), settings.balancer);
        let retries = RetryPolicy::new(&settings, &limits.reserves, metrics.retry.clone(), endpoints.clone());
        let budget = retries.budget();
        let path = Retry::new(path, retries);
        let path = BestEffort::new(path, best_effort.clone());
        let path = Deadline::new(path, metrics.deadline_exceeded.clone());
        let path = Fallback::new(path, cache, metrics.fallback.clone());
        let path = Deadline::new(path, metrics.deadline_exceeded.clone());
        Self { endpoints, path, best_effort, metrics, budget }
    }
}

impl Client {
    /// Begins to follow `services` and to connect to their instances by `connector`. `prefix` is the prefix of
    /// their keys in the registry and part of their identity.
    ///
    /// Must be called inside a tokio runtime.
    #[must_use]
    pub fn new(
        services: &[&'static str],
        settings: &config::Client,
        prefix: &str,
        view: &ViewHandle,
        metrics: &Metrics,
        connector: &Connector,
    ) -> Self {
        Self::on_thread(0, &Shared::new(services, settings, prefix, view, connector, 1), metrics)
    }

    /// As [`Self::new`], for a thread with a number, from 0. Must be called inside the runtime of that thread.
    #[must_use]
    pub fn on_thread(thread: usize, shared: &Arc<Shared>, metrics: &Metrics) -> Self {
        let (cache, metrics) = (shared.cache.of_thread(thread), metrics.of_thread(thread));
        let services = shared
            .limits
            .iter()
            .map(|(name, limits)| (*name, Service::new(name, limits, shared, cache.clone(), &metrics)))
            .collect();
        Self(Arc::new(Inner { services, cache, shared: shared.clone() }))
    }

    /// Returns what it shares with the clients of the same caller on other threads.
    #[must_use]
    pub fn shared(&self) -> Arc<Shared> {
        self.0.shared.clone()
    }

    /// Returns clients by caller: those of the threads of one caller together, in the order of the threads.
    #[must_use]
    pub fn by_caller(clients: &[Self]) -> Vec<Vec<&Self>> {
        let mut callers = Vec::<Vec<&Self>>::new();
        for client in clients {
            let same = |known: &&mut Vec<&Self>| {
                known.first().is_some_and(|known| Arc::ptr_eq(&known.0.shared, &client.0.shared))
            };
            match callers.iter_mut().find(same) {
                Some(known) => known.push(client),
                None => callers.push(vec![client]),
            }
        }
        callers
    }

    /// Returns the instances of every service that is called, for `/status` and `/readyz`.
    #[must_use]
    pub fn snapshots(&self) -> BTreeMap<&'static str, Arc<Snapshot>> {
        let each = self.0.services.iter();
        each.map(|(name, service)| (*name, service.endpoints.now())).collect()
    }

    /// Makes one call: checks the request, sends it down the call path, decodes the answer.
    ///
    /// *Cancellation*: dropping the future cancels the handler at the other end.
    ///
    /// # Errors
    /// [`Code::BadRequest`] for a request over its limits (nothing is sent), [`Code::Timeout`] at the
    /// context's deadline, [`Code::Unavailable`] if no instance can be called or the attempts failed; else the
    /// error that the service answered with.
    pub async fn call<Q, A>(&self, rpc: Rpc, request: &Q, context: &Context) -> Result<Reply<A>, Error>
    where
        Q: prost::Message + Validate + About,
        A: Received,
    {
        self.send(rpc, request, context, false).await
    }

    /// Makes a best-effort call, whose answer the caller can do without: as [`Self::call`], but it fails at once
    /// while such calls keep failing.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub async fn call_best_effort<Q, A>(
        &self,
        rpc: Rpc,
        request: &Q,
        context: &Context,
    ) -> Result<Reply<A>, Error>
    where
        Q: prost::Message + Validate + About,
        A: Received,
    {
        self.send(rpc, request, context, true).await
    }

    async fn send<Q, A>(
        &self,
        rpc: Rpc,
        request: &Q,
        context: &Context,
        best_effort: bool,
    ) -> Result<Reply<A>, Error>
    where
        Q: prost::Message + Validate + About,
        A: Received,
    {
        request.validate()?;
        let Some(service) = self.0.services.get(rpc.service()) else {
            return Err(Error::new(Code::Internal, format!("{} is not called here", rpc.service())));
        };
        let limit = rpc.policy().deadline.unwrap_or(self.0.shared.settings.deadline);
        let context = context.with_deadline(Instant::now() + limit);
        let call =
            Call { best_effort, about: request.about(), ..Call::new(rpc, wire::frame(request)?, context) };
        exchange(&service.path, &self.0.cache, call).await
    }
}

/// Sends a call and decodes its answer. A whole answer to a read is kept for the fallback.
async fn exchange<A>(path: &impl CallLayer, cache: &Cache, call: Call) -> Result<Reply<A>, Error>
where
    A: Received,
{
    let rpc = call.rpc;
    let answer = path.send(call).await.map_err(|failure| failure.error)?;
    let message = receive(&answer.message).map_err(|error| {
        tracing::error!(error, rpc = rpc.path(), "answer cannot be decoded");
        Error::unavailable(format!("{} gave a malformed answer", rpc.service()))
    })?;
    if let Some(read) = &answer.read {
        cache.keep(read, &answer.message);
    }
    Ok(Reply { message, headers: answer.headers, repeated: answer.earlier_executions > 0 })
}

#[cfg(test)]
mod tests;
