//! The command `status`: what the page of the system shows, as a table for a terminal.
//!
//! What a process says is printed without control characters: names and errors in it may come from others.

use std::io::IsTerminal as _;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::PathBuf;
use std::str::FromStr as _;

use anyhow::Context as _;
use clap::Args;
use http::StatusCode;

use crate::admin::health::Health;
use crate::admin::overview::{Service, problems, services};
use crate::admin::status::Status;
use crate::app::health;
use crate::config::{HostPort, ListenAddr, Role, Settings};
use crate::credentials::Source;

pub(super) const LONG_ABOUT: &str = "\
Show the state of a running process and of what it calls, as the page at / of its admin port does: its roles, the \
registry, each service with its instances and why one gets no calls, requests, events.

Exit status: 0 if all is well, 1 if something is not, 2 if the process cannot be asked or for wrong flags. What is well \
is the health in /status: the worst of all parts.";

pub(super) const AFTER_HELP: &str = "\
Examples:
  microservice-app status                     the gateway, or `up`, on this host
  microservice-app status localhost:6062      the feed service on this host
  microservice-app status --watch
  microservice-app status --json | jq .health
  microservice-app status node-0:6060 --token-file admin-token

Colours are used on a terminal only, and not if NO_COLOR is set.";

/// Most instances of a service that are shown; the worst come first.
const INSTANCES: usize = 50;
/// Most problems and events that are shown.
const LINES: usize = 10;

/// Arguments of `status`.
#[derive(Debug, Args)]
pub struct AskStatus {
    /// The admin address to ask [default: 127.0.0.1:6060, that of a gateway and of `up`].
    #[arg(value_parser = address)]
    addr: Option<String>,
    /// Show it again every second, until Ctrl-C.
    #[arg(long)]
    pub watch: bool,
    /// The file with the token of the process, if it has admin.token_file.
    #[arg(long, value_name = "PATH")]
    token_file: Option<PathBuf>,
    /// Print the JSON of /status.
    #[arg(long)]
    json: bool,
}

/// Checks the form of an address, and returns it as it is.
fn address(text: &str) -> Result<String, String> {
    match (ListenAddr::from_str(text), HostPort::from_str(text)) {
        (Err(_), Err(reason)) => Err(reason),
        _ => Ok(text.to_owned()),
    }
}

/// What is printed, and the health that it tells.
pub struct Shown {
    /// Whether all is well.
    pub health: Health,
    /// The table, or the JSON.
    pub text: String,
}

impl Shown {
    /// Returns the exit status: 0 if all is well, else 1.
    #[must_use]
    pub const fn exit_status(&self) -> u8 {
        match self.health {
            Health::Ok => 0,
            Health::Warn | Health::Fail => 1,
        }
    }
}

impl AskStatus {
    /// Asks the process.
    ///
    /// # Errors
    /// Why it cannot be asked.
    pub async fn ask(&self) -> anyhow::Result<Shown> {
        let addr = self.addr()?;
        let token = self.token_file.as_ref().map(|path| Source::new("--token-file", path, None).password());
        let token = token.transpose()?;
        let answer = health::ask(addr, "/status", token.as_deref()).await.with_context(|| {
            format!(
                "cannot ask {addr}; is it running, and is this its admin address (admin.addr, --debug-addr)?"
            )
        })?;
        anyhow::ensure!(
            answer.status != StatusCode::UNAUTHORIZED,
            "{addr} asks for its token (admin.token_file): {}",
            if token.is_some() {
                "that of --token-file is another one"
            } else {
                "name its file by --token-file"
            }
        );
        let said = || answer.text.lines().next().unwrap_or_default().to_owned();
        anyhow::ensure!(answer.status.is_success(), "{addr} answers {}: {}", answer.status, clean(&said()));
        let status: Status = serde_json::from_str(&answer.text)
            .with_context(|| format!("what {addr} answers is not the status of a program of this version"))?;
        let text = if self.json { answer.text } else { table(&status, &Style::of_stdout()) };
        // not what it says of itself: the same rule over its parts
        Ok(Shown { health: status.worst(), text })
    }

