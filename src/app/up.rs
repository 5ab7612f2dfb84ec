//! `up`: every role in one process, on loopback.

use std::io::Write;

use anyhow::Context as _;

use super::process::{Addresses, Process};
use super::role::ServiceKind;
use crate::config::{ListenAddr, Role, Settings, Store, StoreUrl};

/// Returns a process with the three services, their replicas, and a gateway.
///
/// # Errors
/// When the data directory cannot be made or an address is taken.
pub async fn assemble(settings: Settings) -> anyhow::Result<Process> {
    let up = settings.up.clone();
    let dir = &up.data_dir;
    std::fs::create_dir_all(dir).with_context(|| {
        format!("cannot make the data directory {}, choose another one with --data-dir", dir.display())
    })?;
    let mut process = Process::new(Role::Up, settings)?;
    for kind in ServiceKind::ALL {
        let (addr, replicas) = match kind {
            ServiceKind::Feed => (up.feed_addr, up.feed_replicas),
            ServiceKind::Profile => (up.profile_addr, up.profile_replicas),
            ServiceKind::Topic => (up.topic_addr, up.topic_replicas),
        };
        if replicas == 0 {
            continue;
        }
        let file = dir.join(format!("{}.db", kind.name()));
        let store = Store { url: StoreUrl::Sqlite(file), ..Store::default() };
        process.add_service(kind, addr, &store).await?;
        for _ in 1..replicas {
            process.add_replica(kind, ListenAddr::loopback(0))?;
        }
    }
    process.add_gateway()?;
    Ok(process)
}

/// Writes the addresses, with `docs` that of the page of the API as well, and three commands to try; `scheme` is that of the
/// gateway.
///
/// # Errors
/// When the output is closed.
pub fn greet(addresses: &Addresses, docs: bool, scheme: &str, mut out: impl Write) -> std::io::Result<()> {
    for (name, addr) in &addresses.roles {
        let scheme = if *name == Role::Apigateway.name() { scheme } else { "grpc" };
        writeln!(out, "{name:<10} {scheme}://{addr}")?;
    }
    writeln!(
        out,
        "{:<10} http://{}/ (the page of the system; in the terminal: microservice-app status)",
        "admin", addresses.admin
    )?;
    let Some(gateway) = addresses.of(Role::Apigateway) else {
        return Ok(());
    };
    if docs {
        writeln!(out, "{:<10} {scheme}://{gateway}/docs (the page of the API)", "docs")?;
    }
    writeln!(
        out,
        "\nTry:\n  \
         curl -XPUT \"{scheme}://{gateway}/api/feed/create_feed\" -d '{{\"id\":100,\"user_id\":123,\"content\":\"hello world\"}}'\n  \
         curl -XPUT \"{scheme}://{gateway}/api/feed/create_feed\" -d '{{\"id\":101,\"user_id\":123,\"content\":\"goodbye!\"}}'\n  \
         curl -XGET \"{scheme}://{gateway}/api/feed/get_feeds?user_id=123&&size=2\"\n"
    )?;
    out.flush()
}
