//! The registry in etcd. One task follows the view, and one task for each registration keeps its entry as desired.
//!
//! etcd-client makes single calls and no more: it does not reconnect a stream, it reports an expired lease as an `Ok`
//! with ttl 0, and its channel waits for ever when no member answers. So every call here has a time limit, and after
//! any failure the next try begins with a new connection.

mod access;
mod credentials;
mod dial;
mod failure;
mod follow;
// these two are public for the fuzz targets
#[doc(hidden)]
pub mod keeper;
mod limbo;
mod member;
mod reader;
mod reconcile;
#[doc(hidden)]
pub mod snapshot;
mod stable_view;
mod tls;

use std::sync::{Arc, OnceLock};

use futures_util::future::BoxFuture;

use self::access::Access;
pub use self::dial::{Dial, Socket, tcp as dial_tcp};
pub use self::limbo::Probe;
use super::Registry;
use super::instance::Instance;
use super::registration::Registration;
use super::view::{Publisher, ViewHandle};
use crate::config;
use crate::credentials::Unusable;

/// A registry in etcd.
#[derive(Clone)]
pub struct Etcd {
    settings: Arc<config::Registry>,
    access: Arc<Access>,
    probe: Probe,
    view: Arc<OnceLock<ViewHandle>>,
}

impl Etcd {
    /// Returns a handle whose connections are opened by `dial`. Nothing is asked of etcd before the first [`Registry::view`] or
    /// [`Registry::register`].
    ///
    /// # Errors
    /// [`Unusable`] when a file with a certificate, key or password cannot be read or used.
    pub fn new(settings: config::Registry, probe: Probe, dial: Dial) -> Result<Self, Unusable> {
        let settings = Arc::new(settings);
        let access = Arc::new(Access::new(settings.clone(), dial)?);
        Ok(Self { settings, access, probe, view: Arc::default() })
    }
}

impl Registry for Etcd {
    fn view(&self) -> ViewHandle {
        let begin = || {
            let (publisher, view) = Publisher::new();
            tokio::spawn(follow::follow(
                self.settings.clone(),
                self.access.clone(),
                publisher,
                self.probe.clone(),
            ));
            view
        };
        self.view.get_or_init(begin).clone()
    }

    fn register(&self, instance: Instance) -> Registration {
        reconcile::start(&self.settings, self.access.clone(), instance)
    }

    fn refused(&self) -> BoxFuture<'static, String> {
        let mut refused = self.access.refused();
        Box::pin(async move {
            let reason = refused.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone());
            match reason {
                Some(reason) => reason,
                None => std::future::pending().await,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Mutex;
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn every_connection_is_opened_by_the_dialer() {
        let dialed = Arc::new(Mutex::new(Vec::new()));
        let dial: Dial = {
            let dialed = dialed.clone();
            Arc::new(move |addr| {
                dialed.lock().unwrap().push(addr.to_owned());
                Box::pin(async { Err(io::ErrorKind::ConnectionRefused.into()) })
            })
        };
        let settings =
            config::Registry { endpoints: vec!["etcd.example:2379".to_owned()], ..Default::default() };
        let probe: Probe = Arc::new(|_| Box::pin(std::future::pending()));
        let etcd = Etcd::new(settings, probe, dial).unwrap();
        let _view = etcd.view();
        let _registration = etcd.register(Instance::bare("feed", "192.0.2.1:8082"));
        tokio::time::sleep(Duration::from_secs(1)).await;
        let dialed = dialed.lock().unwrap();
        // both tasks try again and again
        assert!(dialed.len() > 4, "{dialed:?}");
        assert!(dialed.iter().all(|addr| addr == "etcd.example:2379"), "{dialed:?}");
    }
}
