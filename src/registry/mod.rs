//! Where instances are: they register, and callers read the view.
//!
//! Two promises shape the interface. A [`View`] is the latest whole state with its revision, not a queue of events. A
//! [`Registration`] is a desired state that a task maintains, not a call that may fail: the task tries until the
//! registry holds what is desired.

pub mod advertise;
mod etcd;
mod instance;
mod local;
pub mod metrics;
mod registration;
// public for the fuzz targets
#[doc(hidden)]
pub mod value;
mod vanished;
mod view;

use futures_util::future::BoxFuture;

pub use etcd::{Dial, Etcd, Probe, Socket, dial_tcp};
#[doc(hidden)]
pub use etcd::{keeper, snapshot};
pub use instance::{Instance, Instances};
pub use local::Local;
pub use registration::{Registered, Registration};
pub use vanished::Vanished;
pub use view::{View, ViewHandle, pace};

/// A registry: etcd, or one inside the process.
pub trait Registry: Send + Sync + 'static {
    /// Returns the view. The first call begins to follow the registry, so a process that calls no service reads nothing
    /// (and needs no right to). Must be called inside a tokio runtime. The view is unknown ([`View::is_known`]) until
    /// the registry has been read once.
    fn view(&self) -> ViewHandle;

    /// Begins to keep `instance` registered. Returns at once; the entry is written as soon as the registry answers, and
    /// again whenever it was lost.
    fn register(&self, instance: Instance) -> Registration;

    /// Waits until the registry has refused the credentials of this process without ever having accepted them, and
    /// returns the reason: a setting is wrong, and waiting does not help. Otherwise it never returns.
    fn refused(&self) -> BoxFuture<'static, String> {
        Box::pin(std::future::pending())
    }
}
