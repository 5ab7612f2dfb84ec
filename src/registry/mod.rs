//! Who is where: instances register, callers read the view.
//!
//! Two promises shape the interface. A [`View`] is the latest whole state with its revision, not a queue
//! of events, so a reader that was slow or absent is right as soon as it looks; readers share it as a
//! snapshot. A [`Registration`] is a wish that a task keeps true, not a call that may fail: it says what
//! should be in the registry, and the task tries until it is.

pub mod advertise;
mod etcd;
mod local;
pub mod metrics;
mod value;
mod vanished;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::watch;
use tokio::time::Instant;

pub use etcd::{Etcd, Probe, Unusable};
pub use local::Local;
pub use vanished::Vanished;

/// Longest time one step of a drain waits for the registry; with the registry away the drain goes on.
const STEP: Duration = Duration::from_millis(200);

/// One registered instance of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// The service's name, `feed`.
    pub service: String,
    /// Where to call it, `host:port`; unique within the service.
    pub addr: String,
    /// What sets it apart from an earlier one at the same address, 16 hex digits. Empty for an instance
    /// that registered its bare address only.
    pub id: String,
    /// Its program's version.
    pub version: String,
    /// Its availability zone.
    pub zone: Option<String>,
    /// Its relative weight, 1 to 1000.
    pub weight: u32,
    /// True once it has begun to stop: finish calls, send no new ones.
    pub draining: bool,
    /// Its admin listener, `host:port`, if others can reach it.
    pub admin: Option<String>,
    /// When it started, seconds since 1970.
    pub started_at: u64,
}

impl Instance {
    /// Returns an instance of which nothing but the address is known.
    #[must_use]
    pub fn bare(service: &str, addr: &str) -> Self {
        Self {
            service: service.to_owned(),
            addr: addr.to_owned(),
            id: String::new(),
            version: String::new(),
            zone: None,
            weight: 100,
            draining: false,
            admin: None,
            started_at: 0,
        }
    }
}

/// The instances of one service by address.
pub type Instances = BTreeMap<String, Arc<Instance>>;

/// The whole registry at one revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// Which cluster said so; the revisions of two clusters cannot be compared.
    pub cluster_id: u64,
    /// The registry's revision; never goes back within an epoch. 0: nothing has been read yet.
    pub revision: i64,
    /// How often the registry turned out to be another one, or an older state of itself.
    pub epoch: u64,
    /// Instances by service; a service in which nothing changed is shared with the view before.
    pub services: BTreeMap<String, Arc<Instances>>,
    /// Service and address of those that the registry no longer lists but that are still believed in.
    pub limbo: BTreeSet<(String, String)>,
    /// Instances that went without a word, shared with the view before if it is the same. Empty for a
    /// registry inside the process, which they cannot leave so.
    pub vanished: Arc<Vanished>,
    /// Keys below the prefix that are not ours to read; they are ignored.
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

    fn insert(&mut self, instance: Instance) {
        let service = self.services.entry(instance.service.clone()).or_default();
        Arc::make_mut(service).insert(instance.addr.clone(), Arc::new(instance));
    }

    fn remove(&mut self, service: &str, addr: &str) {
        if let Some(instances) = self.services.get_mut(service) {
            Arc::make_mut(instances).remove(addr);
            if instances.is_empty() {
                self.services.remove(service);
            }
        }
    }
}

/// A shared, always current view.
#[derive(Clone, Debug)]
pub struct ViewHandle {
    view: watch::Receiver<Arc<View>>,
    /// `None` for a registry inside the process: it is never out of date.
    confirmed: Option<watch::Receiver<Option<Instant>>>,
    differences: watch::Receiver<usize>,
}

impl ViewHandle {
    /// Returns the view now. Cheap, but not for the request path: callers follow [`Self::changed`] and
    /// keep what they derive.
    #[must_use]
    pub fn get(&self) -> Arc<View> {
        self.view.borrow().clone()
    }

    /// Returns the view now and counts it as seen here.
    pub fn take(&mut self) -> Arc<View> {
        self.view.borrow_and_update().clone()
    }

    /// Waits until the view is another than the one last seen here.
    ///
    /// *Cancellation*: nothing is lost.
    ///
    /// # Errors
    /// When the registry's task has ended: the process is stopping.
    pub async fn changed(&mut self) -> Result<(), watch::error::RecvError> {
        self.view.changed().await
    }

    /// Returns how long ago the registry last confirmed the view; `None` before the first time.
    #[must_use]
    pub fn age(&self) -> Option<Duration> {
        match &self.confirmed {
            Some(confirmed) => confirmed.borrow().map(|at| at.elapsed()),
            None => Some(Duration::ZERO),
        }
    }

    /// Returns in how many keys the periodic list differed from what the events said: lost events.
    #[must_use]
    pub fn differences(&self) -> usize {
        *self.differences.borrow()
    }
}

