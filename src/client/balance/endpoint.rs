//! One instance as a caller sees it: what the registry says of it, its connections, its load, its breakers,
//! and the part of the call path that is its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use arc_swap::ArcSwapOption;
use http::HeaderValue;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::api::rpc::Rpc;
use crate::client::balance::breaker::{self, Breakers};
use crate::client::balance::ejection::Ejection;
use crate::client::balance::guard::Guard;
use crate::client::balance::in_flight::{InFlight, Limit};
use crate::client::balance::load::{Load, Measure};
use crate::client::call::{Call, Outcome, Path as _};
use crate::client::metrics::ServiceMetrics;
use crate::client::transport::exchange::Exchange;
use crate::client::transport::pool::{Pool, State, Told};
use crate::config;
use crate::registry::Instance;

/// What all instances of a service share.
pub struct Common {
    /// The service's name.
    pub service: &'static str,
    /// Which service an instance must be, `<key prefix><service>`.
    pub identity: HeaderValue,
    /// How it is called.
    pub settings: Arc<config::Client>,
    /// How many breakers may be open.
    pub ejection: Arc<Ejection>,
    /// What is counted.
    pub meters: Arc<ServiceMetrics>,
    /// Notified by an instance whose state changed.
    pub changed: Arc<Notify>,
}

/// The part of the call path that each instance has for itself.
type Path = Guard<Limit<Measure<Exchange>>>;

/// One instance. Cheap to clone.
#[derive(Clone)]
pub struct Endpoint {
    /// What the registry says of it.
    pub instance: Arc<Instance>,
    /// Sets it apart from every other one of this process, from 1.
    pub number: u64,
    service: &'static str,
    /// How loaded it is.
    pub load: Arc<Load>,
    /// Whether it gets calls.
    pub breakers: Arc<Breakers>,
    in_flight: Arc<InFlight>,
    limit: usize,
    pool: Arc<Pool>,
    /// The id that answered last, if it is not the registered one: it restarted while etcd was away.
    adopted: Arc<ArcSwapOption<String>>,
    path: Path,
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Endpoint").field("addr", &self.instance.addr).finish_non_exhaustive()
    }
}

impl Endpoint {
    /// Begins to connect.
    #[must_use]
    pub fn open(instance: Arc<Instance>, common: &Common) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let (settings, meters) = (&common.settings, &common.meters);
        let in_flight = Arc::<InFlight>::default();
        let load = Arc::new(Load::new(settings, in_flight.clone()));
        let numbers = breaker::Settings::from(&**settings);
        let breakers = Breakers::new(numbers, common.ejection.clone(), meters.transitions.clone());
        let breakers = Arc::new(breakers);
        let adopted = Arc::new(ArcSwapOption::empty());

        let told = Told {
            changed: common.changed.clone(),
            arrived: Box::new({
                let (load, breakers) = (load.clone(), breakers.clone());
                let last = ArcSwapOption::<String>::empty();
                move |id| {
                    load.reset();
                    // another process has another history; the same one behind a new connection has not
                    let Some(id) = id else { return };
                    let before = last.swap(Some(Arc::new(id.to_owned())));
                    if before.is_some_and(|before| id != before.as_str()) {
                        breakers.reset();
                    }
                }
            }),
            meters: meters.connections.clone(),
        };
        let addr = instance.addr.clone();
        let pool = Arc::new(Pool::open(addr, common.identity.clone(), settings, told));
        let exchange = Exchange::new(common.service, pool.clone(), {
            let (adopted, instance) = (adopted.clone(), instance.clone());
            move |id| adopt(&adopted, &instance, id)
        });
        let measure = Measure::new(exchange, load.clone(), meters.attempts.clone());
        let limit = settings.max_in_flight;
        let refused = meters.limit_refused.clone();
        let limited = Limit::new(measure, in_flight.clone(), limit, refused);
        let path = Guard::new(limited, breakers.clone(), load.clone());
        let number = NEXT.fetch_add(1, Relaxed);
        let service = common.service;
        Self { instance, number, service, load, breakers, in_flight, limit, pool, adopted, path }
    }

    /// Returns the same connections under newer attributes. Only for the same process (the same id): a
    /// new one at an old address wants connections of its own, without the old one's past.
    #[must_use]
    pub fn renamed(&self, instance: Arc<Instance>) -> Self {
        Self { instance, ..self.clone() }
    }

    /// Returns whether it can be called.
    #[must_use]
    pub fn state(&self) -> State {
        self.pool.state()
    }

    /// Returns true if it takes new calls: connected, healthy and not draining.
    #[must_use]
    pub fn serves(&self) -> bool {
        self.state() == State::Up && !self.instance.draining
    }

    /// Makes it look as if it were connected.
    #[cfg(test)]
    pub(in crate::client) fn pretend(&self, state: State) {
        self.pool.pretend(state);
    }

    /// Counts a call as in flight until the guard is dropped.
    #[cfg(test)]
    pub(in crate::client) fn hold(&self) -> crate::client::balance::in_flight::Guard {
        self.in_flight.clone().begin()
    }

    /// Returns the calls in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.now()
    }

    /// Returns true if it has as many calls as it may.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.in_flight.now() >= self.limit
    }

    /// Returns how many connections are open.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.pool.connections()
    }

    /// Returns what last went wrong.
    #[must_use]
    pub fn last_error(&self) -> Option<Arc<String>> {
        self.pool.last_error()
    }

    /// Returns the id that answered last, if it is not the registered one: the instance was restarted at
    /// its address while the registry was away.
    #[must_use]
    pub fn adopted_id(&self) -> Option<Arc<String>> {
        self.adopted.load_full()
    }

    /// Returns the rpcs whose breaker is not closed.
    pub fn tripped(&self) -> impl Iterator<Item = (Rpc, breaker::State)> {
        let now = Instant::now();
        let states = Rpc::of_service(self.service).map(move |rpc| (rpc, self.breakers.state(rpc, now)));
        states.filter(|(_, state)| *state != breaker::State::Closed)
    }

    /// Sends a call there.
    ///
    /// # Errors
    /// As the layers below say.
    pub async fn send(&self, call: Call) -> Outcome {
        self.path.send(call).await
    }

    /// Returns true if so many of its recent answers to an rpc were failures that it gets hardly any calls.
    fn fails(&self) -> bool {
        Rpc::of_service(self.service).any(|rpc| self.load.failures(rpc) > 0.1)
    }

    /// Returns why it gets no calls, or fewer than others; `None` if it gets its share. `others` is true if
    /// another instance serves.
    #[must_use]
    pub fn why_spared(&self, others: bool) -> Option<String> {
        let tripped: Vec<_> = self.tripped().map(|(rpc, _)| rpc.method()).collect();
        Some(match self.state() {
            State::Connecting => "the first connection is being opened".to_owned(),
            State::Down => "it cannot be connected to".to_owned(),
            State::WrongService => "another service answers at its address".to_owned(),
            State::NotServing if others => "it says that it does not serve".to_owned(),
            State::Up if self.instance.draining && others => "it is draining".to_owned(),
            _ if !tripped.is_empty() => format!("breaker open for {}", tripped.join(", ")),
            _ if self.is_full() => "it has as many calls in flight as it may".to_owned(),
            _ if others && self.fails() => "recent calls of it failed: others are preferred".to_owned(),
            _ => return None,
        })
    }
}

/// Notes which instance answered.
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
