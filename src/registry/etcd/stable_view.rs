//! The view as it is published: what the registry says passes through the [`Keeper`], so that no trouble of etcd
//! empties it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::time::Instant;

use super::keeper::Keeper;
use super::snapshot;
use crate::config;
use crate::registry::instance::Instance;
use crate::registry::view::{Publisher, ViewHandle, pace};

/// A keeper, and the publisher of what it believes. Shared by the tasks that follow etcd, probe and publish.
pub struct StableView {
    keeper: Mutex<Keeper>,
    publisher: Publisher,
    /// The keeper may believe something else than what is published.
    changed: Notify,
    /// Something may have gone into limbo.
    doubted: Notify,
}

impl StableView {
    /// Begins with the view on disk, if there is one that can be used.
    pub fn restore(settings: &config::Registry, publisher: Publisher) -> Self {
        let mut keeper = Keeper::default();
        if let Some(path) = &settings.snapshot_file {
            match snapshot::load(path) {
                Ok((view, age)) => {
                    tracing::info!(path = %path.display(), revision = view.revision, ?age, "view read from disk");
                    keeper = Keeper::restored(&view);
                    publisher.preset(view);
                }
                Err(reason) => tracing::info!(path = %path.display(), reason, "no view on disk"),
            }
        }
        Self { keeper: Mutex::new(keeper), publisher, changed: Notify::new(), doubted: Notify::new() }
    }

    /// Locks the keeper. No code under this lock can leave it half changed, so a poisoned lock is sound.
    fn keeper(&self) -> MutexGuard<'_, Keeper> {
        self.keeper.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Applies news of the registry, which also confirms the view. What the keeper then believes is published soon.
    pub fn change<T>(&self, change: impl FnOnce(&mut Keeper) -> T) -> T {
        let (result, doubts) = {
            let mut keeper = self.keeper();
            (change(&mut keeper), keeper.in_limbo().next().is_some())
        };
        self.changed.notify_one();
        if doubts {
            self.doubted.notify_one();
        }
        self.publisher.confirm();
        result
    }

    /// Removes an instance in limbo whose probe has failed. The registry has confirmed nothing by it.
    pub fn give_up(&self, service: &str, addr: &str) {
        self.keeper().give_up(service, addr, Instant::now());
        self.changed.notify_one();
    }

    /// Notes that the registry has just confirmed the view.
    pub fn confirm(&self) {
        self.publisher.confirm();
    }

    /// Counts keys in which a list and the events since then disagree.
    pub fn count_differences(&self, count: usize) {
        self.publisher.count_differences(count);
    }

    /// Waits until something may have gone into limbo.
    pub async fn doubted(&self) {
        self.doubted.notified().await;
    }

    /// Returns the instances in limbo.
    pub fn in_limbo(&self) -> Vec<Arc<Instance>> {
        self.keeper().in_limbo().cloned().collect()
    }

    /// Returns whether an instance is in limbo.
    pub fn doubts(&self, instance: &Instance) -> bool {
        self.keeper().doubts(&instance.service, &instance.addr)
    }

    /// Returns a reader of what is published.
    pub fn subscribe(&self) -> ViewHandle {
        self.publisher.subscribe()
    }

    /// Waits until nobody reads the view any more.
    pub async fn closed(&self) {
        self.publisher.closed().await;
    }

    /// Publishes what the keeper believes: at once after a pause, then as often as [`pace`] allows. Never returns.
    pub async fn publish(&self) {
        loop {
            self.changed.notified().await;
            let view = self.keeper().view();
            let instances = view.services.values().map(|instances| instances.len()).sum();
            self.publisher.replace(view);
            tokio::time::sleep(pace(instances)).await;
        }
    }
}
