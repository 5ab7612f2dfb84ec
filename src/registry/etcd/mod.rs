//! The registry in etcd: one task follows the view, one task a registration keeps it true.
//!
//! etcd-client gives raw calls: nothing reconnects a stream, an expired lease is an `Ok` with ttl 0, and
//! its channel waits without end when no member answers. So every call here has a time limit, and after
//! any failure the next try begins with a fresh connection.

mod connect;
mod credentials;
mod keeper;
mod reconcile;
mod snapshot;
mod tls;
mod view;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::future::BoxFuture;

use self::connect::Access;
pub use self::credentials::Unusable;
use super::{Instance, Publisher, Registration, Registry, ViewHandle};
use crate::backoff::Backoff;
use crate::config;

/// The first wait after a failure.
const FIRST_WAIT: Duration = Duration::from_millis(100);

/// Asks an instance itself whether it serves; `Err` says why not. The caller limits its time.
pub type Probe = Arc<dyn Fn(Arc<Instance>) -> BoxFuture<'static, Result<(), String>> + Send + Sync>;

/// A registry in etcd.
#[derive(Clone)]
pub struct Etcd {
    settings: Arc<config::Registry>,
    access: Arc<Access>,
    probe: Probe,
    view: Arc<OnceLock<ViewHandle>>,
}

/// Why a session with etcd ended.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    File(#[from] Unusable),
    #[error("{0}")]
    Unreachable(String),
    #[error("{0}")]
    Refused(String),
    #[error("etcd's token for us has ended")]
    Token,
    #[error("etcd: {0}")]
    Etcd(etcd_client::Error),
    #[error("etcd did not answer {0} in time")]
    Slow(&'static str),
    #[error("etcd said nothing for {0:?}")]
    Silent(Duration),
    #[error("etcd ended the stream")]
    Ended,
    #[error("etcd cancelled the watch: {0}")]
    Cancelled(String),
    #[error("a list differs from the events in {0} keys")]
    Differs(usize),
    #[error("the lease ran out")]
    LeaseLost,
}

impl Etcd {
    /// Returns a handle. Nothing is asked of etcd before the first [`Registry::view`] or
    /// [`Registry::register`].
    ///
    /// # Errors
    /// [`Unusable`] when a file with a certificate, key or password cannot be read or used.
    pub fn new(settings: config::Registry, probe: Probe) -> Result<Self, Unusable> {
        let settings = Arc::new(settings);
        let access = Arc::new(Access::new(settings.clone())?);
        Ok(Self { settings, access, probe, view: Arc::default() })
    }
}

impl Registry for Etcd {
    fn view(&self) -> ViewHandle {
        let begin = || {
            let (publisher, view) = Publisher::new();
            tokio::spawn(view::follow(
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
        reconcile::start(self.settings.clone(), self.access.clone(), instance)
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

/// Runs one call under the request time limit.
async fn limit<T>(
    settings: &config::Registry,
    what: &'static str,
    call: impl Future<Output = Result<T, etcd_client::Error>>,
) -> Result<T, Failure> {
    match tokio::time::timeout(settings.timeout, call).await {
        Ok(result) => result.map_err(Failure::from),
        Err(_) => Err(Failure::Slow(what)),
    }
}

fn backoff(settings: &config::Registry) -> Backoff {
    Backoff::new(FIRST_WAIT, settings.backoff_cap)
}