    fn addr(&self) -> anyhow::Result<SocketAddr> {
        let Some(text) = &self.addr else { return Ok(Settings::for_role(Role::Up).admin.addr.0) };
        if let Ok(addr) = ListenAddr::from_str(text) {
            return Ok(addr.0);
        }
        let mut found =
            text.to_socket_addrs().with_context(|| format!("the name in {text} has no address"))?;
        found.next().with_context(|| format!("the name in {text} has no address"))
    }
}

/// How the table is printed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Style {
    /// With colours.
    pub colours: bool,
    /// Longest line, characters; none for a file or a pipe.
    pub width: Option<usize>,
}

impl Style {
    fn of_stdout() -> Self {
        let out = std::io::stdout();
        if !out.is_terminal() {
            return Self::default();
        }
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let dumb = set("TERM").is_some_and(|term| term == "dumb");
        let size = rustix::termios::tcgetwinsize(&out).ok();
        let width = size.map(|size| usize::from(size.ws_col)).filter(|width| *width > 0);
        Self { colours: set("NO_COLOR").is_none() && !dumb, width }
    }
}

/// Returns the table.
#[must_use]
pub fn table(status: &Status, style: &Style) -> String {
    let services = services(status);
    let mut lines = Lines { out: String::new(), style: *style };
    let health = status.worst();
    lines.health(health, &format!("{}  {}", health.name(), status.version));
    let problems = problems(status, &services);
    for problem in problems.iter().take(LINES) {
        lines.health(problem.health, &format!("  {}: {}", problem.of, problem.reason));
    }
    lines.more(problems.len().saturating_sub(LINES));
    roles(&mut lines, status);
    instances(&mut lines, &services);
    requests(&mut lines, status);
    if !status.events.is_empty() {
        lines.title("EVENTS (UTC)");
        let rows = status.events.iter().take(LINES).map(|event| {
            let of_day = event.at % 86_400;
            let time = format!("{:02}:{:02}:{:02}", of_day / 3600, of_day / 60 % 60, of_day % 60);
            (None, vec![time, event.kind.name().to_owned(), event.text.clone().into_owned()])
        });
        lines.table(&[], rows.collect());
    }
    lines.out
}

type Row = (Option<Health>, Vec<String>);

fn roles(lines: &mut Lines, status: &Status) {
    let role = |role: &crate::admin::status::Role| {
        let registration =
            role.registration.as_deref().map_or(String::new(), |state| format!("registration {state}"));
        let cells = [
            role.name.clone(),
            role.health.name().to_owned(),
            role.addr.clone(),
            role.phase.clone(),
            registration,
        ];
        (Some(role.health), cells.to_vec())
    };
    let mut rows: Vec<Row> = status.roles.iter().map(role).collect();
    if let Some(registry) = &status.registry {
        let age =
            registry.age_seconds.map_or("never heard from".to_owned(), |age| format!("heard {age:.0} s ago"));
        let revision = format!("revision {}", registry.revision);
        let limbo = registry.services.values().flatten().filter(|instance| instance.limbo).count();
        let limbo = format!("limbo {limbo}, resets {}", registry.epoch);
        rows.push((
            Some(registry.health),
            vec!["registry".into(), registry.health.name().into(), age, revision, limbo],
        ));
    }
    lines.table(&["ROLE", "HEALTH", "ADDRESS", "PHASE", ""], rows);
}

fn instances(lines: &mut Lines, services: &[Service<'_>]) {
    for service in services {
        let row = |instance: &crate::admin::overview::Instance<'_>| {
            let latency =
                instance.slowest().map_or(String::new(), |(method, ms)| format!("{ms:.1} ms {method}"));
            let in_flight = instance.in_flight().to_string();
            let cells = vec![
                instance.addr.to_owned(),
                instance.state().into_owned(),
                in_flight,
                latency,
                instance.reason(),
            ];
            (Some(instance.health), cells)
        };
        let rows = service.instances.iter().take(INSTANCES).map(row).collect();
        let title = format!("{}: {}", service.name.to_uppercase(), service.health.name());
        lines.table(&[&title, "STATE", "IN FLIGHT", "LATENCY", "WHY"], rows);
        lines.more(service.instances.len().saturating_sub(INSTANCES));
    }
}

