//! Our roles as processes over a registry, and what a gateway shows of it.

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::process::Command;
use std::time::Duration;

use command_fds::{CommandFdExt as _, FdMapping};
use serde_json::Value;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::guarantees::Sample;
use super::http::{self, get};
use super::process::{PROGRAM, Process};
use super::{metrics, wait_for};

/// Life of every lease here: the shortest, so that a test takes seconds.
pub const TTL: Duration = Duration::from_secs(1);

/// How often a sampler looks.
const LOOK: Duration = Duration::from_millis(25);

/// One role as a process.
pub struct Role {
    pub process: Process,
    pub addr: SocketAddr,
    pub admin: SocketAddr,
}

impl Role {
    /// Starts a role and waits until it serves. `etcd` is one or more endpoints, `a:1,b:2`; `env` are
    /// settings that differ from the short lease of tests.
    pub fn start(etcd: &str, role: &'static str, listen: &str, env: &[(&str, &str)]) -> Self {
        Self::start_by(Command::new(PROGRAM), etcd, role, listen, env)
    }

    /// As [`Role::start`], by a command that runs the program, or another build of it.
    pub fn start_by(
        command: Command,
        etcd: &str,
        role: &'static str,
        listen: &str,
        env: &[(&str, &str)],
    ) -> Self {
        let mut role = Self::launch_by(command, etcd, role, listen, env);
        let (addr, admin) = role.0.wait_for_role(role.1);
        Self { process: role.0, addr, admin }
    }

    /// Starts a role and waits for nothing.
    pub fn launch(
        etcd: &str,
        role: &'static str,
        listen: &str,
        env: &[(&str, &str)],
    ) -> (Process, &'static str) {
        Self::launch_by(Command::new(PROGRAM), etcd, role, listen, env)
    }

    /// As [`Role::launch`], by a command that runs the program, or another build of it.
    pub fn launch_by(
        mut command: Command,
        etcd: &str,
        role: &'static str,
        listen: &str,
        env: &[(&str, &str)],
    ) -> (Process, &'static str) {
        let flag = if role == "apigateway" { "--http-addr" } else { "--addr" };
        command.args([role, flag, listen, "--debug-addr", "127.0.0.1:0"]);
        let short = [
            ("MSA__REGISTRY__ENDPOINTS", etcd),
            ("MSA__REGISTRY__TTL_S", "1"),
            ("MSA__REGISTRY__KEEPALIVE_MS", "300"),
        ];
        (Process::spawn_with(command, &[&short, env].concat()), role)
    }

    /// Starts a gateway.
    pub fn gateway(etcd: &str) -> Self {
        Self::start(etcd, "apigateway", "127.0.0.1:0", &[])
    }

    /// Starts a gateway on a socket that outlives it, as systemd hands it over.
    pub fn gateway_on(socket: &TcpListener, etcd: &str, env: &[(&str, &str)]) -> Self {
        // LISTEN_PID must name the process itself: the shell sets it and becomes the program
        let mut command = Command::new("sh");
        command.args(["-c", "LISTEN_PID=$$ exec \"$@\"", "sh", PROGRAM, "apigateway"]);
        command.args(["--http-addr", "127.0.0.1:1", "--debug-addr", "127.0.0.1:0"]);
        let parent_fd = OwnedFd::from(socket.try_clone().expect("a socket"));
        command.fd_mappings(vec![FdMapping { parent_fd, child_fd: 3 }]).expect("one mapping");
        let handed = [("MSA__REGISTRY__ENDPOINTS", etcd), ("LISTEN_FDS", "1")];
        let mut process = Process::spawn_with(command, &[&handed, env].concat());
        let admin = process.wait_for_role("apigateway").1;
        Self { process, addr: socket.local_addr().expect("its address"), admin }
    }

    /// Starts instances of a service.
    pub fn services<const N: usize>(etcd: &str, role: &'static str) -> [Self; N] {
        [(); N].map(|()| Self::start(etcd, role, "127.0.0.1:0", &[]))
    }

    pub async fn status(&self) -> Value {
        get(self.admin, "/status").await.json()
    }

