//! The set of a service's instances: a task follows the registry's view and the state of each connection, and
//! publishes a snapshot that callers read without a lock.
//!
//! Because it runs outside of the request path, an idle client too learns of every change, and connects before
//! the first call.

use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::api::rpc::Rpc;
use crate::client::balance::breaker_state::BreakerState;
use crate::client::balance::ejection::EjectionLimit;
use crate::client::balance::endpoint::{Endpoint, EndpointMetrics, ServiceContext};
use crate::client::balance::in_flight::InFlightLimits;
use crate::client::transport::connection::Dialer;
use crate::client::transport::state::ConnectionState;
use crate::registry::{Instances, View, ViewHandle, pace};

/// The instances of one service at one moment, sorted by address.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Every instance that the registry lists.
    pub all: Vec<Arc<Endpoint>>,
    /// Those that get new calls: connected, healthy and not draining. If there is none, those that are
    /// connected: they drain, do not respond or say that they do not serve, but may still answer.
    pub usable: Vec<Arc<Endpoint>>,
    /// True once the registry itself has listed the instances; a view from disk may be out of date.
    pub known: bool,
}

/// Reads the latest snapshot. Cheap to clone.
#[derive(Clone, Debug)]
pub struct EndpointSet {
    snapshot: Arc<ArcSwap<Snapshot>>,
    version: watch::Receiver<u64>,
}

impl EndpointSet {
    /// Begins to follow a service. The task ends when the registry client ends or the last reader is dropped.
    #[must_use]
    pub fn follow(
        service: &'static str,
        dialer: Dialer,
        view: ViewHandle,
        metrics: EndpointMetrics,
        in_flight: Arc<InFlightLimits>,
    ) -> Self {
        let snapshot = Arc::new(ArcSwap::from_pointee(Snapshot::default()));
        let (publish, version) = watch::channel(0);
        // weak: the snapshot holds the endpoints, and each endpoint holds the limit
        let instances = Arc::downgrade(&snapshot);
        let count = move |rpc| instances.upgrade().map_or((0, 0), |snapshot| snapshot.load().count(rpc));
        let ejection = Arc::new(EjectionLimit::new(Box::new(count), metrics.breaker_refused.clone()));
        let changed = Arc::new(Notify::new());
        let context = ServiceContext { service, dialer, ejection, in_flight, metrics, changed };
        let discovery = Discovery {
            context,
            applied: Arc::default(),
            endpoints: Vec::new(),
            snapshot: snapshot.clone(),
            publish,
        };
        tokio::spawn(discovery.run(view));
        Self { snapshot, version }
    }

    /// Returns the latest snapshot.
    #[must_use]
    pub fn now(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    /// Returns a receiver that is notified of each new snapshot from now on.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        let mut version = self.version.clone();
        version.mark_unchanged();
        version
    }
}

impl Snapshot {
    /// Returns true if the first connection to some instance is still being opened.
    #[must_use]
    pub fn connecting(&self) -> bool {
        self.all.iter().any(|endpoint| endpoint.state() == ConnectionState::Connecting)
    }

    /// Counts the instances that can be called right now, and those of them whose breaker for an rpc is not
    /// closed.
    fn count(&self, rpc: Rpc) -> (usize, usize) {
        let now = Instant::now();
        let serving = || self.all.iter().filter(|e| e.serves());
        let open = serving().filter(|e| e.breakers.state(rpc, now) != BreakerState::Closed);
        (serving().count(), open.count())
    }
}

/// The task.
struct Discovery {
    context: ServiceContext,
    /// The instances that `endpoints` was made from.
    applied: Arc<Instances>,
    /// Sorted by address.
    endpoints: Vec<Arc<Endpoint>>,
    snapshot: Arc<ArcSwap<Snapshot>>,
    publish: watch::Sender<u64>,
}

impl Discovery {
    async fn run(mut self, mut view: ViewHandle) {
        loop {
            let latest = view.take();
            self.apply(&latest);
            self.publish(latest.is_known() && view.age().is_some());
            // a change after a pause is published at once, many changes in a row together
            let earliest = Instant::now() + pace(self.endpoints.len());
            tokio::select! {
                changed = view.changed() => if changed.is_err() { return },
                () = self.context.changed.notified() => {}
                () = self.publish.closed() => return,
            }
            tokio::time::sleep_until(earliest).await;
        }
    }

    /// Opens endpoints for new instances and drops those that are gone.
    fn apply(&mut self, view: &View) {
        let instances = view.instances(self.context.service).cloned().unwrap_or_default();
        if Arc::ptr_eq(&self.applied, &instances) {
            return;
        }
        self.applied = instances.clone();
        // both are sorted by address; most instances are unchanged
        let mut known = std::mem::take(&mut self.endpoints).into_iter().peekable();
        self.endpoints.reserve(instances.len());
        for (addr, instance) in instances.iter() {
            while known
                .next_if(|known| !Arc::ptr_eq(&known.instance, instance) && known.instance.addr < *addr)
                .is_some()
            {}
            let endpoint = match known
                .next_if(|known| Arc::ptr_eq(&known.instance, instance) || known.instance.addr == *addr)
            {
                Some(known) if known.instance == *instance => known,
                Some(known) if known.instance.id == instance.id => {
                    Arc::new(known.with_registration(instance.clone()))
                }
                _ => Arc::new(Endpoint::open(instance.clone(), &self.context)),
            };
            self.endpoints.push(endpoint);
        }
    }

    fn publish(&self, known: bool) {
        let all = self.endpoints.clone();
        let with = |fits: fn(&Endpoint) -> bool| -> Vec<_> {
            all.iter().filter(|endpoint| fits(endpoint)).cloned().collect()
        };
        let mut usable = with(Endpoint::serves);
        if usable.is_empty() {
            usable = with(|e| e.state().is_connected());
        }
        self.snapshot.store(Arc::new(Snapshot { all, usable, known }));
        self.publish.send_modify(|version| *version += 1);
    }
}
