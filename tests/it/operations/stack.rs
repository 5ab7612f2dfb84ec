//! `deploy/stack`: everything as processes of their own, and nothing left of it afterwards.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::kit::process::PROGRAM;
use crate::kit::{free_addr, http, wait_for, wait_long_for};

const PORTS: [&str; 14] = [
    "ETCD",
    "ETCD_PEER",
    "ZIPKIN",
    "FEED",
    "FEED_ADMIN",
    "PROFILE",
    "PROFILE_ADMIN",
    "TOPIC",
    "TOPIC_ADMIN",
    "GATEWAY",
    "GATEWAY_ADMIN",
    "NODE",
    "ALERTMANAGER",
    "PROMETHEUS",
];
const PARTS: [&str; 9] =
    ["etcd", "zipkin", "feed", "profile", "topic", "apigateway", "node", "alertmanager", "prometheus"];

/// A stack on free ports in a directory of its own. It is taken down when dropped.
struct Stack {
    dir: tempfile::TempDir,
    ports: BTreeMap<&'static str, SocketAddr>,
}

impl Stack {
    fn new() -> Self {
        let ports = PORTS.map(|name| (name, free_addr())).into();
        Self { dir: tempfile::tempdir().unwrap(), ports }
    }

    fn run(&self, command: &str) -> Output {
        // through bash: a sandbox has no /usr/bin/env
        let mut stack = Command::new("bash");
        stack.args([concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/stack"), command]).stdin(Stdio::null());
        stack.env("STACK_DIR", self.dir.path()).env("STACK_PROGRAM", PROGRAM);
        for (name, addr) in &self.ports {
            stack.env(format!("STACK_{name}_PORT"), addr.port().to_string());
        }
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("MSA__")) {
            stack.env_remove(name);
        }
        stack.output().unwrap()
    }

    /// Runs a command that must succeed; returns what it prints.
    fn ok(&self, command: &str) -> String {
        let output = self.run(command);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Returns the process of each part that was started.
    fn pids(&self) -> BTreeMap<String, u32> {
        let mut found = BTreeMap::new();
        for part in PARTS {
            if let Ok(text) = std::fs::read_to_string(self.dir.path().join(format!("{part}.pid"))) {
                found.insert(part.to_owned(), text.split(' ').next().unwrap().parse().unwrap());
            }
        }
        found
    }

    /// Returns the commands that run with one of the ports.
    fn left(&self) -> Vec<String> {
        let of = |entry: std::io::Result<std::fs::DirEntry>| {
            let command = std::fs::read(entry.ok()?.path().join("cmdline")).ok()?;
            Some(String::from_utf8_lossy(&command).replace('\0', " "))
        };
        let ours = |command: &String| {
            self.ports.values().any(|addr| command.contains(&addr.to_string()))
                || command.contains(&self.dir.path().display().to_string())
        };
        std::fs::read_dir("/proc").unwrap().filter_map(of).filter(ours).collect()
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        let output = self.run("down");
        if std::thread::panicking() {
            eprintln!("down: {}", String::from_utf8_lossy(&output.stderr));
        }
    }
}

#[tokio::test]
async fn the_stack_comes_up_and_goes_down() {
    let stack = Stack::new();
    assert!(!stack.run("status").status.success());
    let printed = stack.ok("up");
    let urls: Vec<_> = printed.split_whitespace().filter_map(|word| word.strip_prefix("http://")).collect();
    assert!(urls.len() >= 10, "{printed}");
    for url in &urls {
        let (addr, path) = url.split_at(url.find('/').unwrap_or(url.len()));
        let addr: SocketAddr = addr.parse().unwrap();
        let answer = http::get(addr, if path.is_empty() { "/" } else { path }).await;
        // the gateway has no page of its own
        let page = answer.status.as_u16() < 400 || path.is_empty() && addr == stack.ports["GATEWAY"];
        assert!(page, "{url}: {answer:?}");
    }
    let pids = stack.pids();
    assert_eq!(pids.len(), PARTS.len());
    stack.ok("status");
    everything_is_seen(&stack).await;

    // again: only what is missing is started
    let gone = |pid: u32| !Path::new(&format!("/proc/{pid}/exe")).exists();
    let topic = pids["topic"];
    kill_process(Pid::from_raw(topic.cast_signed()).unwrap(), Signal::KILL).unwrap();
    wait_for("topic is gone", || async { gone(topic).then_some(()) }).await;
    let status = stack.run("status");
    assert!(!status.status.success());
    assert!(String::from_utf8_lossy(&status.stdout).contains("topic          stopped"), "{status:?}");
    assert_eq!(stack.ok("up"), printed);
    let mut now = stack.pids();
    assert_ne!(now.insert("topic".to_owned(), topic), Some(topic));
    assert_eq!(now, pids);

    let pids = stack.pids();
    stack.ok("down");
    let running: Vec<_> = pids.iter().filter(|(_, pid)| !gone(**pid)).collect();
    assert!(running.is_empty(), "{running:?}");
    assert_eq!(stack.left(), [] as [String; 0]);
    stack.ok("down");
}

/// Prometheus reaches every part, and a request becomes a trace.
async fn everything_is_seen(stack: &Stack) {
    let id = "5ac4f00d5ac4f00d";
    let mut asked = http::request("GET", "/api/profile/get_profile?user_id=1", "");
    asked.headers_mut().insert("b3", format!("{id}-{id}-1").parse().unwrap());
    assert_eq!(http::send(stack.ports["GATEWAY"], asked).await.unwrap().status, 404);
    wait_for("the trace is in Zipkin", || async {
        let answer = http::get(stack.ports["ZIPKIN"], &format!("/api/v2/trace/{id}")).await;
        (answer.status == 200 && answer.body.contains("\"profile\"")).then_some(())
    })
    .await;
    let query = "/api/v1/query?query=sum%20by%20(job)%20(up)";
    wait_long_for("Prometheus reaches every part", || async {
        let found = http::get(stack.ports["PROMETHEUS"], query).await.json();
        let jobs = found["data"]["result"].as_array()?;
        let up = jobs.iter().filter(|job| job["value"][1] == "1").count();
        (up == PARTS.len()).then_some(())
    })
    .await;
}

#[test]
fn a_taken_port_is_named_and_nothing_is_started() {
    let mut stack = Stack::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    stack.ports.insert("ALERTMANAGER", taken.local_addr().unwrap());
    let output = stack.run("up");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    let port = taken.local_addr().unwrap().port();
    let wanted =
        format!("port {port}, for alertmanager, is taken; set STACK_ALERTMANAGER_PORT to another one");
    assert!(errors.contains(&wanted), "{errors}");
    assert_eq!(stack.pids(), BTreeMap::new());
    assert_eq!(stack.left(), [] as [String; 0]);
}

#[test]
fn a_process_of_somebody_else_with_the_same_id_lives_on() {
    let stack = Stack::new();
    let mut other = Command::new("sleep").arg("60").spawn().unwrap();
    std::fs::write(stack.dir.path().join("feed.pid"), format!("{} 12345\n", other.id())).unwrap();
    stack.ok("down");
    assert_eq!(other.try_wait().unwrap(), None, "it was ended");
    assert_eq!(stack.pids(), BTreeMap::new());
    other.kill().unwrap();
    other.wait().unwrap();
}
