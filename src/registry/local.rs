//! A registry inside one process, for `up` and for tests. What is registered is in the view at once.

use std::sync::{Arc, Mutex, PoisonError};

use super::Registry;
use super::instance::Instance;
use super::registration::{Desired, Registered, Registration};
use super::view::{Publisher, View, ViewHandle};

/// A registry inside the process.
#[derive(Clone, Debug)]
pub struct Local {
    shared: Arc<Shared>,
    handle: ViewHandle,
}

#[derive(Debug)]
struct Shared {
    view: Mutex<View>,
    publisher: Publisher,
}

impl Default for Local {
    fn default() -> Self {
        let (publisher, handle) = Publisher::new();
        let view = View { cluster_id: 1, revision: 1, ..View::default() };
        publisher.publish(view.clone());
        let view = Mutex::new(view);
        Self { shared: Arc::new(Shared { view, publisher }), handle: handle.always_current() }
    }
}

impl Shared {
    fn change(&self, change: impl FnOnce(&mut View)) {
        let mut view = self.view.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut view);
        view.revision += 1;
        self.publisher.publish(view.clone());
    }
}

impl Registry for Local {
    fn view(&self) -> ViewHandle {
        self.handle.clone()
    }

    fn register(&self, instance: Instance) -> Registration {
        let (registration, mut desired, observed) = Registration::new(Registered::Up);
        self.shared.change(|view| view.insert(instance.clone()));
        let shared = self.shared.clone();
        tokio::spawn(async move {
            while desired.changed().await.is_ok() {
                let now = *desired.borrow_and_update();
                shared.change(|view| match now {
                    Desired::Up => view.insert(instance.clone()),
                    Desired::Draining => view.insert(Instance { draining: true, ..instance.clone() }),
                    Desired::Deleted | Desired::Gone => view.remove(&instance.service, &instance.addr),
                });
                observed.send_replace(match now {
                    Desired::Up => Registered::Up,
                    Desired::Draining => Registered::Draining,
                    Desired::Deleted => Registered::Absent,
                    Desired::Gone => Registered::Gone,
                });
                if now == Desired::Gone {
                    return;
                }
            }
            // the registration was dropped: in etcd the lease would end
            shared.change(|view| view.remove(&instance.service, &instance.addr));
        });
        registration
    }
}
