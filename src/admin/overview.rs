//! The state of the system as people want to see it: each service once, with its instances, the worst first. The page and
//! `microservice-app status` show it.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::health::Health;
use super::status::{Endpoint, Registered, Status, service};

/// Longest error that is shown, characters.
const ERROR: usize = 120;

/// A service, as all clients of the process together see it.
pub struct Service<'a> {
    /// Its name.
    pub name: &'a str,
    /// That of the worst of its instances; of a service without instances, that it does not work.
    pub health: Health,
    /// What is wrong with it as a whole.
    pub reasons: Vec<String>,
    /// Its instances: the worst first, then by address.
    pub instances: Vec<Instance<'a>>,
}

/// An instance, as all clients of the process together see it.
pub struct Instance<'a> {
    /// Where it is called.
    pub addr: &'a str,
    /// Its health for the client that sees it worst.
    pub health: Health,
    /// What that client sees.
    worst: &'a Endpoint,
    /// What the other clients see.
    others: Vec<&'a Endpoint>,
    /// Its entry in the registry.
    pub registered: Option<&'a Registered>,
}

/// Returns the services that the process calls, by name.
#[must_use]
pub fn services(status: &Status) -> Vec<Service<'_>> {
    let mut services = BTreeMap::<&str, Vec<&Vec<Endpoint>>>::new();
    for (name, instances) in status.clients.iter().flatten() {
        services.entry(name).or_default().push(instances);
    }
    services.into_iter().map(|(name, seen)| merge(status, name, &seen)).collect()
}

/// Returns what is registered under names that no client of the process calls, such as gateways.
pub fn registered_only(status: &Status) -> impl Iterator<Item = (&str, &[Registered])> {
    let called = |name: &String| status.clients.iter().any(|services| services.contains_key(name));
    let all = status.registry.iter().flat_map(|registry| &registry.services);
    all.filter(move |(name, _)| !called(name)).map(|(name, instances)| (name.as_str(), instances.as_slice()))
}

/// Something that is not well.
pub struct Problem<'a> {
    /// How bad it is.
    pub health: Health,
    /// What it is about: a role, the registry, a service, an instance.
    pub of: Cow<'a, str>,
    /// Why it is not well.
    pub reason: String,
}

/// Returns what is not well, the worst first. It is empty if and only if the system is well.
#[must_use]
pub fn problems<'a>(status: &'a Status, services: &[Service<'a>]) -> Vec<Problem<'a>> {
    let mut problems = Vec::new();
    let mut add = |health: Health, of: Cow<'a, str>, reasons: &[String]| {
        if health != Health::Ok {
            let reason = if reasons.is_empty() { health.name().to_owned() } else { reasons.join("; ") };
            problems.push(Problem { health, of, reason });
        }
    };
    for role in &status.roles {
        add(role.health, format!("{} {}", role.name, role.addr).into(), &role.reasons);
    }
    if let Some(registry) = &status.registry {
        add(registry.health, "registry".into(), &registry.reasons);
    }
    for service in services {
        if service.reasons.is_empty() {
            continue; // its instances say what is wrong
        }
        add(service.health, service.name.into(), &service.reasons);
    }
    add(status.traffic.health, "requests".into(), &status.traffic.reasons);
    for service in services {
        for instance in &service.instances {
            if instance.health != Health::Ok {
                let (state, reason) = (instance.state(), instance.reason());
                let separator = if reason.is_empty() { "" } else { ": " };
                let of = format!("{} {}", service.name, instance.addr);
                add(instance.health, of.into(), &[format!("{state}{separator}{reason}")]);
            }
        }
    }
    problems.sort_by_key(|problem| std::cmp::Reverse(problem.health));
    problems
}

