//! The registration of one instance: what its entry in the registry should be, and what it is.

use std::time::Duration;

use tokio::sync::watch;

/// Longest time that one step of a drain waits for the registry. After that the drain goes on without it.
const STEP_LIMIT: Duration = Duration::from_millis(200);

/// What the entry of an instance should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Desired {
    /// In the registry as `up`.
    Up,
    /// In the registry as `draining`.
    Draining,
    /// Key deleted, lease kept.
    Deleted,
    /// Lease revoked; the task ends.
    Gone,
}

/// What the entry of an instance is, as far as its task has observed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Registered {
    /// The registry has not answered since the last change: the entry may be there or not.
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

/// A handle to the entry of an instance. A task keeps the entry as desired until [`Self::revoke`]. If the handle is
/// dropped without that, as in a crash, the entry ends with its lease.
#[derive(Debug)]
pub struct Registration {
    desired: watch::Sender<Desired>,
    observed: watch::Receiver<Registered>,
}

impl Registration {
    /// Returns a handle, and the ends for the task that keeps the entry: what is desired, and what it observes.
    pub(super) fn new(observed: Registered) -> (Self, watch::Receiver<Desired>, watch::Sender<Registered>) {
        let (desired, desired_rx) = watch::channel(Desired::Up);
        let (observed, observed_rx) = watch::channel(observed);
        (Self { desired, observed: observed_rx }, desired_rx, observed)
    }

    /// Returns what the entry is.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<Registered> {
        self.observed.clone()
    }

    /// Marks the instance as draining. Waits at most 200 ms for the registry.
    pub async fn drain(&mut self) {
        self.reach(Desired::Draining, Registered::Draining).await;
    }

    /// Deletes the entry. Waits at most 200 ms for the registry.
    pub async fn delete(&mut self) {
        self.reach(Desired::Deleted, Registered::Absent).await;
    }

    /// Revokes the lease and ends the task. Waits at most 200 ms for the registry.
    pub async fn revoke(mut self) {
        self.reach(Desired::Gone, Registered::Gone).await;
    }

    async fn reach(&mut self, desired: Desired, state: Registered) {
        self.desired.send_replace(desired);
        let reached = self.observed.wait_for(|observed| *observed == state);
        if tokio::time::timeout(STEP_LIMIT, reached).await.is_err() {
            tracing::warn!(?desired, "the registry did not answer in time, stopping without it");
        }
    }
}
