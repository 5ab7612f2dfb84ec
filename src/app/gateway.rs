//! The gateway in a process: bind, build, serve, register, drain.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::common::{self, Common, Serving};
use super::drain::Drain;
use super::instance;
use super::role::Member;
use crate::admin::Phase;
use crate::config::{ListenAddr, Role};
use crate::credentials::Unusable;
use crate::gateway::{Auth, Gateway};
use crate::registry::{Registration, advertise};
use crate::server::listener::{Families, Listener};
use crate::server::{Protocol, Stop, serve_on};
use crate::tls::edge;

/// Time for a gateway's drain beyond its longest deadline.
const DRAIN_MARGIN: Duration = Duration::from_millis(500);

/// Binds the listeners: the sockets that systemd passes, else the configured address.
pub fn bind(addr: ListenAddr) -> anyhow::Result<Vec<Listener>> {
    let mut passed = listenfd::ListenFd::from_env();
    let mut listeners = Vec::new();
    for index in 0..passed.len() {
        if let Some(socket) = passed.take_tcp_listener(index)? {
            listeners.push(Listener::adopt(socket)?);
        }
    }
    if listeners.is_empty() {
        listeners.push(common::bind(addr, &["http.addr"])?);
    }
    Ok(listeners)
}

/// Builds the gateway, serves it on each of its listeners, and registers it once for each address that they advertise.
///
/// # Errors
/// When a file that it needs cannot be used.
pub fn start(common: &mut Common, listeners: Vec<Listener>, drain: &Drain) -> Result<Vec<Serving>, Unusable> {
    let Some(addr) = listeners.first().map(Listener::addr) else { return Ok(Vec::new()) };
    let name = Role::Apigateway.name();
    let clients = common.clients(Member::Gateway);
    let common = &*common;
    let settings = &common.settings;
    let limits = common::limits(settings.http.max_connections, settings.http.write_timeout);
    let tracer = common.traces.tracer(name, addr);
    let acceptor = edge::acceptor(&settings.http, &common.metrics.tls)?;
    let auth = Auth::start(&settings.http, &common.metrics.gateway)?;
    let Some(client) = clients.first().cloned() else { return Ok(Vec::new()) };
    let (metrics, unsent) = (&common.metrics.server, limits.unsent.clone());
    let gateway = Gateway::new(client, auth, metrics, tracer, settings, unsent);
    let gateways = clients.map(|number, client| match number {
        0 => Arc::new(gateway.clone()),
        _ => Arc::new(gateway.on_thread(client.clone(), &metrics.of_thread(number))),
    });
    let grace = settings.shutdown.grace.min(settings.client.deadline + DRAIN_MARGIN);
    let mut entries = Entries::default();
    let bound: Vec<_> = listeners.iter().map(|listener| (listener.addr(), listener.families())).collect();
    let families_at = |port| {
        let here = bound.iter().filter(|(addr, _)| addr.port() == port && addr.ip().is_unspecified());
        here.map(|(_, families)| *families).reduce(Families::and)
    };
    let serve_on = |listener: Listener| {
        let listener = listener.with_tls(acceptor.clone());
        let bound = listener.addr();
        // one socket for IPv4 and one for IPv6 are as good as one for both
        let families = families_at(bound.port()).unwrap_or_else(|| listener.families());
        let turn = drain.join(Member::Gateway);
        let threads = common.threads.count();
        tracing::info!(service = name, addr = %bound, admin = %common.admin, threads, "serving");
        let protocol = Protocol::Http1 { header_timeout: settings.http.header_timeout };
        let stop = Stop { begin: drain.stop(), grace };
        let server = tokio::spawn({
            let (limits, metrics) = (limits.clone(), metrics.clone());
            let answers = gateways.map(|_, gateway| {
                let gateway = gateway.clone();
                move |request, peer| gateway.clone().call(request, peer)
            });
            async move { serve_on(listener, protocol, limits, &metrics, answers, stop).await }
        });
        let (mut entry, warnings) = entries.join(common, bound, families);
        for warning in &warnings {
            tracing::warn!(service = name, "{warning}");
        }
        let registration = entry.as_ref().and_then(|entry| entry.registration.as_ref());
        let (role, phase) = common::role(name, bound, None, registration, warnings);
        let drain = Box::pin(async move {
            let present = turn.begin().await;
            phase.send_replace(Phase::Draining);
            // the server already drains; `draining` is for those who watch gateways: one that leaves the registry
            // without it has crashed
            if let Some(entry) = &mut entry {
                entry.drain().await;
            }
            if let Err(error) = server.await {
                tracing::error!(%error, service = name, "server failed");
            }
            drop(present);
            if let Some(entry) = entry {
                entry.leave().await;
            }
        });
        Serving { role, drain }
    };
    Ok(listeners.into_iter().map(serve_on).collect())
}

/// The entries of a gateway in the registry, by advertised address. Sockets may share one: systemd passes several that
/// are bound to the same port, or one for IPv4 and one for IPv6. Two registrations of one address would overwrite each
/// other for ever.
#[derive(Default)]
struct Entries(BTreeMap<String, TaskTracker>);

impl Entries {
    /// Registers the address that a socket advertises, unless another socket has done so. Nobody balances over gateways,
    /// they register only to be seen; so a gateway serves even if no address can be advertised.
    fn join(
        &mut self,
        common: &Common,
        bound: SocketAddr,
        families: Families,
    ) -> (Option<Entry>, Vec<String>) {
        let addr = match advertise::service(bound, families, None, &common.settings.registry) {
            Ok(addr) => addr,
            Err(error) => return (None, vec![format!("not registered: {error}")]),
        };
        let (mut registration, mut warnings) = (None, Vec::new());
        let sockets = self.0.entry(addr.clone()).or_insert_with(|| {
            let name = Role::Apigateway.name();
            let instance;
            (instance, warnings) = instance::describe(&common.settings, name, addr, common.admin);
            registration = Some(common.registry.register(instance));
            TaskTracker::new()
        });
        (Some(Entry { registration, present: sockets.token(), sockets: sockets.clone() }), warnings)
    }
}

/// One socket's part in an entry.
struct Entry {
    /// The first socket has it.
    registration: Option<Registration>,
    present: TaskTrackerToken,
    /// Counts the sockets of the entry that have not ended.
    sockets: TaskTracker,
}

impl Entry {
    /// Marks the entry as draining.
    async fn drain(&mut self) {
        if let Some(registration) = &mut self.registration {
            registration.drain().await;
        }
    }

    /// Ends this socket's part; with the last one the entry leaves the registry.
    async fn leave(self) {
        drop(self.present);
        if let Some(registration) = self.registration {
            self.sockets.close();
            self.sockets.wait().await;
            registration.revoke().await;
        }
    }
}