    /// Returns the sum of the series that begin so; panics if there is none, see [`metrics::metric`].
    pub async fn metric(&self, series: &str) -> f64 {
        metrics::metric(self.admin, series).await
    }

    /// Returns true if such a series is there and above `least`: a condition to wait for.
    pub async fn metric_above(&self, series: &str, least: f64) -> bool {
        metrics::metric_above(self.admin, series, least).await
    }

    /// Waits until this gateway's list of a service's instances satisfies a condition and each of them
    /// is connected.
    pub async fn wait_for_instances(&self, service: &str, what: &str, fits: impl Fn(&[Value]) -> bool) {
        wait_for(what, || async {
            let status = self.status().await;
            let listed = status["registry"]["services"][service].as_array().cloned().unwrap_or_default();
            let called = status["clients"][0][service].as_array().cloned().unwrap_or_default();
            let up = called.iter().all(|endpoint| endpoint["state"] == "up") && called.len() == listed.len();
            (fits(&listed) && up).then_some(())
        })
        .await;
    }

    /// Waits until so many instances are there, connected and beyond doubt.
    pub async fn wait_for_certain(&self, service: &str, count: usize) {
        self.wait_for_instances(service, "every instance is certain", |listed| {
            listed.len() == count && listed.iter().all(|instance| instance["limbo"] == false)
        })
        .await;
    }

    /// Returns the id of the instance of a service at an address, as this gateway knows it.
    pub async fn id_of(&self, service: &str, addr: SocketAddr) -> String {
        let status = self.status().await;
        let listed = status["registry"]["services"][service].as_array().cloned().unwrap_or_default();
        let found = listed.iter().find(|instance| instance["addr"] == addr.to_string());
        let id = found.and_then(|instance| instance["id"].as_str());
        id.unwrap_or_else(|| panic!("{addr} has no id in {listed:#?}")).to_owned()
    }

    /// Returns what this gateway says of an instance that it calls.
    pub async fn endpoint(&self, service: &str, addr: SocketAddr) -> Option<Value> {
        let status = self.status().await;
        let called = status["clients"][0][service].as_array()?;
        called.iter().find(|endpoint| endpoint["addr"] == addr.to_string()).cloned()
    }

    /// Begins to sample this gateway's view.
    pub fn sample(&self) -> Sampler {
        let (stop, admin) = (CancellationToken::new(), self.admin);
        let until = stop.clone();
        let task = tokio::spawn(async move {
            let mut samples = Vec::new();
            while until.run_until_cancelled(tokio::time::sleep(LOOK)).await.is_some() {
                // a gateway that is not there shows nothing
                if let Ok(answer) = http::send(admin, http::request("GET", "/status", "")).await {
                    samples.push(sample(&answer.json()));
                }
            }
            samples
        });
        Sampler { stop, task }
    }
}

/// Samples of a view, as they come.
pub struct Sampler {
    stop: CancellationToken,
    task: JoinHandle<Vec<Sample>>,
}

impl Sampler {
    /// Stops and returns what was seen.
    pub async fn finish(self) -> Vec<Sample> {
        self.stop.cancel();
        self.task.await.expect("the sampler ends")
    }
}

fn sample(status: &Value) -> Sample {
    let registry = &status["registry"];
    let number = |name: &str| registry[name].as_u64().unwrap_or_else(|| panic!("no {name} in {status:#}"));
    let mut instances = BTreeSet::new();
    for (service, listed) in registry["services"].as_object().expect("services") {
        for instance in listed.as_array().expect("a list of instances") {
            instances.insert((service.clone(), instance["addr"].as_str().expect("an address").to_owned()));
        }
    }
    Sample {
        at: Instant::now(),
        cluster_id: number("cluster_id"),
        revision: registry["revision"].as_i64().expect("a revision"),
        epoch: number("epoch"),
        instances,
    }
}

/// Returns what a set of instances looks like in a [`Sample`].
pub fn alive<'a>(service: &str, roles: impl IntoIterator<Item = &'a Role>) -> BTreeSet<(String, String)> {
    roles.into_iter().map(|role| (service.to_owned(), role.addr.to_string())).collect()
}
