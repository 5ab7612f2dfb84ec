//! The whole application inside the test's process, on free ports, for tests that want to be quick.

use std::net::SocketAddr;
use std::sync::Arc;

use microservice_app::app::process::Addresses;
use microservice_app::app::up;
use microservice_app::config::{ListenAddr, Role, Settings};
use microservice_app::registry::{Instance, Registration, Registry};
use microservice_app::server::threads::Threads;
use tokio_util::sync::CancellationToken;

use super::{http, metrics, wait_for};

/// Every role, with SQLite stores in a directory that ends with it. It stops when dropped.
pub struct App {
    pub addresses: Addresses,
    pub stop: CancellationToken,
    pub registry: Arc<dyn Registry>,
    pub threads: Arc<Threads>,
    _data: tempfile::TempDir,
}

impl App {
    /// Starts with the defaults.
    pub async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    /// Starts with changed settings and waits until every service can be called.
    pub async fn start_with(change: impl FnOnce(&mut Settings)) -> Self {
        let app = Self::launch(change);
        let admin = app.addresses.admin;
        wait_for("the app is ready", || async move {
            (http::get(admin, "/readyz").await.body == "ready\n").then_some(())
        })
        .await;
        app
    }

    /// Starts with changed settings and waits for nothing.
    pub fn launch(change: impl FnOnce(&mut Settings)) -> Self {
        let data = tempfile::tempdir().expect("a directory");
        let mut settings = Settings::for_role(Role::Up);
        data.path().clone_into(&mut settings.up.data_dir);
        let free = ListenAddr::loopback(0);
        settings.http.addr = free;
        settings.admin.addr = free;
        (settings.up.feed_addr, settings.up.profile_addr, settings.up.topic_addr) = (free, free, free);
        change(&mut settings);
        // from a thread of its own, so that nobody has to wait for a start
        let runtime = tokio::runtime::Handle::current();
        let process = std::thread::scope(|scope| {
            let start = scope.spawn(move || runtime.block_on(up::assemble(settings)));
            start.join().expect("no panic").expect("the app starts")
        });
        let addresses = process.addresses();
        let (registry, threads) = (process.registry(), process.threads());
        let stop = CancellationToken::new();
        tokio::spawn(process.run(stop.clone(), || {}));
        Self { addresses, stop, registry, threads, _data: data }
    }

    /// Registers an instance of a service that is not ours: a relay, a dead port.
    pub fn register(&self, service: &str, addr: SocketAddr) -> Registration {
        let bare = Instance::bare(service, &addr.to_string());
        self.registry.register(Instance { id: "00000000000000ff".to_owned(), ..bare })
    }

    /// Returns the sum of the series that begin so; panics if there is none, see [`metrics::metric`].
    pub async fn metric(&self, series: &str) -> f64 {
        metrics::metric(self.addresses.admin, series).await
    }

    /// Returns true if such a series is there and above `least`: a condition to wait for.
    pub async fn metric_above(&self, series: &str, least: f64) -> bool {
        metrics::metric_above(self.addresses.admin, series, least).await
    }

    pub fn gateway(&self) -> SocketAddr {
        self.addresses.of(Role::Apigateway).expect("a gateway")
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
