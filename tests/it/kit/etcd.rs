//! A real etcd: the program that the variable `ETCD` names, else `etcd` from the path.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use super::{free_addr, wait_for};

/// One member on free loopback ports, its data in a directory that ends with it.
pub struct Etcd {
    /// Where clients connect.
    pub addr: SocketAddr,
    peer: SocketAddr,
    data: tempfile::TempDir,
    child: Child,
}

impl Etcd {
    /// Starts it and waits until it answers.
    pub async fn start() -> Self {
        let (addr, peer) = (free_addr(), free_addr());
        let data = tempfile::tempdir().expect("a directory");
        let child = spawn(addr, peer, &data);
        let etcd = Self { addr, peer, data, child };
        etcd.wait_until_healthy().await;
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
        let answer = self.client().await.get(prefix, Some(options)).await;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let kvs = answer.map(|answer| answer.kvs().to_vec()).unwrap_or_default();
        kvs.iter().map(|kv| (text(kv.key()), text(kv.value()))).collect()
    }

    /// Kills it; its data stays.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Starts it again on the same data and addresses.
    pub async fn restart(&mut self) {
        self.kill();
        self.child = spawn(self.addr, self.peer, &self.data);
        self.wait_until_healthy().await;
    }

    /// Starts it again on the same addresses with nothing in it.
    pub async fn wipe(&mut self) {
        self.kill();
        self.data = tempfile::tempdir().expect("a directory");
        self.restart().await;
    }

    /// Sends a signal: `STOP` freezes it, `CONT` lets it go on.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).expect("a pid");
        kill_process(pid, signal).expect("etcd is there");
    }

    async fn wait_until_healthy(&self) {
        let url = format!("http://{}/health", self.addr);
        wait_for("etcd is healthy", || async {
            let output = Command::new("curl").args(["-s", "--max-time", "1", &url]).output();
            let healthy = output.is_ok_and(|out| String::from_utf8_lossy(&out.stdout).contains("true"));
            healthy.then_some(())
        })
        .await;
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
    }
}

fn spawn(addr: SocketAddr, peer: SocketAddr, data: &tempfile::TempDir) -> Child {
    let program = std::env::var("ETCD").unwrap_or_else(|_| "etcd".to_owned());
    let (client, peer) = (format!("http://{addr}"), format!("http://{peer}"));
    Command::new(program)
        .args(["--name", "one", "--log-level", "error"])
        .arg("--data-dir")
        .arg(data.path())
        .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
        .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
        .args(["--initial-cluster", &format!("one={peer}")])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("etcd is installed (make deps)")
}
