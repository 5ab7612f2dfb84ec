//! Walks through the pages: sessions that run what the pages show, in the order in which an operator would.

mod choice;
mod database;
mod etcd;
mod roles;
mod store;

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use rustix::process::Signal;
use serde_json::Value;

use super::blocks::Walk;
use super::session::{Session, forget};
use super::{ROOT, page};
use crate::kit::collector::{Collector, Manner};
use crate::kit::etcd::Etcd;
use crate::kit::http::get;
use crate::kit::process::Process;
use crate::kit::{SOON, free_addr, wait_for};

/// Starts a command of a page as a process with JSON lines.
fn start(session: &Session, command: &str, env: &[(&str, &str)]) -> Process {
    let mut shell = Command::new("bash");
    shell.args(["-c", &format!("exec {command} \"$@\""), "bash"]).current_dir(session.dir());
    session.environment(&mut shell);
    Process::spawn_with(shell, env)
}

/// Returns a line for each span of a trace: below its parent, as far in as it is deep.
fn tree(spans: &[Value], parent: Option<&str>, depth: usize) -> Vec<String> {
    let below = spans.iter().filter(|span| span["parentId"].as_str() == parent);
    let lines = below.flat_map(|span| {
        let text = |member: &Value| member.as_str().unwrap_or_default().to_owned();
        let (service, name) = (text(&span["localEndpoint"]["serviceName"]), text(&span["name"]));
        let own = format!("{}{service} {name} {}", "  ".repeat(depth), text(&span["kind"]));
        [vec![own], tree(spans, span["id"].as_str(), depth + 1)].concat()
    });
    lines.collect()
}

/// Returns the words of a line.
fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

#[tokio::test]
async fn what_the_pages_show_of_up_is_what_it_prints() {
    let (mut session, collector) = (Session::new(Walk::Up), Collector::start(Manner::Keep));
    session.swap("http://localhost:9411/api/v2/spans", &collector.url());
    let command = session.lines("docs/telemetry.md", "microservice-app up --zipkin-addr").join("\n");
    let mut up = start(&session, &format!("{command} --free-ports"), &[]);
    let gateway = up.wait_for_roles()["apigateway"];
    let (_, admin) = up.wait_for_role("apigateway");
    wait_for("it is ready", || async { (get(admin, "/readyz").await.body == "ready\n").then_some(()) }).await;
    session.swap("localhost:8080", &gateway.to_string());
    for shown in ["localhost:6060", "GATEWAY", "INSTANCE"] {
        session.swap(shown, &admin.to_string());
    }

    session.run("README.md", "$ curl -XPUT");
    session.run("docs/api.md", "$ curl");
    let put = "{\"user_id\":123,\"name\":\"n\",\"company\":\"c\",\"title\":\"t\"}";
    session.sh(&format!("curl -XPUT http://{gateway}/api/profile/put_profile -d '{put}'"));
    let before = collector.spans().len();
    let profile =
        session.say("docs/architecture.md", "curl localhost:8080/api/profile/get_profile?user_id=123");
    assert!(profile.contains("goodbye!"), "with its feeds: {profile}");
    // the trace of that request
    let spans = wait_for("five spans of a profile", || async {
        let spans = collector.spans().split_off(before);
        let profile =
            spans.iter().find(|span| span["name"].as_str().is_some_and(|n| n.contains("get_profile")))?;
        let own = spans.iter().filter(|span| span["traceId"] == profile["traceId"]).cloned();
        let own: Vec<_> = own.collect();
        (own.len() >= 5).then_some(own)
    })
    .await;
    let shown = session.lines("docs/telemetry.md", "apigateway  GET");
    let printed = tree(&spans, None, 0);
    assert_eq!(
        printed.iter().map(|line| words(line)).collect::<Vec<_>>(),
        shown.iter().map(|line| words(line)).collect::<Vec<_>>()
    );

    let set = session.run("docs/telemetry.md", "curl -X PUT localhost:6060/loglevel");
    assert_eq!(set.lines().last(), Some("info,microservice_app::client=debug"), "{set}");
    let topics = session.run("docs/telemetry.md", "curl -H \"b3:");
    assert!(topics.contains("\"topics\""), "{topics}");
    let targets = session.run("docs/telemetry.md", "curl localhost:6060/sd/targets");
    assert!(serde_json::from_str::<Value>(&targets).unwrap().is_array(), "{targets}");
    let three = session.run("docs/runbook.md", "curl GATEWAY/status");
    assert!(three.contains("\"clients\"") && three.matches("ready\n").count() == 2, "{three}");
    for (command, part) in [
        ("curl INSTANCE/readyz", "ready\n"),
        ("curl INSTANCE/status", "\"version\""),
        ("curl INSTANCE/loglevel", "info,microservice_app::client=debug\n"),
        ("curl GATEWAY/status", "\"version\""),
        ("curl GATEWAY/sd/targets", "["),
    ] {
        let printed = session.say("docs/runbook.md", command);
        assert!(printed.contains(part), "{command}: {printed}");
    }
    session.finish();
    up.stop(SOON);
}

