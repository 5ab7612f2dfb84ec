//! Runs one role from its settings to its exit.

use std::time::Duration;

use rustix::process::{Resource, getrlimit, setrlimit};

use super::process::{Addresses, Process};
use super::role::ServiceKind;
use super::{notify, shutdown, up};
use crate::config::{Role, Settings, Switch};
use crate::registry::advertise;
use crate::telemetry::log;

/// Longest time that a service waits at its start for a route to the registry.
const ROUTE_LIMIT: Duration = Duration::from_secs(30);

/// Runs a role until a signal ends it. `log` is what the admin listener shows and may change.
///
/// # Errors
/// When the role cannot start, or when the registry refuses its credentials at the start.
pub async fn run(role: Role, settings: Settings, log: log::Log) -> anyhow::Result<()> {
    let stop = shutdown::on_signal(log.writer.clone())?;
    raise_file_limit();
    if advertises_route_source(role, &settings) {
        let wait = advertise::wait_for_route(&settings.registry, ROUTE_LIMIT);
        if stop.run_until_cancelled(wait).await.is_none() {
            return Ok(());
        }
    }
    let docs = settings.http.docs == Switch::On;
    let scheme = if settings.http.tls_cert_file.is_some() { "https" } else { "http" };
    // a store may wait for the lock of another process
    let Some(process) = stop.run_until_cancelled(Box::pin(assemble(role, settings))).await else {
        return Ok(());
    };
    let mut process = process?;
    process.set_log(log)?;
    let (addresses, threads) = (process.addresses(), process.threads());
    process
        .run(stop, || {
            if role == Role::Up {
                greet(addresses, docs, scheme);
            }
            notify::ready(threads);
        })
        .await
}

/// Prints the addresses, on a thread of its own: standard output may block for ever.
fn greet(addresses: Addresses, docs: bool, scheme: &'static str) {
    let print = move || {
        if up::greet(&addresses, docs, scheme, std::io::stdout()).is_err() {
            tracing::debug!("nobody reads standard output");
        }
    };
    if let Err(error) = std::thread::Builder::new().name("greeting".to_owned()).spawn(print) {
        tracing::warn!(%error, "the addresses cannot be printed");
    }
}

/// Returns true if a role advertises the source address of its route to the registry, so that it needs the route.
fn advertises_route_source(role: Role, settings: &Settings) -> bool {
    match role {
        Role::Feed | Role::Profile | Role::Topic => {
            settings.grpc.addr.0.ip().is_unspecified() && settings.grpc.advertise_addr.is_none()
        }
        Role::Apigateway | Role::Up => false,
    }
}

async fn assemble(role: Role, settings: Settings) -> anyhow::Result<Process> {
    match role {
        Role::Up => up::assemble(settings).await,
        Role::Apigateway => {
            let mut process = Process::new(role, settings)?;
            process.add_gateway()?;
            Ok(process)
        }
        Role::Feed => single(role, ServiceKind::Feed, settings).await,
        Role::Profile => single(role, ServiceKind::Profile, settings).await,
        Role::Topic => single(role, ServiceKind::Topic, settings).await,
    }
}

async fn single(role: Role, kind: ServiceKind, settings: Settings) -> anyhow::Result<Process> {
    let (addr, store) = (settings.grpc.addr, settings.store.clone());
    let mut process = Process::new(role, settings)?;
    process.add_service(kind, addr, &store).await?;
    Ok(process)
}

/// Raises the soft limit of open files to the hard one. Each connection is a file descriptor, and the soft limit is
/// usually 1024, for programs that use `select`.
fn raise_file_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::debug!(%error, "the limit of open files cannot be raised");
    }
}
