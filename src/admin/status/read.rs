//! Reads the state of the process. It waits for nothing: what a store has said was asked by the service itself.

use std::collections::BTreeMap;

use super::{Endpoint, Registered, Registry, Role, Status};
use crate::admin::health::Health;
use crate::admin::readyz;
use crate::admin::state::{self, State};
use crate::build_info;
use crate::client::{Client, status};
use crate::registry::{View, ViewHandle};

impl State {
    /// Returns the state of the process as it is now.
    #[must_use]
    pub fn status(&self) -> Status {
        let view = self.view.as_ref().map(ViewHandle::get);
        let callers = Client::by_caller(&self.clients);
        let clients = callers.iter().map(|caller| endpoints(caller, view.as_deref()));
        let mut status = Status {
            version: build_info::VERSION.to_owned(),
            started_at: self.started_at,
            health: Health::Ok,
            threads: self.threads.connections().collect(),
            roles: self.roles.iter().map(role).collect(),
            registry: self.view.as_ref().map(|view| registry(self, view)),
            clients: clients.collect(),
            best_effort: callers.iter().map(|caller| status::best_effort(caller)).collect(),
            traffic: self.history.traffic(&self.clients),
            events: self.events.latest(),
        };
        status.health = status.worst();
        status
    }
}

fn role(role: &state::Role) -> Role {
    let (mut failures, mut warnings) = (Vec::new(), Vec::new());
    let store = role.store.as_ref().and_then(|store| store.borrow().clone());
    role.examine(store, &mut failures, &mut warnings);
    Role {
        name: role.name.to_owned(),
        addr: role.addr.to_string(),
        phase: role.phase.borrow().name().to_owned(),
        registration: role.registration.as_ref().map(|state| state.borrow().name().to_owned()),
        database: role.service.as_ref().map(|service| service.store().database()).unwrap_or_default(),
        health: health(&failures, &warnings),
        reasons: [failures, warnings].concat(),
    }
}

/// Returns what failures and warnings come to.
const fn health(failures: &[String], warnings: &[String]) -> Health {
    match (failures, warnings) {
        ([], []) => Health::Ok,
        ([], _) => Health::Warn,
        _ => Health::Fail,
    }
}

fn registry(state: &State, handle: &ViewHandle) -> Registry {
    let (mut failures, mut warnings) = (Vec::new(), Vec::new());
    readyz::examine_view(state, handle, &mut failures, &mut warnings);
    let view = handle.get();
    if !view.limbo.is_empty() {
        let count = view.limbo.len();
        warnings.push(format!("the registry has lost {count} instances that are still called (limbo)"));
    }
    if view.ignored > 0 {
        warnings.push(format!("{} keys cannot be read as instances", view.ignored));
    }
    let instances = view.services.iter().map(|(name, instances)| {
        let list = instances.values().map(|instance| Registered {
            addr: instance.addr.clone(),
            id: instance.id.clone(),
            version: instance.version.clone(),
            zone: instance.zone.clone(),
            weight: instance.weight,
            draining: instance.draining,
            admin: instance.admin.clone(),
            started_at: instance.started_at,
            limbo: in_limbo(&view, &instance.service, &instance.addr),
        });
        (name.clone(), list.collect())
    });
    Registry {
        cluster_id: view.cluster_id,
        revision: view.revision,
        epoch: view.epoch,
        age_seconds: handle.age().map(|age| age.as_secs_f64()),
        differences: handle.differences(),
        ignored_keys: view.ignored,
        services: instances.collect(),
        health: health(&failures, &warnings),
        reasons: [failures, warnings].concat(),
    }
}

fn in_limbo(view: &View, service: &str, addr: &str) -> bool {
    !view.limbo.is_empty() && view.limbo.contains(&(service.to_owned(), addr.to_owned()))
}

fn endpoints(caller: &[&Client], view: Option<&View>) -> BTreeMap<String, Vec<Endpoint>> {
    let services = status::instances(caller).into_iter();
    let with_health = |(service, instances): (String, Vec<_>)| {
        let all = instances.into_iter().map(|seen: status::Instance| {
            let limbo = view.is_some_and(|view| in_limbo(view, &service, &seen.addr));
            Endpoint::new(seen, limbo)
        });
        let all = all.collect();
        (service, all)
    };
    services.map(with_health).collect()
}
