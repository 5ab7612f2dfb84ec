//! The registry inside one process, for `up` and for tests: what is registered is in the view at once.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use super::{Instance, Publisher, Registered, Registration, Registry, View, ViewHandle, Wish};

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
        let (publisher, mut handle) = Publisher::new();
        handle.confirmed = None;
        let view = View { cluster_id: 1, revision: 1, ..View::default() };
        publisher.publish(view.clone());
        let view = Mutex::new(view);
        Self { shared: Arc::new(Shared { view, publisher }), handle }
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
        let (wish, mut wishes) = watch::channel(Wish::Up);
        let (state, state_rx) = watch::channel(Registered::Up);
        self.shared.change(|view| view.insert(instance.clone()));
        let shared = self.shared.clone();
        tokio::spawn(async move {
            while wishes.changed().await.is_ok() {
                let wish = *wishes.borrow_and_update();
                shared.change(|view| match wish {
                    Wish::Up => view.insert(instance.clone()),
                    Wish::Draining => view.insert(Instance { draining: true, ..instance.clone() }),
                    Wish::Deleted | Wish::Gone => view.remove(&instance.service, &instance.addr),
                });
                state.send_replace(match wish {
                    Wish::Up => Registered::Up,
                    Wish::Draining => Registered::Draining,
                    Wish::Deleted => Registered::Absent,
                    Wish::Gone => Registered::Gone,
                });
                if wish == Wish::Gone {
                    return;
                }
            }
            // dropped without a word: the lease would end
            shared.change(|view| view.remove(&instance.service, &instance.addr));
        });
        Registration { wish, state: state_rx }
    }
}
