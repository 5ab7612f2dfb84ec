//! Programs that tell Prometheus about a machine: node exporter, and cAdvisor where it is there.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command};

use super::{etcd, free_addr, http, wait_for};

/// One running program. Killed when dropped.
pub struct Exporter {
    pub addr: SocketAddr,
    child: Child,
}

impl Exporter {
    /// Starts Prometheus' node exporter.
    pub async fn node() -> Self {
        let addr = free_addr();
        let mut command = Command::new("prometheus-node-exporter");
        command.arg(format!("--web.listen-address={addr}"));
        Self::start(addr, command, "prometheus-node-exporter is installed (make deps)").await
    }

    /// Starts cAdvisor: what the variable `CADVISOR` names, else `target/tools/bin/cadvisor`; none if that is
    /// not there. It wants to be root.
    pub async fn cadvisor() -> Option<Self> {
        let usual = concat!(env!("CARGO_MANIFEST_DIR"), "/target/tools/bin/cadvisor");
        let program = std::env::var("CADVISOR").unwrap_or_else(|_| usual.to_owned());
        if !Path::new(&program).exists() {
            return None;
        }
        let addr = free_addr();
        let mut command = Command::new(program);
        command.args(["-listen", &addr.to_string()]);
        Some(Self::start(addr, command, "cadvisor starts").await)
    }

    async fn start(addr: SocketAddr, command: Command, what: &str) -> Self {
        let exporter = Self { addr, child: etcd::quiet(command).spawn().expect(what) };
        wait_for(what, || async {
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