fn requests(lines: &mut Lines, status: &Status) {
    let traffic = &status.traffic;
    let row = |route: &crate::admin::Route| {
        let p99 = route.p99_ms.map_or(String::new(), |ms| format!("{ms:.1} ms"));
        let failed = format!("{:.1} %", route.failed * 100.0);
        (None, vec![route.name.clone(), format!("{:.1}", route.per_second), failed, p99])
    };
    if !traffic.routes.is_empty() {
        lines.table(
            &["REQUESTS", "PER SECOND", "FAILED", "99 % WITHIN"],
            traffic.routes.iter().map(row).collect(),
        );
    }
    let row = |calls: &crate::admin::Calls| {
        let retries = format!("{} of {}", calls.retries, calls.budget);
        let cells = vec![
            calls.service.clone(),
            retries,
            calls.refused_by_budget.to_string(),
            calls.fallbacks.to_string(),
        ];
        (None, cells)
    };
    if !traffic.calls.is_empty() {
        let heads = ["CALLS OF", "RETRIES IN 10 S", "NOT MADE", "FROM FALLBACK"];
        lines.table(&heads, traffic.calls.iter().map(row).collect());
    }
}

struct Lines {
    out: String,
    style: Style,
}

impl Lines {
    /// Adds a line in the colour of a health.
    fn health(&mut self, health: Health, text: &str) {
        self.line(Some(health), text);
    }

    fn title(&mut self, text: &str) {
        self.out.push('\n');
        self.line(None, text);
    }

    fn more(&mut self, count: usize) {
        if count > 0 {
            self.line(None, &format!("  and {count} more"));
        }
    }

    /// Adds rows in columns; nothing if there are none.
    fn table(&mut self, heads: &[&str], rows: Vec<Row>) {
        let head = (!heads.is_empty()).then(|| (None, heads.iter().map(|head| (*head).to_owned()).collect()));
        if head.is_some() {
            self.out.push('\n');
        }
        let rows = head.into_iter().chain(rows).map(|(health, cells): Row| {
            let cells: Vec<_> = cells.iter().map(|cell| clean(cell)).collect();
            (health, cells)
        });
        let rows: Vec<Row> = rows.collect();
        let mut widths = Vec::new();
        for (column, cell) in rows.iter().flat_map(|(_, cells)| cells.iter().enumerate()) {
            if column == widths.len() {
                widths.push(0);
            }
            widths[column] = widths[column].max(cell.chars().count());
        }
        for (health, cells) in rows {
            let padded = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
            let line = padded.collect::<Vec<_>>().join("  ");
            self.line(health, line.trim_end());
        }
    }

    fn line(&mut self, health: Option<Health>, text: &str) {
        let text = clean(text);
        let text = match self.style.width.and_then(|width| Some((width, text.char_indices().nth(width)?.0))) {
            Some((width, _)) => text.chars().take(width.saturating_sub(1)).chain(['…']).collect(),
            None => text,
        };
        let colour = match health {
            Some(Health::Ok) => "32",
            Some(Health::Warn) => "33",
            Some(Health::Fail) => "31",
            None => "",
        };
        if self.style.colours && !colour.is_empty() {
            self.out.extend(["\u{1b}[", colour, "m", &text, "\u{1b}[0m\n"]);
        } else {
            self.out.extend([&text, "\n"]);
        }
    }
}

/// Replaces what a terminal would obey: control characters, and marks that change the direction of a text.
fn clean(text: &str) -> String {
    let obeyed = |c: char| {
        c.is_control()
            || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}')
    };
    text.chars().map(|c| if obeyed(c) { '?' } else { c }).collect()
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
