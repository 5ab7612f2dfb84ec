//! One instance as its callers see it: its registration, its connections, its load, its breakers, and the layers
//! of the call path that it has for itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use http::HeaderValue;
use prometheus::IntCounter;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::api::rpc::Rpc;
use crate::client::balance::breaker::Breakers;
use crate::client::balance::breaker_state::{BreakerState, Transitions};
use crate::client::balance::circuit_breaker::CircuitBreaker;
use crate::client::balance::concurrency_limit::ConcurrencyLimit;
use crate::client::balance::ejection::EjectionLimit;
use crate::client::balance::in_flight::InFlightLimits;
use crate::client::balance::load::Load;
use crate::client::balance::measure::Measure;
use crate::client::call::{Call, CallLayer, Outcome};
use crate::client::transport::connection::Dialer;
use crate::client::transport::exchange::Exchange;
use crate::client::transport::pool::Pool;
use crate::client::transport::slots::{ConnectionMetrics, PoolEvents};
use crate::client::transport::state::ConnectionState;
use crate::limit::Limit;
use crate::registry::Instance;
use crate::telemetry::metrics::RpcDurations;

/// Share of failures above which `/status` says that an instance gets fewer calls: they cost it more than any
/// usual difference in latency.
const NOTABLE_FAILURES: f64 = 0.1;

/// What is counted of the instances of one service.
#[derive(Clone, Debug)]
pub struct EndpointMetrics {
    /// Attempts by rpc and code.
    pub attempts: Arc<RpcDurations>,
    /// Breakers that changed their state.
    pub transitions: Transitions,
    /// Breakers that were not allowed to open.
    pub breaker_refused: IntCounter,
    /// Attempts that were refused by an in-flight limit.
    pub limit_refused: IntCounter,
    /// Connections that were opened, lost and replaced.
    pub connections: ConnectionMetrics,
}

/// What all instances of a service share.
pub struct ServiceContext {
    /// The service's name.
    pub service: &'static str,
    /// How connections to its instances are opened.
    pub dialer: Dialer,
    /// How many breakers may be open.
    pub ejection: Arc<EjectionLimit>,
    /// How many calls may be in flight at each instance.
    pub in_flight: Arc<InFlightLimits>,
    /// What is counted.
    pub metrics: EndpointMetrics,
    /// Notified when the state of an instance changes.
    pub changed: Arc<Notify>,
}

/// The layers of the call path that each instance has for itself.
type EndpointPath = CircuitBreaker<ConcurrencyLimit<Measure<Exchange>>>;

/// One instance. Cheap to clone.
#[derive(Clone)]
pub struct Endpoint {
    /// Its registration.
    pub instance: Arc<Instance>,
    /// Distinguishes it from every other endpoint of this process, from 1.
    pub number: u64,
    service: &'static str,
    /// Its load.
    pub load: Arc<Load>,
    /// Its breakers.
    pub breakers: Arc<Breakers>,
    in_flight: Arc<Limit>,
    pool: Arc<Pool>,
    /// See [`Self::adopted_id`].
    adopted: Arc<ArcSwapOption<String>>,
    path: EndpointPath,
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Endpoint").field("addr", &self.instance.addr).finish_non_exhaustive()
    }
}

impl Endpoint {
    /// Begins to connect to an instance.
    #[must_use]
    pub fn open(instance: Arc<Instance>, context: &ServiceContext) -> Self {
        static NEXT_NUMBER: AtomicU64 = AtomicU64::new(1);
        let (settings, metrics) = (&*context.dialer.settings, &context.metrics);
        let in_flight = context.in_flight.of(&instance);
        let load = Arc::new(Load::new(settings, in_flight.clone()));
        let transitions = metrics.transitions.of_instance(&instance.addr);
        let breakers = Breakers::new(settings.into(), context.ejection.clone(), transitions);
        let breakers = Arc::new(breakers);
        let adopted = Arc::new(ArcSwapOption::empty());

        let events = PoolEvents {
            changed: context.changed.clone(),
            on_connect: Box::new({
                let (load, breakers) = (load.clone(), breakers.clone());
                let last = ArcSwapOption::<String>::empty();
                move |id| {
                    load.reset();
                    // breakers are reset for another process, not for the same one behind a new connection
                    let Some(id) = id else { return };
                    let before = last.swap(Some(Arc::new(id.to_owned())));
                    if before.is_some_and(|before| id != before.as_str()) {
                        breakers.reset();
                    }
                }
            }),
        };
        let addr = instance.addr.clone();
        let pool = Arc::new(Pool::open(addr, context.dialer.clone(), events, metrics.connections.clone()));
        let exchange = Exchange::new(context.service, pool.clone(), {
            let (adopted, instance) = (adopted.clone(), instance.clone());
            move |id| adopt(&adopted, &instance, id)
        });
        let measure = Measure::new(exchange, load.clone(), metrics.attempts.clone());
        let limited = ConcurrencyLimit::new(measure, in_flight.clone(), metrics.limit_refused.clone());
        let path = CircuitBreaker::new(limited, breakers.clone(), load.clone());
        let number = NEXT_NUMBER.fetch_add(1, Relaxed);
        Self { instance, number, service: context.service, load, breakers, in_flight, pool, adopted, path }
    }

