//! One node: a Patroni, the PostgreSQL that it runs, and the relays around them.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::{LOOP_WAIT, MAJOR, Replication, TTL};
use crate::kit::http::{request, send};
use crate::kit::relay::{Faults, Relay};
use crate::kit::{free_addr, postgres};

/// Longest wait for a Patroni's answer.
const ASK: Duration = Duration::from_secs(1);

/// Longest wait for the end of a node's processes.
const END: Duration = Duration::from_mins(1);

/// A node. All of it ends with it.
pub struct Node {
    pub name: String,
    /// How clients reach its PostgreSQL.
    pub clients: Relay,
    /// How the other nodes reach its PostgreSQL, which is where they stream from.
    pub replication: Relay,
    /// How the other nodes reach its Patroni.
    pub peers_rest: Relay,
    /// How it reaches the members of etcd.
    etcd: Vec<Relay>,
    /// Where its PostgreSQL and its Patroni listen.
    pub server: SocketAddr,
    pub rest: SocketAddr,
    dir: tempfile::TempDir,
    keeper: Child,
}

impl Node {
    /// Starts it and waits for nothing.
    pub async fn start(number: u64, members: Vec<SocketAddr>, waits_for: Replication) -> Self {
        let (server, rest) = (free_addr(), free_addr());
        let clients = Relay::start(server, 3 * number).await;
        let replication = Relay::start(server, 3 * number + 1).await;
        let peers_rest = Relay::start(rest, 3 * number + 2).await;
        let mut etcd = Vec::new();
        for member in members {
            etcd.push(Relay::start(member, 100 + number).await);
        }
        let dir = postgres::directory();
        let name = format!("n{number}");
        let endpoints: Vec<_> = etcd.iter().map(|relay| relay.addr.to_string()).collect();
        let config = json!({
            "scope": "test",
            "name": name,
            "restapi": { "listen": rest, "connect_address": peers_rest.addr },
            // not the addresses that the members tell, past the relays
            "etcd3": { "hosts": endpoints, "use_proxies": true },
            "bootstrap": { "dcs": agreed(waits_for), "initdb": [{ "encoding": "UTF8" }, { "locale": "C" }, "no-sync"] },
            "postgresql": postgresql(dir.path(), server, replication.addr),
            "watchdog": { "mode": "off" },
        });
        std::fs::write(dir.path().join("patroni.yml"), config.to_string()).expect("a file");
        let keeper = spawn(dir.path());
        Self { name, clients, replication, peers_rest, etcd, server, rest, dir, keeper }
    }

    /// Asks its Patroni, past the relays; `None` if there is no answer in time, or no JSON.
    pub async fn ask(&self, path: &str) -> Option<Value> {
        let asked = send(self.rest, request("GET", path, ""));
        let answer = tokio::time::timeout(ASK, asked).await.ok()?.ok()?;
        serde_json::from_str(&answer.body).ok()
    }

    /// Returns true if its Patroni says that it holds the leader's key and its PostgreSQL takes writes.
    pub async fn is_primary(&self) -> bool {
        let asked = send(self.rest, request("GET", "/primary", ""));
        tokio::time::timeout(ASK, asked)
            .await
            .is_ok_and(|answer| answer.is_ok_and(|answer| answer.status == 200))
    }

    /// Sends a signal to every process of its PostgreSQL: `STOP` freezes it.
    pub fn signal_server(&self, signal: Signal) {
        if let Some(postmaster) = self.postmaster() {
            // the postmaster first: it starts new processes, and takes the end of one by a signal for a crash
            for pid in std::iter::once(postmaster).chain(children(postmaster)) {
                let _ = kill_process(pid, signal);
            }
        }
    }

    /// Kills its PostgreSQL as `kill -9` of the postmaster does, which the processes behind it notice.
    pub fn kill_server(&self) {
        let _ = kill_process(self.postmaster().expect("it runs"), Signal::KILL);
    }

    /// Sends a signal to its Patroni.
    pub fn signal_patroni(&self, signal: Signal) {
        if let Some(pid) = self.patroni() {
            let _ = kill_process(pid, signal);
        }
    }

    /// Kills all of it at once, as the end of a host does.
    pub fn kill(&mut self) {
        self.signal_patroni(Signal::KILL);
        self.signal_server(Signal::KILL);
        // what else there is
        drop(self.keeper.stdin.take());
    }

    /// Starts it again on its data if its Patroni is gone.
    pub async fn launch_if_gone(&mut self) {
        if self.patroni().is_none() {
            self.reset().await;
        }
    }

