//! A real Alertmanager, and a receiver of what it has to say.

use std::fs::File;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use http_body_util::{BodyExt as _, Full};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};

use super::{free_addr, http, wait_long_for};

/// One running server. Killed when dropped.
pub struct Alertmanager {
    pub addr: SocketAddr,
    dir: tempfile::TempDir,
    child: Child,
}

impl Alertmanager {
    /// Starts it on a configuration (YAML text) and waits until it is ready. Further files, by name, are
    /// put beside the configuration, which may name them so.
    pub async fn start(config: &str, files: &[(&str, &str)]) -> Self {
        let (addr, dir) = (free_addr(), tempfile::tempdir().expect("a directory"));
        for (name, text) in files.iter().chain(&[("alertmanager.yml", config)]) {
            std::fs::write(dir.path().join(name), text).expect("a file");
        }
        let log = File::create(dir.path().join("log")).expect("a file");
        let child = Command::new("prometheus-alertmanager")
            // some of the files that its configuration names are looked up here
            .current_dir(dir.path())
            .arg(format!("--config.file={}", dir.path().join("alertmanager.yml").display()))
            .arg(format!("--storage.path={}", dir.path().join("data").display()))
            .arg(format!("--web.listen-address={addr}"))
            .args(["--cluster.listen-address=", "--log.level=debug"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("prometheus-alertmanager is installed (make deps)");
        let mut alertmanager = Self { addr, dir, child };
        let child = &mut alertmanager.child;
        wait_long_for("alertmanager is ready", || {
            let ended = child.try_wait().expect("it is our child");
            assert!(ended.is_none(), "alertmanager ended: {ended:?}");
            async move {
                let answer = http::send(addr, http::request("GET", "/-/ready", "")).await.ok()?;
                answer.status.is_success().then_some(())
            }
        })
        .await;
        alertmanager
    }

    /// Returns the alerts that it knows, suppressed ones too, as its API tells them.
    pub async fn alerts(&self) -> Vec<Value> {
        let answer = http::get(self.addr, "/api/v2/alerts").await;
        answer.json().as_array().cloned().unwrap_or_default()
    }
}

impl Drop for Alertmanager {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
            let end: Vec<_> = log.lines().rev().take(15).collect();
            eprintln!("log of alertmanager, the last line first:\n{}", end.join("\n"));
        }
    }
}

/// Takes notifications and keeps them. Ends when dropped.
pub struct Webhook {
    pub addr: SocketAddr,
    seen: Arc<Mutex<Vec<Notification>>>,
    task: JoinHandle<()>,
}

/// One request to a receiver.
#[derive(Clone, Debug)]
pub struct Notification {
    /// The path that it was sent to.
    pub path: String,
    /// Its `Authorization`, empty for none.
    pub authorization: String,
    /// Its JSON; of a webhook `status` and `alerts`, of Slack `attachments`.
    pub body: Value,
}

impl Webhook {
    /// Listens on a free port.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let addr = listener.local_addr().expect("its address");
        let seen = Arc::new(Mutex::new(Vec::new()));
        let task = tokio::spawn(receive(listener, seen.clone()));
        Self { addr, seen, task }
    }

    /// Returns what has come so far.
    pub fn seen(&self) -> Vec<Notification> {
        self.seen.lock().expect("nobody panicked").clone()
    }

    /// Waits for a notification with an alert of this status (`firing` or `resolved`) and name, and returns
    /// that alert.
    pub async fn wait_for(&self, status: &str, alert: &str) -> Value {
        wait_long_for(&format!("{alert} is {status}"), || async {
            let seen = self.seen();
            let alerts = seen.iter().flat_map(|one| one.body["alerts"].as_array().into_iter().flatten());
            let mut wanted =
                alerts.filter(|one| one["status"] == status && one["labels"]["alertname"] == alert);
            wanted.next().cloned()
        })
        .await
    }
}

impl Drop for Webhook {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn receive(listener: TcpListener, seen: Arc<Mutex<Vec<Notification>>>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let seen = seen.clone();
        let note = service_fn(move |request: ::http::Request<hyper::body::Incoming>| {
            let seen = seen.clone();
            async move {
                let path = request.uri().path().to_owned();
                let header = request.headers().get("authorization").and_then(|value| value.to_str().ok());
                let authorization = header.unwrap_or_default().to_owned();
                let body = request.into_body().collect().await?.to_bytes();
                let body = serde_json::from_slice(&body).unwrap_or_default();
                seen.lock().expect("nobody panicked").push(Notification { path, authorization, body });
                Ok::<_, hyper::Error>(::http::Response::new(Full::<bytes::Bytes>::from("ok")))
            }
        });
        connections
            .spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), note));
    }
}
