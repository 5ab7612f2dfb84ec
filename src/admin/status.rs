//! `/status`: the state of the process as JSON: its roles, the view of the registry, every endpoint of its clients.

use serde_json::{Value, json};
use warp::reply::Response;

use super::reply;
use super::state::State;
use crate::build_info;
use crate::client::Client;
use crate::registry::ViewHandle;

/// Answers with the state of the process.
pub fn answer(state: &State) -> Response {
    let roles = state.roles.iter().map(|role| {
        let registration = role.registration.as_ref().map(|state| state.borrow().name());
        let database = role.service.as_ref().map(|service| service.store().database());
        json!({
            "name": role.name, "addr": role.addr.to_string(),
            "phase": role.phase.borrow().name(), "registration": registration,
            "database": database,
        })
    });
    let body = json!({
        "version": build_info::VERSION,
        "roles": roles.collect::<Vec<_>>(),
        "registry": state.view.as_ref().map(registry),
        "clients": state.clients.iter().map(Client::status).collect::<Vec<_>>(),
        "best_effort": state.clients.iter().map(Client::best_effort).collect::<Vec<_>>(),
    });
    reply::json(&body)
}

fn registry(handle: &ViewHandle) -> Value {
    let view = handle.get();
    let instances = view.services.iter().map(|(name, instances)| {
        let list = instances.values().map(|instance| {
            json!({
                "addr": instance.addr, "id": instance.id, "version": instance.version,
                "zone": instance.zone, "weight": instance.weight, "draining": instance.draining,
                "admin": instance.admin, "started_at": instance.started_at,
                "limbo": view.limbo.contains(&(instance.service.clone(), instance.addr.clone())),
            })
        });
        (name.clone(), Value::Array(list.collect()))
    });
    json!({
        "cluster_id": view.cluster_id, "revision": view.revision, "epoch": view.epoch,
        "age_seconds": handle.age().map(|age| age.as_secs_f64()),
        "differences": handle.differences(), "ignored_keys": view.ignored,
        "services": instances.collect::<serde_json::Map<_, _>>(),
    })
}
