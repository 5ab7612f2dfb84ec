//! How this process calls services, in the order a call takes:
//!
//! ```text
//! deadline -> fallback -> retry (budget) -> balance -> [per instance: breaker, in-flight limit, load] -> connections
//! ```
//!
//! Each is a `tower::Service` over a `call::Call` in a file of its own. They are always ready, and fail at
//! once where they would have to wait. `discover` feeds the balancer from the side, `outcome` decides
//! what an exchange that went wrong means, and [`crate::api::rpc`] says what each rpc allows.

mod balance;
mod call;
pub mod metrics;
pub mod policy;
mod scrape;
mod status;
mod transport;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use tokio::time::Instant;

use crate::api::error::{Code, Error};
use crate::api::rpc::Rpc;
use crate::api::validate::Check;
use crate::config;
use crate::context::Context;
use crate::registry::ViewHandle;

use balance::Balanced;
use balance::breaker::{self, Breakers};
use balance::discover::{self, Snapshot};
use balance::ejection::Ejection;
use call::{Call, Path as _};
use metrics::{Metrics, ServiceMetrics};
use policy::best_effort::Optional;
use policy::cache::{Cache, Key};
use policy::deadline::Deadline;
use policy::fallback::Fallback;
use policy::retry::{self, Retry};
use transport::exchange;

pub use balance::breaker::State as Breaker;
pub use transport::health::{identity, probe};
pub use transport::pool::State;

/// A decoded answer.
#[derive(Clone, Debug)]
pub struct Reply<T> {
    /// The message.
    pub message: T,
    /// The initial metadata: `x-degraded` and the like.
    pub headers: HeaderMap,
    /// True if an earlier attempt of this call may have had its effect already.
    pub repeated: bool,
}

/// Calls services by name. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    services: Arc<BTreeMap<&'static str, Service>>,
    cache: Arc<Cache>,
    default_deadline: Duration,
}

/// The part of the call path that the instances of one service share.
type Path = Deadline<Fallback<Deadline<Optional<Retry<Balanced>>>>>;

/// Longest time for which calls that can be done without are not made. Short, for nobody else would notice
/// that the service is back.
const OPTIONAL_BACKOFF: Duration = Duration::from_secs(5);

struct Service {
    set: discover::Set,
    path: Path,
    /// For calls that their callers can do without, see [`optional`].
    best_effort: Arc<Breakers>,
    meters: Arc<ServiceMetrics>,
}

impl Service {
    fn new(
        name: &'static str,
        prefix: &str,
        settings: &Arc<config::Client>,
        cache: Arc<Cache>,
        view: &ViewHandle,
        metrics: &Metrics,
    ) -> Self {
        let meters = Arc::new(metrics.service(name));
        let identity = identity(prefix, name);
        let set = discover::Set::follow(name, identity, settings.clone(), view.clone(), meters.clone());
        let instances = {
            let set = set.clone();
            move || set.now().usable.len()
        };
        let balance = Balanced::new(set.clone(), settings.balancer);
        let budget = retry::Shared::new(settings, meters.retry.clone(), instances);
        let retry = Retry::new(balance, Arc::new(budget));
        let numbers = breaker::Settings::from(&**settings).capped(OPTIONAL_BACKOFF);
        let ejection = Ejection::unbounded(meters.breaker_refused.clone());
        let best_effort =
            Arc::new(Breakers::new(numbers, Arc::new(ejection), meters.best_effort_transitions.clone()));
        let optional = Optional::new(retry, best_effort.clone());
        let ended = Deadline::new(optional, meters.deadline_exceeded.clone());
        let fallback = Fallback::new(ended, cache, meters.fallback.clone());
        let path = Deadline::new(fallback, meters.deadline_exceeded.clone());
        Self { set, path, best_effort, meters }
    }
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
        let cache = Arc::new(Cache::new(settings.fallback_kib * 1024, settings.fallback_age));
        let follow =
            |name: &&'static str| (*name, Service::new(name, prefix, &shared, cache.clone(), view, metrics));
        let services = services.iter().map(follow).collect();
        Self { services: Arc::new(services), cache: cache.clone(), default_deadline: settings.deadline }
    }

    /// Returns the endpoints of every service that is called, for `/status` and `/readyz`.
    #[must_use]
    pub fn snapshots(&self) -> BTreeMap<&'static str, Arc<Snapshot>> {
        let each = self.services.iter();
        each.map(|(name, service)| (*name, service.set.now())).collect()
    }

    /// Makes one call: checks the request, sends it down the path, decodes the answer.
    ///
    /// *Cancellation*: dropping the future cancels the handler at the other end.
    ///
    /// # Errors
    /// [`Code::BadRequest`] for a request over its limits (nothing is sent), [`Code::Timeout`] at the
    /// context's deadline, [`Code::Unavailable`] if no instance can be called or those that were called
    /// broke; else what the service said.
    pub async fn call<Q, A>(&self, rpc: Rpc, request: &Q, context: &Context) -> Result<Reply<A>, Error>
    where
        Q: prost::Message + Check,
        A: prost::Message + Default,
    {
        self.make(rpc, request, context, false).await
    }

    /// Makes a call whose answer the caller can do without: as [`Self::call`], but it fails at once while
    /// such calls keep failing.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub async fn call_optional<Q, A>(
        &self,
        rpc: Rpc,
        request: &Q,
        context: &Context,
    ) -> Result<Reply<A>, Error>
    where
        Q: prost::Message + Check,
        A: prost::Message + Default,
    {
        self.make(rpc, request, context, true).await
    }

    async fn make<Q, A>(
        &self,
        rpc: Rpc,
        request: &Q,
        context: &Context,
        optional: bool,
    ) -> Result<Reply<A>, Error>
    where
        Q: prost::Message + Check,
        A: prost::Message + Default,
    {
        request.check()?;
        let Some(service) = self.services.get(rpc.service()) else {
            return Err(Error::new(Code::Internal, format!("{} is not called here", rpc.service())));
        };
        let longest = rpc.policy().deadline.unwrap_or(self.default_deadline);
        let context = context.with_deadline(Instant::now() + longest);
        let call = Call { optional, ..Call::new(rpc, exchange::frame(request)?, context) };
        let key = Key::from(&call);
        let answer = service.path.send(call).await.map_err(|failure| failure.error)?;
        let message = A::decode(answer.message).map_err(|error| {
            tracing::error!(%error, rpc = rpc.path(), "answer cannot be decoded");
            // it would be given again
            self.cache.forget(&key);
            Error::unavailable(format!("{} gave a garbled answer", rpc.service()))
        })?;
        Ok(Reply { message, headers: answer.headers, repeated: answer.earlier > 0 })
    }
}
