//! `/status`: the state of the process as JSON. The page of the system and `microservice-app status` show the same state.
//!
//! *Shape*: [`Status`]. Its parts have a health each and the reasons for it; [`Status::worst`] is the health of the whole.

mod read;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use warp::reply::Response;

use super::health::Health;
use super::history::Traffic;
use super::reply;
use super::state::State;
use crate::client::status::Instance;
use crate::telemetry::events::Event;

/// The state of a process.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Version and commit of the program.
    pub version: String,
    /// When the process began, seconds since 1970.
    pub started_at: u64,
    /// [`Self::worst`].
    pub health: Health,
    /// The open connections of callers, by the thread that serves them.
    #[serde(default)]
    pub threads: Vec<usize>,
    /// Its roles.
    pub roles: Vec<Role>,
    /// The view of the registry; `None` in a process that calls no service.
    pub registry: Option<Registry>,
    /// For each client of the process, the instances that it calls, by service.
    pub clients: Vec<BTreeMap<String, Vec<Endpoint>>>,
    /// For each client, the breakers for best-effort calls that are not closed, by service and method.
    pub best_effort: Vec<BTreeMap<String, BTreeMap<String, String>>>,
    /// What was answered over the last minute, and what the calls of services have come to.
    pub traffic: Traffic,
    /// The last notable events, the newest first.
    pub events: Vec<Event>,
}

/// One role of the process.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Role {
    /// `feed`, `apigateway`, ...
    pub name: String,
    /// The bound address.
    pub addr: String,
    /// `serving` or `draining`.
    pub phase: String,
    /// The state of its entry in the registry; `None` if it has none.
    pub registration: Option<String>,
    /// Its shared database; null without one.
    pub database: Value,
    /// Whether it is well.
    pub health: Health,
    /// Why it is not.
    pub reasons: Vec<String>,
}

/// The view of the registry.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Registry {
    /// The cluster that it was read from.
    pub cluster_id: u64,
    /// Its revision.
    pub revision: i64,
    /// How often it was another cluster, or an older state of the same one.
    pub epoch: u64,
    /// Time since the registry last confirmed it; `None` before the first time.
    pub age_seconds: Option<f64>,
    /// Keys in which lists differed from events.
    pub differences: usize,
    /// Keys that cannot be read as instances.
    pub ignored_keys: usize,
    /// Its instances by service.
    pub services: BTreeMap<String, Vec<Registered>>,
    /// Whether it is well.
    pub health: Health,
    /// Why it is not.
    pub reasons: Vec<String>,
}

/// An instance as it is registered.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Registered {
    /// Where to call it.
    pub addr: String,
    /// Its id.
    pub id: String,
    /// The version of its program.
    pub version: String,
    /// Its availability zone.
    pub zone: Option<String>,
    /// Its share of calls.
    pub weight: u32,
    /// True once it has said that it stops.
    pub draining: bool,
    /// Its admin listener.
    pub admin: Option<String>,
    /// When it started, seconds since 1970.
    pub started_at: u64,
    /// True if the registry has lost it, and it is still called.
    pub limbo: bool,
}

/// An instance as a client sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Endpoint {
    /// What the client knows of it.
    #[serde(flatten)]
    pub seen: Instance,
    /// True if the registry has lost it, and it is still called.
    pub limbo: bool,
    /// Whether it is well.
    pub health: Health,
}

impl Endpoint {
    /// Returns what a client sees, with its health: one that cannot be called fails, unless it is about to stop; one that
    /// gets fewer calls than its share, or that the registry has lost, is a warning.
    #[must_use]
    pub fn new(seen: Instance, limbo: bool) -> Self {
        let health = if seen.is_up() || seen.is_connecting() || seen.draining {
            if seen.why.is_some() || seen.draining || limbo { Health::Warn } else { Health::Ok }
        } else {
            Health::Fail
        };
        Self { seen, limbo, health }
    }
}

impl Status {
    /// Returns the health of the whole: that of its worst part.
    #[must_use]
    pub fn worst(&self) -> Health {
        let roles = self.roles.iter().map(|role| role.health);
        let registry = self.registry.iter().map(|registry| registry.health);
        let services = self.clients.iter().flatten().map(|(_, instances)| service(instances));
        // calls that are suspended, and not the service as a whole
        let suspended = self.best_effort.iter().any(|services| !services.is_empty());
        let suspended = if suspended { Health::Warn } else { Health::Ok };
        let all = roles.chain(registry).chain(services).chain([suspended, self.traffic.health]);
        Health::worst(all)
    }
}

/// Returns the health of a service by the instances that one client calls: without any it does not work.
#[must_use]
pub fn service(instances: &[Endpoint]) -> Health {
    if instances.is_empty() {
        return Health::Fail;
    }
    Health::worst(instances.iter().map(|instance| instance.health))
}

/// Answers with the state of the process.
pub fn answer(state: &State) -> Response {
    // by way of a value: its members are sorted
    match serde_json::to_value(state.status()) {
        Ok(body) => reply::json(&body),
        Err(error) => {
            tracing::error!(%error, "the state cannot be written as JSON");
            reply::failed()
        }
    }
}
