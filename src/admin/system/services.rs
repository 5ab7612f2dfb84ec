//! The part of the page about services and their instances.

use std::fmt::Write as _;

use super::html::{Millis, Share, Text, number, rest};
use crate::admin::health::Health;
use crate::admin::overview::{Instance, Service, registered_only};
use crate::admin::status::{Registered, Status};

/// Most instances of one service that are shown, and of all services together.
const INSTANCES: usize = 20;
const ALL_INSTANCES: usize = 60;

/// Appends the services that are called, and what else is registered.
pub fn write(out: &mut String, status: &Status, services: &[Service<'_>]) {
    let mut room = ALL_INSTANCES;
    for service in services {
        self::service(out, service, &mut room);
    }
    for (name, instances) in registered_only(status) {
        others(out, name, instances, &mut room);
    }
}

fn service(out: &mut String, service: &Service<'_>, room: &mut usize) {
    let (name, count) = (Text(service.name), service.instances.len());
    let instances = number(count, "instance");
    let health = service.health.name();
    let _ = write!(
        out,
        "<section id=\"service-{name}\"><h2>{name} <span class=\"state {health}\">{health}</span> \
         <span class=\"dim\">{instances}</span></h2>"
    );
    for reason in &service.reasons {
        let _ = write!(out, "<p>{}</p>", Text(reason));
    }
    out.push_str("<ul class=\"rows\">");
    let shown = INSTANCES.min(*room);
    *room -= shown.min(count);
    for instance in service.instances.iter().take(shown) {
        self::instance(out, service.name, instance);
    }
    let hidden = service.instances.get(shown..).unwrap_or_default();
    rest(out, hidden.len(), &counted(hidden));
    out.push_str("</ul></section>\n");
}

/// Returns how many of some instances have which health.
fn counted(instances: &[Instance<'_>]) -> String {
    let of = |health: Health| {
        let count = instances.iter().filter(|instance| instance.health == health).count();
        (count > 0).then(|| format!("{count} {}", health.name()))
    };
    let counts: Vec<_> = [Health::Fail, Health::Warn, Health::Ok].into_iter().filter_map(of).collect();
    format!("more: {}", counts.join(", "))
}

fn instance(out: &mut String, service: &str, instance: &Instance<'_>) {
    let health = instance.health.name();
    let _ = write!(
        out,
        "<li id=\"{service}-{addr}\" class=\"{health}\"><span class=\"state\">{state}</span>",
        service = Text(service),
        addr = Text(instance.addr),
        state = Text(instance.state()),
    );
    address(out, instance.addr, instance.registered);
    let reason = instance.reason();
    if !reason.is_empty() {
        let _ = write!(out, " {}", Text(reason));
    }
    let _ = write!(
        out,
        "<span class=\"facts\">{} in flight, {}",
        instance.in_flight(),
        number(instance.connections(), "connection")
    );
    if let Some((method, ms)) = instance.slowest() {
        let _ = write!(out, ", {} {}", Text(method), Millis(ms));
    }
    if let Some((method, share)) = instance.failures() {
        let _ = write!(out, ", {} of {} failed", Share(share), Text(method));
    }
    if let Some(version) =
        instance.registered.map(|known| &known.version).filter(|version| !version.is_empty())
    {
        let _ = write!(out, ", {}", Text(version));
    }
    out.push_str("</span></li>");
}

/// Appends an address, as a link to the page of that process if its admin port is known.
fn address(out: &mut String, addr: &str, registered: Option<&Registered>) {
    let admin = registered.and_then(|known| known.admin.as_deref());
    // whoever may write to the registry chooses it
    let is_address = |text: &&str| text.bytes().all(|b| b.is_ascii_alphanumeric() || b".:-_[]".contains(&b));
    let _ = match admin.filter(is_address) {
        Some(admin) => write!(out, "<a href=\"http://{}/\">{}</a>", Text(admin), Text(addr)),
        None => write!(out, "<strong>{}</strong>", Text(addr)),
    };
}

fn others(out: &mut String, name: &str, instances: &[Registered], room: &mut usize) {
    let _ = write!(
        out,
        "<section><h2>{} <span class=\"dim\">{} registered, not called by this process</span></h2><ul class=\"rows\">",
        Text(name),
        instances.len()
    );
    let shown = INSTANCES.min(*room);
    *room -= shown.min(instances.len());
    for instance in instances.iter().take(shown) {
        out.push_str("<li>");
        address(out, &instance.addr, Some(instance));
        let state = if instance.draining { " draining, " } else { " " };
        let _ = write!(out, "<span class=\"dim\">{state}{}</span></li>", Text(&instance.version));
    }
    rest(out, instances.len().saturating_sub(shown), "more");
    out.push_str("</ul></section>\n");
}
