//! `/readyz`: whether the process can serve, with one line for each reason.
//!
//! *Shape*: `ready` or `not ready`, then lines `fail: ...` and `warn: ...`.
//!
//! A process is ready if a request would succeed as far as this process alone decides. What it depends on is a warning
//! line and a metric, so that one lost dependency does not take all instances out of service at once.

use std::time::Duration;

use http::StatusCode;
use tokio::sync::watch;
use warp::reply::Response;

use super::reply::text;
use super::state::{Phase, Role, State};
use crate::client::Client;
use crate::registry::Registered;

/// Longest time that a store may take to show that it can be used.
const STORE_LIMIT: Duration = Duration::from_secs(1);
/// Age of the view above which the registry counts as away. etcd confirms the view every second.
const STALE: Duration = Duration::from_secs(5);

/// Answers whether the process is ready.
pub async fn answer(state: &State) -> Response {
    let (mut failures, mut warnings) = (Vec::new(), Vec::new());
    for role in &state.roles {
        role.examine(&mut failures, &mut warnings).await;
    }
    if let Some(view) = &state.view {
        let gateway = state.roles.iter().any(|role| role.service.is_none());
        match view.age() {
            Some(age) if age > STALE => {
                warnings.push(format!("registry: last heard from {} s ago", age.as_secs()));
            }
            None if gateway && !view.get().is_known() => {
                failures.push("registry: never heard from yet".to_owned());
            }
            None => warnings.push("registry: never heard from yet".to_owned()),
            Some(_) => {}
        }
    }
    for (service, snapshot) in state.clients.iter().flat_map(Client::snapshots) {
        if snapshot.usable.is_empty() {
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

impl Role {
    /// Adds what is wrong with a role.
    async fn examine(&self, failures: &mut Vec<String>, warnings: &mut Vec<String>) {
        let name = self.name;
        let phase = *self.phase.borrow();
        if phase != Phase::Serving {
            failures.push(format!("{name}: {}", phase.name()));
        }
        if let Some(service) = &self.service {
            match tokio::time::timeout(STORE_LIMIT, service.store().usable()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => failures.push(format!("{name}: {error}")),
                Err(_) => failures.push(format!("{name}: store: no answer within {STORE_LIMIT:?}")),
            }
            warnings.extend(service.store().warnings().into_iter().map(|w| format!("{name}: {w}")));
        }
        let absent = |state: &watch::Receiver<Registered>| {
            matches!(*state.borrow(), Registered::Unknown | Registered::Absent)
        };
        if phase == Phase::Serving && self.registration.as_ref().is_some_and(absent) {
            warnings.push(format!("{name}: not registered"));
        }
        warnings.extend(self.warnings.iter().map(|w| format!("{name}: {w}")));
    }
}
