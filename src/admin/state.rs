//! What the admin listener of a process reports on.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::watch;

use super::history::History;
use super::token::Token;
use crate::client::Client;
use crate::config::Link;
use crate::registry::metrics::Metrics as RegistryMetrics;
use crate::registry::{Registered, ViewHandle};
use crate::server::threads::Threads;
use crate::service::Service;
use crate::telemetry::events::Events;
use crate::telemetry::log;

/// The phase of a role between its start and its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Requests are answered.
    Serving,
    /// The last requests are being answered.
    Draining,
}

impl Phase {
    /// Returns the word for it in `/status` and `/readyz`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Serving => "serving",
            Self::Draining => "draining",
        }
    }
}

/// One role of the process.
#[derive(Clone)]
pub struct Role {
    /// `feed`, `apigateway`, ...
    pub name: &'static str,
    /// The bound address.
    pub addr: SocketAddr,
    /// Its phase.
    pub phase: watch::Receiver<Phase>,
    /// The service; `None` for a gateway.
    pub service: Option<Service>,
    /// Why its store cannot be used, as far as the service has found; `None` for a gateway.
    pub store: Option<watch::Receiver<Option<String>>>,
    /// Its entry in the registry; `None` if it does not register.
    pub registration: Option<watch::Receiver<Registered>>,
    /// Warnings of its start.
    pub warnings: Vec<String>,
}

/// Pages about this process elsewhere, as the settings name them.
#[derive(Clone, Debug, Default)]
pub struct Links {
    /// Dashboards.
    pub grafana: Option<Link>,
    /// Metrics of the past.
    pub prometheus: Option<Link>,
    /// Traces.
    pub zipkin: Option<Link>,
}

/// The whole process.
pub struct State {
    /// Its roles.
    pub roles: Vec<Role>,
    /// Its clients of services.
    pub clients: Vec<Client>,
    /// The threads that serve.
    pub threads: Arc<Threads>,
    /// The view of the registry; `None` in a process that calls no service.
    pub view: Option<ViewHandle>,
    /// Names of this process that a caller may use for its host, besides addresses and `localhost`.
    pub names: Vec<String>,
    /// What callers have to show; `None` if nothing.
    pub token: Option<Arc<Token>>,
    /// All metrics of the process.
    pub metrics: prometheus::Registry,
    /// Those of them that are set when they are read.
    pub registry_metrics: RegistryMetrics,
    /// When the process began, seconds since 1970.
    pub started_at: u64,
    /// What was answered over the last minutes.
    pub history: History,
    /// The last notable events.
    pub events: Events,
    /// Pages about this process elsewhere.
    pub links: Links,
    /// The log level; `None` if it was not set by [`log::init`].
    pub level: Option<log::Level>,
}
