//! A real Zipkin server: the jar that the variable `ZIPKIN_JAR` names, else the one that `make deps` fetched.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use serde_json::Value;

use super::etcd::quiet;
use super::{free_addr, http, wait_for, wait_long_for};

/// A server with its spans in memory. Killed when dropped.
pub struct Zipkin {
    pub addr: SocketAddr,
    child: Child,
}

impl Zipkin {
    /// Returns the server that tests share: it takes ten seconds to start. It ends with its last user. Tests
    /// tell their traces apart by the address of the gateway.
    pub async fn shared() -> Arc<Self> {
        static SHARED: Mutex<Weak<Zipkin>> = Mutex::new(Weak::new());
        let server = {
            let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
            let running = shared.upgrade();
            running.unwrap_or_else(|| {
                let started = Arc::new(Self::spawn(&[]));
                *shared = Arc::downgrade(&started);
                started
            })
        };
        server.wait_until_healthy().await;
        server
    }

    /// Starts one with these variables and waits until it answers.
    pub async fn start_with(env: &[(&str, &str)]) -> Self {
        let server = Self::spawn(env);
        server.wait_until_healthy().await;
        server
    }

    fn spawn(env: &[(&str, &str)]) -> Self {
        let (addr, jar) = (free_addr(), jar());
        assert!(jar.exists(), "{} is not there (make deps)", jar.display());
        let mut command = Command::new("java");
        command
            .args(["-Xmx192m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-jar"])
            .arg(jar)
            .arg(format!("--armeria.ports[0].ip={}", addr.ip()))
            .arg(format!("--armeria.ports[0].port={}", addr.port()))
            .arg("--armeria.ports[0].protocols[0]=http")
            .envs([("MEM_MAX_SPANS", "20000"), ("SELF_TRACING_ENABLED", "false")])
            .envs(env.iter().copied());
        Self { addr, child: quiet(command).spawn().expect("java is installed (make deps)") }
    }

    async fn wait_until_healthy(&self) {
        wait_long_for("Zipkin is healthy", || async {
            let asked = http::send(self.addr, http::request("GET", "/health", ""));
            let answer = tokio::time::timeout(Duration::from_secs(5), asked).await;
            (answer.ok()?.ok()?.status == 200).then_some(())
        })
        .await;
    }

    /// Returns the URL to send spans to.
    pub fn url(&self) -> String {
        format!("http://{}/api/v2/spans", self.addr)
    }

    /// Returns an answer of its API.
    pub async fn get(&self, path: &str) -> Value {
        let answer = http::get(self.addr, path).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
        answer.json()
    }

    /// Returns the traces in which somebody at `addr` took part, as lists of spans.
    pub async fn traces_of(&self, addr: SocketAddr) -> Vec<Vec<Value>> {
        let all = self.get("/api/v2/traces?limit=10000&lookback=3600000").await;
        let all = all.as_array().cloned().unwrap_or_default();
        let traces = all.into_iter().map(|trace| trace.as_array().cloned().unwrap_or_default());
        let port = addr.port();
        traces.filter(|spans| spans.iter().any(|span| span["localEndpoint"]["port"] == port)).collect()
    }

    /// Waits until a trace has so many spans; returns them.
    pub async fn wait_for_trace(&self, id: &str, spans: usize) -> Vec<Value> {
        wait_for(&format!("trace {id} has {spans} spans"), || async {
            let answer = http::get(self.addr, &format!("/api/v2/trace/{id}")).await;
            let found = (answer.status == 200).then(|| answer.json())?;
            let found = found.as_array()?.clone();
            (found.len() >= spans).then_some(found)
        })
        .await
    }

    /// Returns how often each service called each other, by parent and child.
    pub async fn dependencies(&self) -> BTreeMap<(String, String), u64> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_millis();
        let links = self.get(&format!("/api/v2/dependencies?endTs={}&lookback=86400000", now + 60_000)).await;
        let text = |link: &Value, key: &str| link[key].as_str().unwrap_or_default().to_owned();
        let links = links.as_array().cloned().unwrap_or_default();
        let pair = |link: &Value| (text(link, "parent"), text(link, "child"));
        links.iter().map(|link| (pair(link), link["callCount"].as_u64().unwrap_or_default())).collect()
    }

    /// Returns the services that it knows.
    pub async fn services(&self) -> BTreeSet<String> {
        serde_json::from_value(self.get("/api/v2/services").await).expect("a list of names")
    }
}

impl Drop for Zipkin {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn jar() -> PathBuf {
    std::env::var_os("ZIPKIN_JAR").map_or_else(
        || concat!(env!("CARGO_MANIFEST_DIR"), "/target/parts/zipkin-server-3.6.1-exec.jar").into(),
        PathBuf::from,
    )
}

/// Returns the value of a span's tag, empty if it has none.
pub fn tag<'a>(span: &'a Value, name: &str) -> &'a str {
    span["tags"][name].as_str().unwrap_or_default()
}
