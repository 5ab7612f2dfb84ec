//! Writes the page of the system. It says nothing that `/status` does not say, and needs no script.
//!
//! *Size*: what grows with the system is cut: the worst come first, and the rest are counted.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::html::{Millis, Moment, Rate, Share, Text, line, rest};
use crate::admin::health::Health;
use crate::admin::history::Line;
use crate::admin::overview::{Problem, problems, services};
use crate::admin::state::Links;
use crate::admin::status::{Role, Status};

/// Most problems that are listed.
const PROBLEMS: usize = 12;
/// Most routes that are shown. There are fewer.
const ROUTES: usize = 40;
/// Most events that are shown.
const EVENTS: usize = 24;

/// Returns the page.
#[must_use]
pub fn render(status: &Status, past: &BTreeMap<String, Line>, links: &Links) -> String {
    let mut out = String::with_capacity(32 * 1024);
    let services = services(status);
    let problems = problems(status, &services);
    head(&mut out, status);
    summary(&mut out, status.health, &problems);
    process(&mut out, status);
    registry(&mut out, status);
    super::services::write(&mut out, status, &services);
    traffic(&mut out, status, past);
    events(&mut out, status);
    foot(&mut out, links);
    out
}

fn head(out: &mut String, status: &Status) {
    let name = status.roles.first().map_or("microservice-app", |role| &role.name);
    let name = if status.roles.len() > 1 { "up" } else { name };
    let _ = write!(
        out,
        "<!doctype html>\n<html lang=\"en\" data-version=\"{version}\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>{health}: {name}</title>\
         <link rel=\"icon\" href=\"/icon.svg\" type=\"image/svg+xml\"><link rel=\"stylesheet\" href=\"/page.css\">\
         <script src=\"/page.js\" defer></script></head>\n\
         <body><header><h1>System, as {name} sees it</h1>\
         <p id=\"notice\" class=\"notice\" role=\"alert\"></p><p id=\"said\" class=\"unseen\" role=\"status\"></p>\
         <noscript><p>Without scripts this page does not update by itself: reload it.</p></noscript></header>\n<main>",
        version = Text(&status.version),
        health = status.health.name(),
        name = Text(name),
    );
}

