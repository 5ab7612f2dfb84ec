//! The view of the registry: the latest whole state, shared as a snapshot.
//!
//! It is not a queue of events, so a reader that was slow or absent is right as soon as it looks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::instance::{Instance, Instances};
use super::vanished::Vanished;

/// The whole registry at one revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// The cluster that it was read from; revisions of two clusters cannot be compared.
    pub cluster_id: u64,
    /// The registry's revision. It never decreases within an epoch; 0 means that nothing has been read yet.
    pub revision: i64,
    /// Counts how often the registry turned out to be another cluster, or an older state of the same one.
    pub epoch: u64,
    /// Instances by service. A service in which nothing changed is shared with the view before.
    pub services: BTreeMap<String, Arc<Instances>>,
    /// Service and address of instances in limbo: the registry no longer lists them, but they are still called.
    pub limbo: BTreeSet<(String, String)>,
    /// Instances that vanished without `draining`. Shared with the view before if nothing changed. Always empty for a
    /// registry inside the process.
    pub vanished: Arc<Vanished>,
    /// Number of keys below the prefix that cannot be read as instances; they are ignored.
    pub ignored: usize,
}

impl View {
    /// Returns the instances of a service, none if it is unknown.
    #[must_use]
    pub fn instances(&self, service: &str) -> Option<&Arc<Instances>> {
        self.services.get(service)
    }

    /// Returns true once the registry has been read, or a view of it from disk.
    #[must_use]
    pub const fn is_known(&self) -> bool {
        self.revision > 0
    }

    /// Adds or replaces an instance.
    pub(super) fn insert(&mut self, instance: Instance) {
        let service = self.services.entry(instance.service.clone()).or_default();
        Arc::make_mut(service).insert(instance.addr.clone(), Arc::new(instance));
    }

    /// Removes an instance.
    pub(super) fn remove(&mut self, service: &str, addr: &str) {
        if let Some(instances) = self.services.get_mut(service) {
            Arc::make_mut(instances).remove(addr);
            if instances.is_empty() {
                self.services.remove(service);
            }
        }
    }
}

/// A handle to the current view. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ViewHandle {
    view: watch::Receiver<Arc<View>>,
    /// When the registry last confirmed the view. `None` for a registry inside the process, which is never out of date.
    confirmed: Option<watch::Receiver<Option<Instant>>>,
    differences: watch::Receiver<usize>,
}

impl ViewHandle {
    /// Returns the current view. Not for the request path: callers wait for [`Self::changed`] and keep what they derive.
    #[must_use]
    pub fn get(&self) -> Arc<View> {
        self.view.borrow().clone()
    }

    /// Returns the current view and marks it as seen by this handle.
    pub fn take(&mut self) -> Arc<View> {
        self.view.borrow_and_update().clone()
    }

    /// Waits until the view differs from the one that this handle saw last.
    ///
    /// *Cancellation*: nothing is lost.
    ///
    /// # Errors
    /// When the registry's task has ended: the process is stopping.
    pub async fn changed(&mut self) -> Result<(), watch::error::RecvError> {
        self.view.changed().await
    }

    /// Makes the next [`Self::changed`] return at once.
    pub(super) fn mark_changed(&mut self) {
        self.view.mark_changed();
    }

    /// Returns the same view without an age: for a registry inside the process.
    pub(super) fn always_current(self) -> Self {
        Self { confirmed: None, ..self }
    }

    /// Returns how long ago the registry last confirmed the view; `None` before the first time.
    #[must_use]
    pub fn age(&self) -> Option<Duration> {
        match &self.confirmed {
            Some(confirmed) => confirmed.borrow().map(|at| at.elapsed()),
            None => Some(Duration::ZERO),
        }
    }

    /// Returns the number of keys in which periodic lists differed from the events, that is, of lost events.
    #[must_use]
    pub fn differences(&self) -> usize {
        *self.differences.borrow()
    }
}

/// Returns the least time between two updates of what depends on a set of instances, while the set keeps changing. The
/// cost of an update grows with the number of instances, so updates become rarer: every 20 ms for a few instances,
/// every 70 ms for 1000. The first change after a pause is handled at once.
#[must_use]
pub fn pace(instances: usize) -> Duration {
    Duration::from_millis(20 + u64::try_from(instances / 20).unwrap_or(u64::MAX).min(180))
}

/// The writing side of a [`ViewHandle`].
#[derive(Debug)]
pub struct Publisher {
    view: watch::Sender<Arc<View>>,
    confirmed: watch::Sender<Option<Instant>>,
    differences: watch::Sender<usize>,
}

impl Publisher {
    /// Returns a publisher of an unknown view, and its first reader.
    pub(super) fn new() -> (Self, ViewHandle) {
        let (view, view_rx) = watch::channel(Arc::default());
        let (confirmed, confirmed_rx) = watch::channel(None);
        let (differences, differences_rx) = watch::channel(0);
        let handle = ViewHandle { view: view_rx, confirmed: Some(confirmed_rx), differences: differences_rx };
        (Self { view, confirmed, differences }, handle)
    }

    /// Replaces the view if it differs, and notes that the registry has just confirmed it.
    pub(super) fn publish(&self, view: View) {
        self.replace(view);
        self.confirm();
    }

    /// Replaces the view if it differs.
    pub(super) fn replace(&self, view: View) {
        self.view.send_if_modified(|current| {
            let differs = **current != view;
            if differs {
                *current = Arc::new(view);
            }
            differs
        });
    }

    /// Publishes a view that the registry has not confirmed: one from disk.
    pub(super) fn preset(&self, view: View) {
        self.view.send_replace(Arc::new(view));
    }

    /// Counts keys in which a list and the events since then disagree.
    pub(super) fn count_differences(&self, count: usize) {
        self.differences.send_modify(|sum| *sum += count);
    }

    /// Notes that the registry has just confirmed the view.
    pub(super) fn confirm(&self) {
        self.confirmed.send_replace(Some(Instant::now()));
    }

    /// Waits until there is no reader any more.
    pub(super) async fn closed(&self) {
        self.view.closed().await;
    }

    /// Returns a reader of the views that are published, and of when the registry confirmed the last one.
    pub(super) fn subscribe(&self) -> ViewHandle {
        ViewHandle {
            view: self.view.subscribe(),
            confirmed: Some(self.confirmed.subscribe()),
            differences: self.differences.subscribe(),
        }
    }
}
