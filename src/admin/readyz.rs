//! `/readyz`: whether the process can serve, with one line for each reason. `/livez`: whether its threads run.
//!
//! *Shape*: `ready` or `not ready`, then lines `fail: ...` and `warn: ...`.
//!
//! A process is ready if a request would succeed as far as this process alone decides. What it depends on is a warning
//! line and a metric, so that one lost dependency does not take all instances out of service at once.

use std::collections::BTreeSet;
use std::time::Duration;

use http::StatusCode;
use tokio::sync::watch;
use warp::reply::Response;

use super::reply::text;
use super::state::{Phase, Role, State};
use crate::client::Client;
use crate::registry::{Registered, ViewHandle};
use crate::server::threads::Threads;

/// Longest time that a store may take to show that it can be used.
const STORE_LIMIT: Duration = Duration::from_secs(1);
/// Age of the view above which the registry counts as away. etcd confirms the view every second.
pub const STALE: Duration = Duration::from_secs(5);

/// Longest time in which a thread that serves has to run.
const THREAD_LIMIT: Duration = Duration::from_millis(500);

/// Answers whether every thread runs. One that does not is stuck for good, or the machine is far too slow: a restart helps.
pub async fn live(threads: &Threads) -> Response {
    match threads.check(THREAD_LIMIT).await {
        Ok(()) => text(StatusCode::OK, "ok\n".to_owned()),
        Err(stuck) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{stuck}\n")),
    }
}

/// Answers whether the process is ready.
pub async fn answer(state: &State) -> Response {
    let (mut failures, mut warnings) = (Vec::new(), Vec::new());
    let of = |name: &'static str| move |reason: String| format!("{name}: {reason}");
    failures.extend(state.threads.check(THREAD_LIMIT).await.err().map(|stuck| stuck.to_string()));
    for role in &state.roles {
        let store = role.check_store().await;
        let (mut failed, mut warned) = (Vec::new(), Vec::new());
        role.examine(store, &mut failed, &mut warned);
        failures.extend(failed.into_iter().map(of(role.name)));
        warnings.extend(warned.into_iter().map(of(role.name)));
    }
    if let Some(view) = &state.view {
        let (mut failed, mut warned) = (Vec::new(), Vec::new());
        examine_view(state, view, &mut failed, &mut warned);
        failures.extend(failed.into_iter().map(of("registry")));
        warnings.extend(warned.into_iter().map(of("registry")));
    }
    for caller in Client::by_caller(&state.clients) {
        let seen = caller.iter().flat_map(|client| client.snapshots());
        let without = seen.filter(|(_, snapshot)| snapshot.usable.is_empty()).map(|(service, _)| service);
        for service in without.collect::<BTreeSet<_>>() {
            warnings.push(format!("{service}: no instance can be called"));
        }
    }
    let status = if failures.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let mut out = String::from(if failures.is_empty() { "ready\n" } else { "not ready\n" });
    for (kind, lines) in [("fail", failures), ("warn", warnings)] {
        for line in lines {
            out.extend([kind, ": ", &line, "\n"]);
        }
    }
    text(status, out)
}

/// Adds what is wrong with the view of the registry.
pub fn examine_view(
    state: &State,
    view: &ViewHandle,
    failures: &mut Vec<String>,
    warnings: &mut Vec<String>,
) {
    let gateway = state.roles.iter().any(|role| role.service.is_none());
    match view.age() {
        Some(age) if age > STALE => warnings.push(format!("last heard from {} s ago", age.as_secs())),
        None if gateway && !view.get().is_known() => failures.push("never heard from yet".to_owned()),
        None => warnings.push("never heard from yet".to_owned()),
        Some(_) => {}
    }
}

impl Role {
    /// Asks the store whether it can be used. Returns why not.
    async fn check_store(&self) -> Option<String> {
        let service = self.service.as_ref()?;
        match tokio::time::timeout(STORE_LIMIT, service.store().usable()).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some(format!("store: no answer within {STORE_LIMIT:?}")),
        }
    }

    /// Adds what is wrong with a role. `store` is why its store cannot be used.
    pub fn examine(&self, store: Option<String>, failures: &mut Vec<String>, warnings: &mut Vec<String>) {
        let phase = *self.phase.borrow();
        if phase != Phase::Serving {
            failures.push(phase.name().to_owned());
        }
        failures.extend(store);
        if let Some(service) = &self.service {
            warnings.extend(service.store().warnings());
        }
        let absent = |state: &watch::Receiver<Registered>| {
            matches!(*state.borrow(), Registered::Unknown | Registered::Absent)
        };
        if phase == Phase::Serving && self.registration.as_ref().is_some_and(absent) {
            warnings.push("not registered".to_owned());
        }
        warnings.extend(self.warnings.iter().cloned());
    }
}