    /// Returns the same endpoint with a newer registration. Only for the same process (the same id): a new
    /// process at an old address gets an endpoint of its own, without the history of the old one.
    #[must_use]
    pub fn with_registration(&self, instance: Arc<Instance>) -> Self {
        Self { instance, ..self.clone() }
    }

    /// Returns whether it can be called.
    #[must_use]
    pub fn state(&self) -> ConnectionState {
        self.pool.state()
    }

    /// Returns true if it takes new calls: connected, healthy and not draining.
    #[must_use]
    pub fn serves(&self) -> bool {
        self.state() == ConnectionState::Up && !self.instance.draining
    }

    /// Sets the state of its connections, without one.
    #[cfg(test)]
    pub fn pretend(&self, state: ConnectionState) {
        self.pool.pretend(state);
    }

    /// Counts a call as in flight until the permit is dropped.
    #[cfg(test)]
    pub fn hold(&self) -> crate::limit::Permit {
        self.in_flight.acquire(1)
    }

    /// Returns how many calls are in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.used()
    }

    /// Returns true if it has as many calls in flight as it may have.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.in_flight.is_full()
    }

    /// Returns how many connections are open.
    #[must_use]
    pub fn open_connections(&self) -> usize {
        self.pool.open_connections()
    }

    /// Returns what last went wrong.
    #[must_use]
    pub fn last_error(&self) -> Option<Arc<String>> {
        self.pool.last_error()
    }

    /// Returns the instance id in the last answer, if it is not the registered one: the instance was restarted
    /// at its address while the registry was away.
    #[must_use]
    pub fn adopted_id(&self) -> Option<Arc<String>> {
        self.adopted.load_full()
    }

    /// Returns the rpcs whose breaker is not closed.
    pub fn tripped(&self) -> impl Iterator<Item = (Rpc, BreakerState)> {
        let now = Instant::now();
        let states = Rpc::of_service(self.service).map(move |rpc| (rpc, self.breakers.state(rpc, now)));
        states.filter(|(_, state)| *state != BreakerState::Closed)
    }

    /// Returns how long the breaker of an rpc has been open; `None` while it is closed.
    #[must_use]
    pub fn open_for(&self, rpc: Rpc) -> Option<Duration> {
        self.breakers.open_for(rpc, Instant::now())
    }

    /// Returns true if so many of its recent answers to an rpc were failures that it gets hardly any calls.
    fn fails(&self) -> bool {
        Rpc::of_service(self.service).any(|rpc| self.load.failures(rpc) > NOTABLE_FAILURES)
    }

    /// Returns why it gets no calls, or fewer than others, in a few words for `/status`; `None` if it gets its
    /// share. `others` is true if another instance serves: one that is alone is called as long as it is connected.
    #[must_use]
    pub fn why_avoided(&self, others: bool) -> Option<String> {
        let unless_alone = |reason: &str| {
            if others {
                reason.to_owned()
            } else {
                format!("{reason}; called only because no other one serves")
            }
        };
        let tripped: Vec<_> = self.tripped().map(|(rpc, _)| rpc.method()).collect();
        Some(match self.state() {
            ConnectionState::Connecting => "a connection is being opened".to_owned(),
            ConnectionState::Down => "it cannot be connected to".to_owned(),
            ConnectionState::WrongService => "another service answers at its address".to_owned(),
            ConnectionState::Unresponsive => unless_alone("it does not answer a health check"),
            ConnectionState::NotServing => unless_alone("it says that it does not serve"),
            ConnectionState::Up if self.instance.draining => unless_alone("it is draining"),
            ConnectionState::Up if !tripped.is_empty() => format!("breaker open for {}", tripped.join(", ")),
            ConnectionState::Up if self.is_full() => "it has as many calls in flight as it may".to_owned(),
            ConnectionState::Up if others && self.fails() => {
                "recent calls of it failed: others are preferred".to_owned()
            }
            ConnectionState::Up => return None,
        })
    }
}

impl CallLayer for Endpoint {
    async fn send(&self, call: Call) -> Outcome {
        self.path.send(call).await
    }
}

/// Notes the instance id of an answer.
fn adopt(adopted: &ArcSwapOption<String>, instance: &Instance, id: &HeaderValue) {
    let known = adopted.load();
    let registered = id == instance.id.as_str() || instance.id.is_empty();
    match known.as_deref() {
        Some(known) if id == known.as_str() => {}
        None if registered => {}
        _ if registered => adopted.store(None),
        _ => {
            let id = id.to_str().unwrap_or_default();
            tracing::info!(addr = instance.addr, id, "another instance of the service answers here");
            adopted.store(Some(Arc::new(id.to_owned())));
        }
    }
}
