//! The registry in etcd: one task follows the view, one task a registration keeps it true.
//!
//! etcd-client gives raw calls: nothing reconnects a stream, an expired lease is an `Ok` with ttl 0, and
//! its channel waits without end when no member answers. So every call here has a time limit, and after
//! any failure the next try begins with a fresh connection.

mod reconcile;
mod view;

use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Client, ConnectOptions};
use futures_util::future::BoxFuture;

use super::{Instance, Publisher, Registration, Registry, ViewHandle};
use crate::backoff::Backoff;
use crate::config;

/// The first wait after a failure.
const FIRST_WAIT: Duration = Duration::from_millis(100);

/// Asks an instance itself whether it serves; `Err` says why not. The caller limits its time.
pub type Probe = Arc<dyn Fn(Arc<Instance>) -> BoxFuture<'static, Result<(), String>> + Send + Sync>;

/// A registry in etcd.
#[derive(Clone, Debug)]
pub struct Etcd {
    settings: Arc<config::Registry>,
    view: ViewHandle,
}

/// Why a session with etcd ended.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("etcd: {0}")]
    Etcd(#[from] etcd_client::Error),
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
    /// Begins to follow the registry. Does not wait for etcd: until it answers the view is unknown.
    /// Must be called inside a tokio runtime; the task ends with it.
    #[must_use]
    pub fn start(settings: config::Registry, probe: Probe) -> Self {
        let settings = Arc::new(settings);
        let (publisher, view) = Publisher::new();
        tokio::spawn(view::follow(settings.clone(), publisher, probe));
        Self { settings, view }
    }
}

impl Registry for Etcd {
    fn view(&self) -> ViewHandle {
        self.view.clone()
    }

    fn register(&self, instance: Instance) -> Registration {
        reconcile::start(self.settings.clone(), instance)
    }
}

async fn connect(settings: &config::Registry) -> Result<Client, Failure> {
    let options = ConnectOptions::new()
        .with_connect_timeout(settings.timeout)
        // etcd closes a connection that is pinged more often than every 5 s
        .with_keep_alive(Duration::from_secs(6), settings.watch_silence)
        .with_require_leader(true);
    let connect = Client::connect(&settings.endpoints, Some(options));
    limit(settings, "a connection", connect).await
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