/// Returns the least time between two looks at a set of instances that keeps changing. A look costs in
/// proportion to their number, so it is taken the less often the more there are: every 20 ms of a few, every
/// 70 ms of 1000. A change after a pause is looked at at once.
#[must_use]
pub fn pace(instances: usize) -> Duration {
    Duration::from_millis(20 + u64::try_from(instances / 20).unwrap_or(u64::MAX).min(180))
}

/// The writing side of a [`ViewHandle`].
#[derive(Debug)]
struct Publisher {
    view: watch::Sender<Arc<View>>,
    confirmed: watch::Sender<Option<Instant>>,
    differences: watch::Sender<usize>,
}

impl Publisher {
    fn new() -> (Self, ViewHandle) {
        let (view, view_rx) = watch::channel(Arc::default());
        let (confirmed, confirmed_rx) = watch::channel(None);
        let (differences, differences_rx) = watch::channel(0);
        let handle = ViewHandle { view: view_rx, confirmed: Some(confirmed_rx), differences: differences_rx };
        (Self { view, confirmed, differences }, handle)
    }

    /// Replaces the view if it differs, and notes that the registry has just confirmed it.
    fn publish(&self, view: View) {
        self.replace(view);
        self.confirm();
    }

    /// Replaces the view if it differs.
    fn replace(&self, view: View) {
        self.view.send_if_modified(|current| {
            let differs = **current != view;
            if differs {
                *current = Arc::new(view);
            }
            differs
        });
    }

    /// Begins with a view that the registry has not confirmed.
    fn preset(&self, view: View) {
        self.view.send_replace(Arc::new(view));
    }

    /// Notes that a list and the events since did not fit together.
    fn differ(&self, count: usize) {
        self.differences.send_modify(|sum| *sum += count);
    }

    fn confirm(&self) {
        self.confirmed.send_replace(Some(Instant::now()));
    }
}

/// What a registration should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Up,
    Draining,
    /// Key deleted, lease kept.
    Deleted,
    /// Lease revoked; the task ends.
    Gone,
}

/// What a registration is, as far as its task knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Registered {
    /// The registry has not been heard from since the last change: the entry may be there or not.
    Unknown,
    /// Not in the registry: not yet, or not any more.
    Absent,
    /// In the registry as `up`.
    Up,
    /// In the registry as `draining`.
    Draining,
    /// Taken out on purpose.
    Gone,
}

impl Registered {
    /// Every state.
    pub const ALL: [Self; 5] = [Self::Unknown, Self::Absent, Self::Up, Self::Draining, Self::Gone];

    /// Returns the word for it in `/status` and logs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Absent => "absent",
            Self::Up => "up",
            Self::Draining => "draining",
            Self::Gone => "gone",
        }
    }
}

/// An instance's entry, kept true by a task until [`Self::revoke`]. Dropped without it (a crash), the
/// entry ends with its lease.
#[derive(Debug)]
pub struct Registration {
    wish: watch::Sender<Wish>,
    state: watch::Receiver<Registered>,
}

impl Registration {
    /// Returns what the entry is now.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<Registered> {
        self.state.clone()
    }

    /// Marks the instance as draining. Waits at most 200 ms for the registry.
    pub async fn drain(&mut self) {
        self.wish(Wish::Draining, Registered::Draining).await;
    }

    /// Deletes the entry. Waits at most 200 ms for the registry.
    pub async fn delete(&mut self) {
        self.wish(Wish::Deleted, Registered::Absent).await;
    }

    /// Gives the lease back and ends the task. Waits at most 200 ms for the registry.
    pub async fn revoke(mut self) {
        self.wish(Wish::Gone, Registered::Gone).await;
    }

    async fn wish(&mut self, wish: Wish, wanted: Registered) {
        self.wish.send_replace(wish);
        let reached = self.state.wait_for(|state| *state == wanted);
        if tokio::time::timeout(STEP, reached).await.is_err() {
            tracing::warn!(?wish, "registry did not answer in time, stopping without it");
        }
    }
}

/// A registry: etcd, or one inside the process.
pub trait Registry: Send + Sync + 'static {
    /// Returns the view; the first call begins to follow the registry, so who calls nobody need not ask
    /// (nor have the right to read it). Must be called inside a tokio runtime. The view is unknown ([`View::is_known`]) until the registry has been read once.
    fn view(&self) -> ViewHandle;

    /// Begins to keep `instance` registered. Returns at once; the entry follows as soon as the registry
    /// takes it, and again whenever it was lost.
    fn register(&self, instance: Instance) -> Registration;

    /// Waits until the registry has refused the credentials of this process, without ever having taken
    /// them, and returns why: a setting is wrong, and waiting does not help. Else it waits for ever.
    fn refused(&self) -> BoxFuture<'static, String> {
        Box::pin(std::future::pending())
    }
}
