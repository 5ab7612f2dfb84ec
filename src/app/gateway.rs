//! The gateway in a process: bind, build, serve, register, drain.

use std::net::SocketAddr;
use std::time::Duration;

use super::common::{self, Common, Serving};
use super::drain::Drain;
use super::instance;
use super::role::Member;
use crate::admin::Phase;
use crate::config::{ListenAddr, Role};
use crate::gateway::Gateway;
use crate::registry::{Registration, advertise};
use crate::server::listener::Listener;
use crate::server::{Protocol, Stop, serve};

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
        listeners.push(Listener::bind(addr.0)?);
    }
    Ok(listeners)
}

/// Builds the gateway, serves it on each of its listeners, and registers it once for each.
pub fn start(common: &mut Common, listeners: Vec<Listener>, drain: &Drain) -> Vec<Serving> {
    let Some(addr) = listeners.first().map(Listener::addr) else { return Vec::new() };
    let name = Role::Apigateway.name();
    let client = common.client(Member::Gateway);
    let common = &*common;
    let settings = &common.settings;
    let limits = common::limits(settings.http.max_connections, settings.http.write_timeout);
    let tracer = common.traces.tracer(name, addr);
    let gateway = Gateway::new(client, &common.metrics.server, tracer, settings, limits.unsent.clone());
    let grace = settings.shutdown.grace.min(settings.client.deadline + DRAIN_MARGIN);
    let serve_on = |listener: Listener| {
        let (bound, turn) = (listener.addr(), drain.join(Member::Gateway));
        tracing::info!(service = name, addr = %bound, admin = %common.admin, "serving");
        let protocol = Protocol::Http1 { header_timeout: settings.http.header_timeout };
        let stop = Stop { begin: drain.stop(), grace };
        let server = tokio::spawn({
            let (gateway, limits, metrics) = (gateway.clone(), limits.clone(), common.metrics.server.clone());
            let answer = move |request, peer| gateway.clone().call(request, peer);
            async move { serve(listener, protocol, limits, &metrics, answer, stop).await }
        });
        let (mut registration, warnings) = register(common, bound);
        for warning in &warnings {
            tracing::warn!(service = name, "{warning}");
        }
        let (role, phase) = common::role(name, bound, None, registration.as_ref(), warnings);
        let drain = Box::pin(async move {
            let present = turn.begin().await;
            phase.send_replace(Phase::Draining);
            // the server already drains; `draining` is for those who watch gateways: one that leaves the registry
            // without it has crashed
            if let Some(registration) = &mut registration {
                registration.drain().await;
            }
            if let Err(error) = server.await {
                tracing::error!(%error, service = name, "server failed");
            }
            drop(present);
            if let Some(registration) = registration {
                registration.revoke().await;
            }
        });
        Serving { role, drain }
    };
    listeners.into_iter().map(serve_on).collect()
}

/// Registers a gateway. Nobody balances over gateways, they register only to be seen; so a gateway serves even if no
/// address can be advertised.
fn register(common: &Common, bound: SocketAddr) -> (Option<Registration>, Vec<String>) {
    match advertise::service(bound, None, &common.settings.registry) {
        Ok(addr) => {
            let name = Role::Apigateway.name();
            let (instance, warnings) = instance::describe(&common.settings, name, addr, common.admin);
            (Some(common.registry.register(instance)), warnings)
        }
        Err(error) => (None, vec![format!("not registered: {error}")]),
    }
}
