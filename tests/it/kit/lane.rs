//! A thread with a runtime of its own, for what must go on while the test's thread waits for a process: the relays
//! between servers that hold elections.

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

/// A thread that runs tasks until this is dropped.
pub struct Lane {
    handle: Handle,
    _stop: oneshot::Sender<()>,
}

impl Lane {
    pub fn start() -> Self {
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        let (handle, (stop, stopped)) = (runtime.handle().clone(), oneshot::channel::<()>());
        // it ends by an error, when the sender is dropped
        std::thread::spawn(move || runtime.block_on(stopped).ok());
        Self { handle, _stop: stop }
    }

    /// Runs a future there, whose tasks stay there.
    pub async fn run<T: Send + 'static>(&self, future: impl Future<Output = T> + Send + 'static) -> T {
        self.handle.spawn(future).await.expect("it does not panic")
    }
}
