//! What the members of one process share.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::watch;

use super::metrics::Metrics;
use super::role::{Member, ServiceKind};
use crate::admin::{Phase, Role};
use crate::client::{Client, Connector, Shared};
use crate::config::{ListenAddr, Settings};
use crate::registry::{Registration, Registry};
use crate::server::listener::Listener;
use crate::server::threads::{PerThread, Threads};
use crate::server::{Limits, MAX_UNSENT, UnsentLimit};
use crate::service::Service;
use crate::telemetry::trace::Traces;
use crate::tls::Mutual;

/// What the members of one process share.
pub struct Common {
    pub settings: Settings,
    pub metrics: Metrics,
    pub traces: Traces,
    pub registry: Arc<dyn Registry>,
    /// The bound address of the admin listener.
    pub admin: SocketAddr,
    /// The certificate of this process, where calls are encrypted.
    pub mutual: Option<Mutual>,
    /// Opens the connections to services.
    pub connector: Connector,
    /// Every client that was made, for the admin listener.
    pub clients: Vec<Client>,
    /// The threads that serve.
    pub threads: Arc<Threads>,
}

impl Common {
    /// Returns a client for the services that a member calls, for each thread. Must be called inside a tokio runtime.
    pub fn clients(&mut self, member: Member) -> PerThread<Client> {
        let services: Vec<_> = member.calls().iter().copied().map(ServiceKind::name).collect();
        let shared = Shared::new(
            &services,
            &self.settings.client,
            &self.settings.registry.prefix,
            &self.registry.view(),
            &self.connector,
            self.threads.count(),
        );
        let clients = self.threads.each(|number| Client::on_thread(number, &shared, &self.metrics.client));
        self.clients.extend(clients.values().cloned());
        clients
    }
}

/// A member that serves.
pub struct Serving {
    /// Its row for the admin listener.
    pub role: Role,
    /// Waits until it is its turn to drain, then drains.
    pub drain: BoxFuture<'static, ()>,
}

/// Returns the row of a member that has begun to serve, and the sender of its phase. With a service comes why its store
/// cannot be used.
pub fn role(
    name: &'static str,
    addr: SocketAddr,
    service: Option<(Service, watch::Receiver<Option<String>>)>,
    registration: Option<&Registration>,
    warnings: Vec<String>,
) -> (Role, watch::Sender<Phase>) {
    let (phase, phase_rx) = watch::channel(Phase::Serving);
    let registration = registration.map(Registration::state);
    let (service, store) = service.unzip();
    (Role { name, addr, phase: phase_rx, service, store, registration, warnings }, phase)
}

/// Binds an address that one of some settings has chosen.
///
/// # Errors
/// When it cannot be listened on; the text names the settings.
pub fn bind(addr: ListenAddr, keys: &[&str]) -> anyhow::Result<Listener> {
    let settings = keys.iter().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(" or ");
    Listener::bind(addr.0).map_err(|error| {
        anyhow::anyhow!(
            "{error} (it is set by {settings}; `up --free-ports` takes free ones, `--help` has the flags)"
        )
    })
}

/// Returns the limits of the listeners of one member.
pub fn limits(max_connections: usize, write_timeout: Duration) -> Limits {
    Limits { max_connections, write_timeout, unsent: UnsentLimit::new(MAX_UNSENT) }
}