fn summary(out: &mut String, health: Health, problems: &[Problem<'_>]) {
    let class = health.name();
    let _ = write!(
        out,
        "<p id=\"summary\" class=\"summary {class}\" data-health=\"{class}\"><strong>{class}</strong>: "
    );
    let _ = match problems {
        [] => write!(out, "all is well"),
        [problem] => write!(out, "{}: {}", Text(&problem.of), Text(&problem.reason)),
        [first, rest @ ..] => {
            write!(out, "{}: {}; and {} more", Text(&first.of), Text(&first.reason), rest.len())
        }
    };
    out.push_str("</p>\n");
    if problems.len() > 1 {
        out.push_str("<ul class=\"rows\" id=\"problems\">");
        for problem in problems.iter().take(PROBLEMS) {
            row(out, problem.health, problem.health.name(), |out| {
                let _ = write!(out, "<strong>{}</strong> {}", Text(&problem.of), Text(&problem.reason));
            });
        }
        rest(out, problems.len().saturating_sub(PROBLEMS), "more");
        out.push_str("</ul>\n");
    }
}

/// Appends a row with its state.
fn row(out: &mut String, health: Health, state: &str, content: impl FnOnce(&mut String)) {
    let _ = write!(out, "<li class=\"{}\"><span class=\"state\">{}</span>", health.name(), Text(state));
    content(out);
    out.push_str("</li>");
}

fn process(out: &mut String, status: &Status) {
    let _ = write!(
        out,
        "<section><h2>This process</h2><p class=\"dim\">version {}, since {}</p><ul class=\"rows\">",
        Text(&status.version),
        Moment(status.started_at)
    );
    for role in &status.roles {
        row(out, role.health, role.health.name(), |out| {
            let _ = write!(
                out,
                "<strong>{}</strong> {}, {}",
                Text(&role.name),
                Text(&role.addr),
                Text(&role.phase)
            );
            if let Some(registration) = &role.registration {
                let _ = write!(out, ", registration {}", Text(registration));
            }
            if !role.reasons.is_empty() {
                let _ = write!(out, "<br>{}", Text(role.reasons.join("; ")));
            }
            database(out, role);
        });
    }
    out.push_str("</ul></section>\n");
}

/// Appends what a role says of its shared database.
fn database(out: &mut String, role: &Role) {
    let Some(connections) = role.database.get("connections").and_then(|all| all.as_array()) else { return };
    for connection in connections {
        let text = |name: &str| connection.get(name).and_then(serde_json::Value::as_str);
        let host =
            text("host").map_or_else(|| "not connected".to_owned(), |host| format!("connected to {host}"));
        let _ = write!(
            out,
            "<span class=\"facts\">database, {}: {}</span>",
            Text(text("name").unwrap_or_default()),
            Text(host)
        );
    }
    let number = |name: &str| role.database.get(name).and_then(serde_json::Value::as_u64).unwrap_or_default();
    let _ = write!(
        out,
        "<span class=\"facts\">{} writes wait, {} failovers</span>",
        number("writes_queued"),
        number("failovers")
    );
}

fn registry(out: &mut String, status: &Status) {
    let Some(registry) = &status.registry else { return };
    out.push_str("<section><h2>Registry</h2><ul class=\"rows\">");
    row(out, registry.health, registry.health.name(), |out| {
        let limbo = registry.services.values().flatten().filter(|instance| instance.limbo).count();
        let _ = match registry.reasons.as_slice() {
            [] => write!(out, "the view is current"),
            reasons => write!(out, "{}", Text(reasons.join("; "))),
        };
        let _ = write!(
            out,
            "<span class=\"facts\">revision {}, {limbo} instances in limbo, {} resets of the view, {} lost events, {} unreadable \
             keys</span>",
            registry.revision, registry.epoch, registry.differences, registry.ignored_keys
        );
    });
    out.push_str("</ul></section>\n");
}

fn traffic(out: &mut String, status: &Status, past: &BTreeMap<String, Line>) {
    let traffic = &status.traffic;
    out.push_str("<section><h2>Requests</h2>");
    for reason in &traffic.reasons {
        let _ = write!(out, "<p class=\"state warn\">{}</p>", Text(reason));
    }
    if traffic.routes.is_empty() {
        out.push_str("<p class=\"dim\">none within five minutes</p>");
    } else {
        let _ = write!(
            out,
            "<table><caption>Numbers of the last {} s, lines of five minutes</caption><thead><tr><th scope=\"col\">Route or \
             method</th><th scope=\"col\">per second</th><th scope=\"col\">failed</th><th scope=\"col\">99 % within</th>\
             </tr></thead><tbody>",
            traffic.seconds
        );
        for route in traffic.routes.iter().take(ROUTES) {
            let _ = write!(out, "<tr><th scope=\"row\">{}", Text(&route.name));
            if let Some(known) = past.get(&route.name) {
                line(out, &known.answers, &known.failed);
            }
            let _ =
                write!(out, "</th><td>{}</td><td>{}</td><td>", Rate(route.per_second), Share(route.failed));
            let _ = match route.p99_ms {
                Some(ms) => write!(out, "{}</td></tr>", Millis(ms)),
                None if route.per_second > 0.0 => write!(out, "> 2.5 s</td></tr>"),
                None => write!(out, "none</td></tr>"),
            };
        }
        out.push_str("</tbody></table>");
    }
    let _ = write!(out, "<ul class=\"rows\"><li>{} refused because of overload</li>", traffic.refused);
    for calls in &traffic.calls {
        let _ = write!(
            out,
            "<li>calls of <strong>{}</strong>: {} retries in 10 s of {} that may be, {} not made for want of budget, {} answers \
             from the fallback</li>",
            Text(&calls.service),
            calls.retries,
            calls.budget,
            calls.refused_by_budget,
            calls.fallbacks
        );
    }
    out.push_str("</ul></section>\n");
}

fn events(out: &mut String, status: &Status) {
    out.push_str("<section><h2>Events</h2>");
    if status.events.is_empty() {
        out.push_str("<p class=\"dim\">none since the start</p>");
    }
    out.push_str("<ul class=\"rows\">");
    for event in status.events.iter().take(EVENTS) {
        let _ = write!(
            out,
            "<li><time>{}</time> <span class=\"dim\">{}</span> {}</li>",
            Moment(event.at),
            event.kind.name(),
            Text(&event.text)
        );
    }
    out.push_str("</ul></section></main>\n");
}

fn foot(out: &mut String, links: &Links) {
    out.push_str("<footer>");
    if links.zipkin.is_some() {
        out.push_str(
            "<form action=\"/trace\"><label for=\"trace\">Trace id</label> <input id=\"trace\" name=\"id\" required \
             pattern=\"[0-9a-fA-F]{16}|[0-9a-fA-F]{32}\" autocomplete=\"off\"> <button>Show in Zipkin</button></form>",
        );
    }
    out.push_str("<p><button id=\"pause\" type=\"button\" hidden>Pause updates</button></p><nav aria-label=\"More\"><p>");
    for (name, link) in
        [("Grafana", &links.grafana), ("Prometheus", &links.prometheus), ("Zipkin", &links.zipkin)]
    {
        if let Some(link) = link {
            let _ = write!(out, "<a href=\"{}\">{name}</a>", Text(link));
        }
    }
    for path in ["/status", "/readyz", "/metrics", "/loglevel"] {
        let _ = write!(out, "<a href=\"{path}\">{path}</a>");
    }
    out.push_str("</p></nav></footer></body></html>\n");
}
