//! What takes several processes: our gateway and feed service over an etcd, and the records that everybody is asked for.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use super::http::send;
use super::process::{Process, free_addr, this, wait_for, wait_until_it_listens};

/// The user whose feeds are read, how many there are, and bytes of the content of each.
pub const USER: i64 = 7;
pub const FEEDS: usize = 20;
pub const CONTENT: usize = 55;
/// What is asked.
pub const PATH: &str = "/api/feed/get_feeds?user_id=7&size=20";

/// An etcd with its data in a directory that ends with it.
pub struct Etcd {
    pub addr: SocketAddr,
    _process: Process,
    _data: tempfile::TempDir,
}

impl Etcd {
    /// Starts the program that the variable `ETCD` names, else `etcd` from the path.
    pub fn start() -> Self {
        let (addr, data) = (free_addr(), tempfile::tempdir().expect("a directory"));
        let [client, peer] = [addr, free_addr()].map(|addr| format!("http://{addr}"));
        let mut command = Command::new(std::env::var("ETCD").unwrap_or_else(|_| "etcd".to_owned()));
        command
            .args(["--name", "one", "--log-level", "error", "--data-dir"])
            .arg(data.path())
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("one={peer}")]);
        let process = Process::start(&mut command);
        wait_for("etcd is healthy", || {
            send(addr, "GET", "/health", "").ok().filter(|(_, body)| body.contains("true"))
        });
        Self { addr, _process: process, _data: data }
    }
}

/// A setting and its value: `client.attempts`, `1`.
pub type Setting = (&'static str, String);

/// A role of the program.
pub struct Role<'a> {
    pub program: &'a Path,
    pub name: &'a str,
    pub addr: SocketAddr,
    pub admin: SocketAddr,
    pub etcd: SocketAddr,
    pub prefix: &'a str,
    pub settings: &'a [Setting],
}

impl Role<'_> {
    pub fn start(&self) -> Process {
        let mut command = Command::new(self.program);
        let flag = if self.name == "apigateway" { "--http-addr" } else { "--addr" };
        command.arg(self.name).args([flag, &self.addr.to_string()]);
        command.args(["--debug-addr", &self.admin.to_string(), "--etcd-addr", &self.etcd.to_string()]);
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("MSA__")) {
            command.env_remove(name);
        }
        command.env("MSA__REGISTRY__PREFIX", self.prefix);
        // a role knows its own settings only
        let other = |key: &str| {
            let section = key.split('.').next().unwrap_or_default();
            match self.name {
                "apigateway" => ["grpc", "store"].contains(&section),
                _ => ["http", "client"].contains(&section),
            }
        };
        for (key, value) in self.settings.iter().filter(|(key, _)| !other(key)) {
            command.env(format!("MSA__{}", key.replace('.', "__").to_uppercase()), value);
        }
        Process::start_as_it_is(&mut command)
    }
}

/// A prefix of its own for each chain over one etcd.
pub fn prefix() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("/perf/{}/", NEXT.fetch_add(1, Relaxed))
}

/// Our gateway before our feed service.
pub struct Chain {
    pub gateway: Process,
    pub feed: Process,
    /// Of the gateway.
    pub addr: SocketAddr,
    _sink: Option<Process>,
}

impl Chain {
    /// Starts it, with a collector of traces that forgets them if it is to be traced, fills it, and waits until a whole
    /// answer comes.
    pub fn start(program: &Path, etcd: &Etcd, traces: Option<f64>, settings: &[Setting]) -> Self {
        let (addr, prefix, mut settings) = (free_addr(), prefix(), settings.to_vec());
        let sink = traces.map(|ratio| {
            let addr = free_addr();
            settings.push(("trace.zipkin_addr", format!("http://{addr}")));
            settings.push(("trace.sample_ratio", ratio.to_string()));
            serve("sink", addr)
        });
        let role = |name, addr| {
            let admin = free_addr();
            let etcd = etcd.addr;
            Role { program, name, addr, admin, etcd, prefix: &prefix, settings: &settings }.start()
        };
        let (feed, gateway) = (role("feed", free_addr()), role("apigateway", addr));
        fill(addr);
        Self { gateway, feed, addr, _sink: sink }
    }
}

/// Starts one of the small servers.
pub fn serve(name: &str, addr: SocketAddr) -> Process {
    let process = Process::start(this().args(["serve", name, &addr.to_string()]));
    wait_until_it_listens(addr);
    process
}

/// Writes the feeds, and waits until a whole answer comes.
pub fn fill(addr: SocketAddr) {
    for id in 1..=FEEDS {
        let body = format!(r#"{{"id":{id},"user_id":{USER},"content":"{}"}}"#, "x".repeat(CONTENT));
        wait_for(&format!("a feed is written at {addr}"), || {
            send(addr, "PUT", "/api/feed/create_feed", &body).ok().filter(|(status, _)| *status == 200)
        });
    }
    wait_for(&format!("the feeds are read at {addr}"), || {
        let answer = send(addr, "GET", PATH, "").ok().filter(|(status, _)| *status == 200);
        answer.filter(|(_, body)| body.matches("content").count() == FEEDS)
    });
}
