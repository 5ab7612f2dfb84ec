//! The endpoint set of one service: follows the registry's view and the state of each connection, and
//! publishes a snapshot that callers read without a lock.
//!
//! It is a task of its own, so a client that is idle still learns of every change and connects before
//! the first call.

use std::sync::Arc;

use arc_swap::ArcSwap;
use http::HeaderValue;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::api::rpc::Rpc;
use crate::client::balance::breaker;
use crate::client::balance::ejection::Ejection;
use crate::client::balance::endpoint::{Common, Endpoint};
use crate::client::metrics::ServiceMetrics;
use crate::client::transport::pool::State;
use crate::config;
use crate::registry::{Instances, View, ViewHandle, pace};

/// The instances of one service at one moment, sorted by address.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Every instance that the registry lists.
    pub all: Vec<Arc<Endpoint>>,
    /// Those that get new calls: connected, healthy and not draining; if there are none, those that are
    /// about to stop, which may still answer.
    pub usable: Vec<Arc<Endpoint>>,
    /// True once the registry itself has said who is there; a view from disk may be out of date.
    pub known: bool,
}

/// Readers of the latest snapshot.
#[derive(Clone, Debug)]
pub struct Set {
    snapshot: Arc<ArcSwap<Snapshot>>,
    version: watch::Receiver<u64>,
}

impl Set {
    /// Begins to follow a service. The task ends with the registry's or with the last reader.
    #[must_use]
    pub fn follow(
        service: &'static str,
        identity: HeaderValue,
        settings: Arc<config::Client>,
        view: ViewHandle,
        meters: Arc<ServiceMetrics>,
    ) -> Self {
        let snapshot = Arc::new(ArcSwap::from_pointee(Snapshot::default()));
        let (publish, version) = watch::channel(0);
        // weak: the snapshot holds the instances, and they the bound
        let peers = Arc::downgrade(&snapshot);
        let count = move |rpc| peers.upgrade().map_or((0, 0), |peers| peers.load().count(rpc));
        let ejection = Arc::new(Ejection::new(Box::new(count), meters.breaker_refused.clone()));
        let changed = Arc::new(Notify::new());
        let common = Common { service, identity, settings, ejection, meters, changed };
        let driver = Driver {
            common,
            applied: Arc::default(),
            endpoints: Vec::new(),
            snapshot: snapshot.clone(),
            publish,
        };
        tokio::spawn(driver.run(view));
        Self { snapshot, version }
    }

    /// Returns the snapshot now.
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
    /// Returns true if the first connection to some instance is still being opened: worth waiting for.
    #[must_use]
    pub fn connecting(&self) -> bool {
        self.all.iter().any(|endpoint| endpoint.state() == State::Connecting)
    }

    /// Counts the instances that can be called right now, and how many of them have a breaker that is not
    /// closed for an rpc.
    fn count(&self, rpc: Rpc) -> (usize, usize) {
        let now = Instant::now();
        let usable = || self.all.iter().filter(|e| e.serves());
        let open = usable().filter(|e| e.breakers.state(rpc, now) != breaker::State::Closed);
        (usable().count(), open.count())
    }
}

struct Driver {
    common: Common,
    /// What the endpoints were made from.
    applied: Arc<Instances>,
    /// Sorted by address.
    endpoints: Vec<Arc<Endpoint>>,
    snapshot: Arc<ArcSwap<Snapshot>>,
    publish: watch::Sender<u64>,
}

impl Driver {
    async fn run(mut self, mut view: ViewHandle) {
        loop {
            let latest = view.take();
            self.apply(&latest);
            self.publish(latest.is_known() && view.age().is_some());
            // a change after a pause is published at once, those of a storm together
            let earliest = Instant::now() + pace(self.endpoints.len());
            tokio::select! {
                changed = view.changed() => if changed.is_err() { return },
                () = self.common.changed.notified() => {}
                () = self.publish.closed() => return,
            }
            tokio::time::sleep_until(earliest).await;
        }
    }

    /// Opens endpoints for new instances and drops those that are gone.
    fn apply(&mut self, view: &View) {
        let instances = view.instances(self.common.service).cloned().unwrap_or_default();
        if Arc::ptr_eq(&self.applied, &instances) {
            return;
        }
        self.applied = instances.clone();
        // both are sorted by address; most instances are the very ones that are known
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
                Some(known) if known.instance.id == instance.id => Arc::new(known.renamed(instance.clone())),
                _ => Arc::new(Endpoint::open(instance.clone(), &self.common)),
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
            usable = with(|e| matches!(e.state(), State::Up | State::NotServing));
        }
        self.snapshot.store(Arc::new(Snapshot { all, usable, known }));
        self.publish.send_modify(|version| *version += 1);
    }
}
