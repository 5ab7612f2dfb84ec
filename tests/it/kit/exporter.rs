//! Prometheus' node exporter: what it tells is about this machine.

use std::net::SocketAddr;
use std::process::{Child, Command};

use super::{etcd, free_addr, http, wait_for};

/// One running program. Killed when dropped.
pub struct Exporter {
    pub addr: SocketAddr,
    child: Child,
}

impl Exporter {
    /// Starts it and waits until it answers.
    pub async fn node() -> Self {
        let addr = free_addr();
        let mut command = Command::new("prometheus-node-exporter");
        command.arg(format!("--web.listen-address={addr}"));
        let child = etcd::quiet(command).spawn().expect("prometheus-node-exporter is installed (make deps)");
        let exporter = Self { addr, child };
        wait_for("node exporter answers", || async {
            let answer = http::send(addr, http::request("GET", "/metrics", "")).await.ok()?;
            answer.status.is_success().then_some(())
        })
        .await;
        exporter
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
