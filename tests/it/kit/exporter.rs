//! Prometheus' node exporter: what it tells is about this machine.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command};

use super::{etcd, free_addr, http, wait_for};

/// One running program. Killed when dropped.
pub struct Exporter {
    pub addr: SocketAddr,
    child: Child,
    _sys: Option<tempfile::TempDir>,
}

impl Exporter {
    /// Starts it and waits until it answers.
    pub async fn node() -> Self {
        let addr = free_addr();
        let mut command = Command::new("prometheus-node-exporter");
        command.arg(format!("--web.listen-address={addr}"));
        // it ends with a panic where there is no /sys, as in a sandbox of Nix
        let sys = (!Path::new("/sys/class").exists()).then(|| tempfile::tempdir().expect("a directory"));
        command.args(sys.iter().map(|sys| format!("--path.sysfs={}", sys.path().display())));
        let child = etcd::quiet(command).spawn().expect("prometheus-node-exporter is installed (make deps)");
        let exporter = Self { addr, child, _sys: sys };
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
