//! The endpoint set of one service: follows the registry's view and the state of each connection, and
//! publishes a snapshot that callers read without a lock.
//!
//! It is a task of its own, so a client that is idle still learns of every change and connects before
//! the first call.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use http::HeaderValue;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::endpoint::{Endpoint, State};
use crate::config;
use crate::metrics::Metrics;
use crate::registry::{Instances, View, ViewHandle};

/// Least time between two snapshots.
const PUBLISH_EVERY: Duration = Duration::from_millis(20);

/// The instances of one service at one moment, sorted by address.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Every instance that the registry lists.
    pub all: Vec<Arc<Endpoint>>,
    /// Those that get new calls: connected, healthy and not draining; if there are none, those that are
    /// about to stop, which may still answer.
    pub usable: Vec<Arc<Endpoint>>,
    /// True if the first connection to some instance is still being opened: worth waiting for.
    pub connecting: bool,
    /// True once the registry has said who is there.
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
        metrics: Metrics,
    ) -> Self {
        let snapshot = Arc::new(ArcSwap::from_pointee(Snapshot::default()));
        let (publish, version) = watch::channel(0);
        let driver = Driver {
            service,
            identity,
            settings,
            metrics,
            changed: Arc::new(Notify::new()),
            known: false,
            applied: Arc::default(),
            endpoints: BTreeMap::new(),
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

struct Driver {
    service: &'static str,
    identity: HeaderValue,
    settings: Arc<config::Client>,
    metrics: Metrics,
    /// Notified by a connection whose state changed.
    changed: Arc<Notify>,
    known: bool,
    /// What the endpoints were made from.
    applied: Arc<Instances>,
    endpoints: BTreeMap<String, Arc<Endpoint>>,
    snapshot: Arc<ArcSwap<Snapshot>>,
    publish: watch::Sender<u64>,
}

impl Driver {
    async fn run(mut self, mut view: ViewHandle) {
        loop {
            self.apply(&view.take());
            self.publish();
            // a change after a pause is published at once, those of a storm together
            let earliest = Instant::now() + PUBLISH_EVERY;
            tokio::select! {
                changed = view.changed() => if changed.is_err() { return },
                () = self.changed.notified() => {}
                () = self.publish.closed() => return,
            }
            tokio::time::sleep_until(earliest).await;
        }
    }

    /// Opens endpoints for new instances and drops those that are gone.
    fn apply(&mut self, view: &View) {
        self.known = view.is_known();
        let instances = view.instances(self.service).cloned().unwrap_or_default();
        if Arc::ptr_eq(&self.applied, &instances) {
            return;
        }
        self.applied = instances.clone();
        self.endpoints.retain(|addr, _| instances.contains_key(addr));
        for (addr, instance) in instances.iter() {
            let endpoint = match self.endpoints.get(addr) {
                Some(known) if known.instance == *instance => continue,
                Some(known) if known.instance.id == instance.id => known.renamed(instance.clone()),
                _ => {
                    let identity = self.identity.clone();
                    Endpoint::open(instance.clone(), identity, &self.settings, self.changed.clone())
                }
            };
            self.endpoints.insert(addr.clone(), Arc::new(endpoint));
        }
    }

    fn publish(&self) {
        let all: Vec<_> = self.endpoints.values().cloned().collect();
        let with = |fits: fn(&Endpoint) -> bool| -> Vec<_> {
            all.iter().filter(|endpoint| fits(endpoint)).cloned().collect()
        };
        let mut usable = with(|e| e.state() == State::Up && !e.instance.draining);
        if usable.is_empty() {
            usable = with(|e| matches!(e.state(), State::Up | State::NotServing));
        }
        for state in State::ALL {
            let count = all.iter().filter(|e| e.state() == state).count();
            self.metrics.endpoints(self.service, state.name(), count);
        }
        self.snapshot.store(Arc::new(Snapshot {
            known: self.known,
            connecting: all.iter().any(|e| e.state() == State::Connecting),
            all,
            usable,
        }));
        self.publish.send_modify(|version| *version += 1);
    }
}