    /// Kills all of it and starts it again on its data, as a watchdog resets a host.
    pub async fn reset(&mut self) {
        self.kill();
        let begun = Instant::now();
        while self.keeper.try_wait().expect("it is our child").is_none() {
            assert!(begun.elapsed() < END, "{} does not end", self.name);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.keeper = spawn(self.dir.path());
    }

    /// Cuts it off from its clients, from etcd, and from the other nodes as far as they call it.
    pub fn cut_off(&self) {
        for relay in self.relays() {
            relay.set(Faults::cut());
        }
    }

    /// Ends every fault of its relays.
    pub fn heal(&self) {
        // not with what it knew of etcd before
        self.watch_anew();
        for relay in self.relays() {
            relay.heal();
        }
        // its watch has no time limit, and what a cut has swallowed does not come any more
        self.watch_anew();
    }

    /// Ends its connections to etcd: it reads everything anew.
    pub fn watch_anew(&self) {
        self.etcd.iter().for_each(Relay::reset);
    }

    fn relays(&self) -> impl Iterator<Item = &Relay> {
        [&self.clients, &self.replication, &self.peers_rest].into_iter().chain(&self.etcd)
    }

    /// Returns the last lines of its log.
    pub fn log(&self) -> String {
        let log = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        let last: Vec<_> = log.lines().rev().take(60).collect();
        last.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    /// Returns the first process of its PostgreSQL, if it runs.
    fn postmaster(&self) -> Option<Pid> {
        let data = self.dir.path().join("data");
        running(&data.join("postmaster.pid"), &data)
    }

    /// Returns the process of its Patroni, if it runs.
    fn patroni(&self) -> Option<Pid> {
        running(&self.dir.path().join("patroni.pid"), self.dir.path())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        end(&mut self.keeper);
        if std::thread::panicking() {
            eprintln!("log of {}:\n{}", self.name, self.log());
        }
    }
}

/// Returns what the nodes agree on, in Patroni's words.
fn agreed(waits_for: Replication) -> Value {
    let mode = match waits_for {
        Replication::Asynchronous => json!(false),
        Replication::Synchronous => json!(true),
        Replication::Quorum => json!("quorum"),
    };
    json!({
        "ttl": TTL.as_secs(),
        "loop_wait": LOOP_WAIT.as_secs(),
        // a Patroni takes no less
        "retry_timeout": if *MAJOR < 4 { 2 } else { 3 },
        // a primary that has crashed is replaced, not awaited
        "primary_start_timeout": 0,
        "failsafe_mode": true,
        "synchronous_mode": mode,
        "synchronous_mode_strict": waits_for != Replication::Asynchronous,
        // a new primary would make the slots of the others late; they stream at once without
        "postgresql": { "use_pg_rewind": true, "use_slots": false },
    })
}

fn postgresql(dir: &Path, listen: SocketAddr, reached: SocketAddr) -> Value {
    json!({
        "listen": listen,
        "connect_address": reached,
        "data_dir": dir.join("data"),
        "bin_dir": postgres::installed("postgres").parent(),
        "pgpass": dir.join("pgpass"),
        "use_unix_socket": true,
        "remove_data_directory_on_diverged_timelines": true,
        "authentication": {
            "superuser": { "username": "postgres" },
            "rewind": { "username": "postgres" },
            "replication": { "username": "replicator" },
        },
        "basebackup": [{ "checkpoint": "fast" }, "no-sync"],
        "pg_hba": ["local all all trust", "host all all 127.0.0.1/32 trust", "host replication all 127.0.0.1/32 trust"],
        "parameters": {
            "unix_socket_directories": dir,
            "shared_buffers": "16MB",
            "wal_keep_size": "128MB",
            // a process that is killed loses nothing that it wrote, and the machine's disk may be busy
            "fsync": "off",
            "wal_sender_timeout": "3s",
            "wal_receiver_timeout": "3s",
            "wal_retrieve_retry_interval": "200ms",
        },
    })
}

/// Starts the keeper of a node, which starts Patroni, which starts PostgreSQL.
fn spawn(dir: &Path) -> Child {
    let pid = dir.join("patroni.pid");
    let _ = std::fs::remove_file(&pid);
    let log = std::fs::OpenOptions::new().create(true).append(true).open(dir.join("log")).expect("a file");
    let mut command = postgres::unprivileged(python(), dir);
    command
        .args(["-c", include_str!("keeper.py")])
        .args([&pid, &program(), &dir.join("patroni.yml")])
        .env("HOME", dir)
        .stdin(Stdio::piped())
        .stdout(log.try_clone().expect("a file"))
        .stderr(log);
    command.spawn().expect("python3 and patroni are installed (make deps)")
}

/// Returns the Patroni that the variable `PATRONI` names, else that of the path.
fn program() -> PathBuf {
    std::env::var_os("PATRONI").map_or_else(|| "patroni".into(), PathBuf::from)
}

/// Returns the major version of the Patroni, as whoever runs it in the tests is told.
pub fn major_version() -> u32 {
    let mut command = postgres::unprivileged(program(), Path::new("/"));
    let told = command.arg("--version").output().expect("patroni is installed (make deps)");
    let version = String::from_utf8_lossy(&told.stdout);
    let major = version.trim().strip_prefix("patroni ").and_then(|version| version.split('.').next());
    major.and_then(|major| major.parse().ok()).unwrap_or_else(|| panic!("no version of Patroni: {told:?}"))
}

/// Returns the Python that Debian's programs use, else the one in the path.
fn python() -> &'static str {
    let debian = "/usr/bin/python3";
    if Path::new(debian).exists() { debian } else { "python3" }
}

/// Ends a keeper, and with it every process below.
fn end(keeper: &mut Child) {
    drop(keeper.stdin.take());
    let begun = Instant::now();
    while begun.elapsed() < END {
        if keeper.try_wait().is_ok_and(|ended| ended.is_some()) {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let _ = keeper.kill();
    let _ = keeper.wait();
}

/// Returns the process that the first line of a file names, if it runs in that directory: another one may have got its
/// number.
fn running(file: &Path, directory: &Path) -> Option<Pid> {
    let text = std::fs::read_to_string(file).ok()?;
    let pid = Pid::from_raw(text.lines().next()?.trim().parse().ok()?)?;
    let runs = std::fs::read_link(format!("/proc/{}/cwd", pid.as_raw_nonzero())).ok()?;
    (runs == directory).then_some(pid)
}

/// Returns the children of a process.
fn children(pid: Pid) -> Vec<Pid> {
    let pid = pid.as_raw_nonzero();
    let listed = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    listed.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)).collect()
}