fn merge<'a>(status: &'a Status, name: &'a str, seen: &[&'a Vec<Endpoint>]) -> Service<'a> {
    let mut by_addr = BTreeMap::<&str, (&Endpoint, Vec<&Endpoint>)>::new();
    for endpoint in seen.iter().copied().flatten() {
        match by_addr.get_mut(endpoint.seen.addr.as_str()) {
            None => {
                by_addr.insert(&endpoint.seen.addr, (endpoint, Vec::new()));
            }
            Some((worst, others)) if endpoint.health > worst.health => {
                others.push(std::mem::replace(worst, endpoint));
            }
            Some((_, others)) => others.push(endpoint),
        }
    }
    let listed = status.registry.as_ref().and_then(|registry| registry.services.get(name));
    let registered = |addr: &str| {
        let listed = listed?;
        // the list is sorted by address
        listed.binary_search_by(|known| known.addr.as_str().cmp(addr)).ok().and_then(|at| listed.get(at))
    };
    let mut instances: Vec<_> = by_addr
        .into_iter()
        .map(|(addr, (worst, others))| {
            let registered = registered(addr);
            Instance { addr, health: worst.health, worst, others, registered }
        })
        .collect();
    // a stable sort: those of one health stay in the order of their addresses
    instances.sort_by_key(|instance| std::cmp::Reverse(instance.health));
    let mut reasons = Vec::new();
    if instances.is_empty() {
        reasons.push("no instance is known".to_owned());
    } else if seen.iter().any(|instances| instances.is_empty()) {
        reasons.push("one of the roles of this process knows no instance".to_owned());
    } else if !instances.iter().any(|instance| instance.worst.seen.is_up() && !instance.worst.seen.draining) {
        reasons.push("no instance serves".to_owned());
    }
    let suspended = status.best_effort.iter().filter_map(|services| services.get(name)).flatten();
    let mut suspended: Vec<_> = suspended.map(|(method, _)| method.as_str()).collect();
    suspended.sort_unstable();
    suspended.dedup();
    let mut health = Health::worst(seen.iter().map(|instances| service(instances)));
    if !suspended.is_empty() {
        reasons.push(format!("best-effort calls are suspended after failures: {}", suspended.join(", ")));
        health = Health::worst([health, Health::Warn]);
    }
    Service { name, health, reasons, instances }
}

impl Instance<'_> {
    /// Returns a word or two for its state.
    #[must_use]
    pub fn state(&self) -> Cow<'_, str> {
        let seen = &self.worst.seen;
        if seen.draining {
            return "draining".into();
        }
        if seen.is_up() && !seen.breakers.is_empty() {
            return "breaker open".into();
        }
        if seen.is_up() && self.worst.limbo {
            return "limbo".into();
        }
        Cow::from(&seen.state).into_owned().replace('_', " ").into()
    }

    /// Returns why it gets no calls or fewer than its share, and whatever else is not well with it; empty if all is well.
    #[must_use]
    pub fn reason(&self) -> String {
        let seen = &self.worst.seen;
        let mut out = seen.why.clone().unwrap_or_default();
        let longest = seen.breaker_seconds.values().max();
        if let (Some(seconds), true) = (longest, out.starts_with("breaker")) {
            let _ = write!(out, ", for {seconds} s");
        }
        let mut add = |text: &str| {
            let separator = if out.is_empty() { "" } else { "; " };
            out.extend([separator, text]);
        };
        if self.worst.limbo {
            add("the registry has lost it, it is called as long as it says that it serves (limbo)");
        }
        if seen.adopted_id.is_some() {
            add("another process answers than the one that is registered");
        }
        if let (Health::Fail, Some(error)) = (self.health, &seen.last_error) {
            add(&cut(error));
        }
        out
    }

    /// Returns its calls in flight, of all clients.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.all().map(|endpoint| endpoint.seen.in_flight).sum()
    }

    /// Returns its open connections, of all clients.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.all().map(|endpoint| endpoint.seen.connections).sum()
    }

    /// Returns the method with the longest expected latency, ms, if it is worth telling. Latencies fade while nothing is called.
    #[must_use]
    pub fn slowest(&self) -> Option<(&str, f64)> {
        let all = self.all().flat_map(|endpoint| &endpoint.seen.ewma_ms);
        let most = all.max_by(|a, b| a.1.total_cmp(b.1)).map(|(method, ms)| (method.as_str(), *ms));
        most.filter(|(_, ms)| *ms >= 0.05)
    }

    /// Returns the method with the largest share of failures, 0 to 1, if it is worth telling.
    #[must_use]
    pub fn failures(&self) -> Option<(&str, f64)> {
        let all = self.all().flat_map(|endpoint| &endpoint.seen.failures);
        let most = all.max_by(|a, b| a.1.total_cmp(b.1)).map(|(method, share)| (method.as_str(), *share));
        most.filter(|(_, share)| *share >= 0.005)
    }

    fn all(&self) -> impl Iterator<Item = &Endpoint> {
        std::iter::once(self.worst).chain(self.others.iter().copied())
    }
}

/// Cuts a long text.
fn cut(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(ERROR) {
        Some((at, _)) => format!("{}…", text.get(..at).unwrap_or(text)).into(),
        None => text.into(),
    }
}
