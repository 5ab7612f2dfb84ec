//! A real etcd: the program that the variable `ETCD` names, else `etcd` from the path.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use std::time::Duration;

use rustix::process::Signal;

use super::{free_addr, http, process, wait_for};

/// What is not usual about a member.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Where it listens for https beside plain http; the certificates come with `args`.
    pub https: Option<SocketAddr>,
    /// Where it listens for plain http as well.
    pub also: Option<SocketAddr>,
    /// Further arguments.
    pub args: Vec<String>,
}

/// One member on free loopback ports, its data in a directory that ends with it.
pub struct Etcd {
    /// Where clients connect.
    pub addr: SocketAddr,
    peer: SocketAddr,
    options: Options,
    data: tempfile::TempDir,
    child: Child,
}

impl Etcd {
    /// Starts it and waits until it answers.
    pub async fn start() -> Self {
        Self::start_with(Options::default()).await
    }

    /// Starts an unusual one and waits until it answers.
    pub async fn start_with(options: Options) -> Self {
        let (addr, peer) = (free_addr(), free_addr());
        let data = tempfile::tempdir().expect("a directory");
        let child = spawn(addr, peer, &options, &data);
        let etcd = Self { addr, peer, options, data, child };
        wait_until_healthy(addr).await;
        etcd
    }

    /// Returns a client.
    pub async fn client(&self) -> etcd_client::Client {
        let endpoints = [self.addr.to_string()];
        etcd_client::Client::connect(endpoints, None).await.expect("a lazy client")
    }

    /// Returns every key below a prefix with its value.
    pub async fn list(&self, prefix: &str) -> Vec<(String, String)> {
        let options = etcd_client::GetOptions::new().with_prefix();
        let answer = self.client().await.get(prefix, Some(options)).await.expect("etcd answers");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        answer.kvs().iter().map(|kv| (text(kv.key()), text(kv.value()))).collect()
    }

    /// Kills it; its data stays.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Starts it again on the same data and addresses.
    pub async fn restart(&mut self) {
        self.kill();
        self.child = spawn(self.addr, self.peer, &self.options, &self.data);
        wait_until_healthy(self.addr).await;
    }

    /// Starts it again on the same addresses with nothing in it.
    pub async fn wipe(&mut self) {
        self.kill();
        self.data = tempfile::tempdir().expect("a directory");
        self.restart().await;
    }

    /// Sends a signal: `STOP` freezes it, `CONT` lets it go on.
    pub fn signal(&self, signal: Signal) {
        process::signal(&self.child, signal);
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
    }
}

fn spawn(addr: SocketAddr, peer: SocketAddr, options: &Options, data: &tempfile::TempDir) -> Child {
    let (mut client, peer) = (format!("http://{addr}"), format!("http://{peer}"));
    if let Some(https) = options.https {
        client = format!("{client},https://{https}");
    }
    if let Some(also) = options.also {
        client = format!("{client},http://{also}");
    }
    let mut command = Command::new(program());
    command
        .args(["--name", "one", "--log-level", "error"])
        .arg("--data-dir")
        .arg(data.path())
        .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
        .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
        .args(["--initial-cluster", &format!("one={peer}")])
        .args(&options.args);
    quiet(command).spawn().expect("etcd is installed (make deps)")
}

/// Returns the program: what the variable `ETCD` names, else `etcd` from the path.
pub fn program() -> String {
    std::env::var("ETCD").unwrap_or_else(|_| "etcd".to_owned())
}

/// Takes a command's input and output away.
pub fn quiet(mut command: Command) -> Command {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// Waits until the member at a client address has a leader and answers.
pub async fn wait_until_healthy(addr: SocketAddr) {
    wait_for("etcd is healthy", || async {
        let healthy = async {
            let answer = http::send(addr, http::request("GET", "/health", "")).await.ok()?;
            answer.body.contains("true").then_some(())
        };
        tokio::time::timeout(Duration::from_secs(1), healthy).await.ok().flatten()
    })
    .await;
}