#[tokio::test]
async fn the_shown_line_of_the_log_is_what_a_gateway_writes() {
    let (mut session, etcd) = (Session::new(Walk::Alone), Etcd::start().await);
    let (gateway, admin) = (free_addr(), free_addr());
    let log = session.path("log");
    let mut command = session.exec("microservice-app apigateway 2>log");
    command.env("MSA__HTTP__ADDR", gateway.to_string()).env("MSA__ADMIN__ADDR", admin.to_string());
    command.env("MSA__REGISTRY__ENDPOINTS", etcd.addr.to_string());
    let mut child = command.spawn().unwrap();
    wait_for("it answers", || async {
        let asked = crate::kit::http::request("GET", "/readyz", "");
        crate::kit::http::send(admin, asked).await.ok().filter(|answer| answer.status == 200)
    })
    .await;
    assert_eq!(get(gateway, "/api/feed/get_feeds?user_id=1").await.status, 503);
    crate::kit::process::signal(&child, Signal::TERM);
    let status = child.wait().unwrap();
    let log = std::fs::read_to_string(log).unwrap();
    assert!(status.success(), "{status}: {log}");
    let line = log.lines().find(|line| line.contains(" msg=request ")).unwrap_or_else(|| panic!("{log}"));
    let shown = session.lines("docs/telemetry.md", "ts=");
    assert_eq!(forget(line), forget(&shown[0]));
    session.finish();
}

#[test]
fn the_shown_tools_work() {
    let mut session = Session::new(Walk::Tools);
    std::fs::write(session.path("app.toml"), toml_of("docs/configuration.md")).unwrap();
    let settings = session.run("docs/configuration.md", "$ microservice-app check-config");
    assert!(settings.contains("client.deadline_ms = 500\n"), "{settings}");
    assert_eq!(
        session.say("docs/configuration.md", "microservice-app settings"),
        page("docs/configuration.md")
    );
    let json = session.say("docs/configuration.md", "microservice-app settings --format json");
    assert!(serde_json::from_str::<Value>(&json).unwrap().is_object());
    assert_eq!(session.say("docs/api.md", "microservice-app openapi"), page("docs/openapi.json"));
    assert!(session.say("SECURITY.md", "microservice-app --version").starts_with("microservice-app 0."));
    for name in ["docs/nix.md", "docs/operations.md", "docs/runbook.md"] {
        session.say(name, "microservice-app check-config");
    }
    if session.shell("command -v man").output().unwrap().stdout.is_empty() {
        session.program("man", "exec cat \"$@\"");
    }
    let script = session.lines("docs/operations.md", "source <(").join("\n");
    // the source of a page has its hyphens escaped
    let printed = session.sh(&format!("{script}\ncomplete -p microservice-app")).replace("\\-", "-");
    assert!(printed.contains("complete -") && printed.contains("check-config"), "{printed}");

    session.swap("MOUNTPOINT", &session.path("bin").display().to_string());
    for command in ["df -h", "df -i", "du -xh --max-depth=2 MOUNTPOINT | sort -h | tail"] {
        let printed = session.say("docs/runbook.md", command);
        assert!(!printed.is_empty(), "{command}");
    }
    // the rules lie in the repository
    std::os::unix::fs::symlink(Path::new(ROOT).join("deploy"), session.path("deploy")).unwrap();
    let checked = session.run("docs/telemetry.md", "promtool check");
    assert!(checked.contains("SUCCESS") && !checked.contains("FAILED"), "{checked}");
    session.finish();
}

/// Returns the example of a settings file of a page.
fn toml_of(name: &str) -> String {
    let text = page(name);
    let (_, rest) = text.split_once("```toml\n").expect("an example");
    rest.split_once("```").expect("its end").0.to_owned()
}

/// Returns an address as an URL.
fn url(addr: SocketAddr) -> String {
    format!("http://{addr}")
}
