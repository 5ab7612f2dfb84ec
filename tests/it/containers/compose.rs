//! deploy/compose.yml under podman-compose: the whole application, scaled, hurt, restarted and watched.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use http::StatusCode;
use serde_json::Value;

use crate::api::walkthrough;
use crate::kit::authority::{Authority, replace};
use crate::kit::http::{get, request, send};
use crate::kit::load::Load;
use crate::kit::mesh::{HOUR, ROLES, uri};
use crate::kit::podman::{command, image, off, podman, try_podman};
use crate::kit::{free_addr, wait_long_for};

/// How long a call may take: what counts here is its answer. The deadline of the gateway is shorter.
const PATIENCE: Duration = Duration::from_secs(5);

/// A project of its own on free ports. It is taken down with its volumes when dropped.
struct Compose {
    project: String,
    files: &'static [&'static str],
    env: BTreeMap<&'static str, String>,
    gateway: SocketAddr,
    prometheus: SocketAddr,
    zipkin: SocketAddr,
    /// Runs the health checks of the project, as systemd's timers do where it is process 1.
    checks: (Arc<AtomicBool>, Option<std::thread::JoinHandle<()>>),
}

impl Compose {
    fn new() -> Self {
        Self::of(&["compose.yml"])
    }

    /// Returns a project of these files of deploy/.
    fn of(files: &'static [&'static str]) -> Self {
        let (gateway, prometheus, zipkin) = (free_addr(), free_addr(), free_addr());
        let project = format!("msa-test-{}", gateway.port());
        let env = BTreeMap::from([
            ("APP_IMAGE", image("app")),
            ("ETCD_IMAGE", image("etcd")),
            ("GATEWAY_PORT", gateway.port().to_string()),
            ("PROMETHEUS_PORT", prometheus.port().to_string()),
            ("ALERTMANAGER_PORT", free_addr().port().to_string()),
            ("ZIPKIN_PORT", zipkin.port().to_string()),
        ]);
        let stop = Arc::new(AtomicBool::new(false));
        let (until, filter) = (stop.clone(), format!("label=io.podman.compose.project={project}"));
        let thread = std::thread::spawn(move || {
            while !until.load(Relaxed) {
                let listed = try_podman(&["ps", "--quiet", "--filter", &filter]);
                for id in String::from_utf8_lossy(&listed.stdout).lines() {
                    let _ = try_podman(&["healthcheck", "run", id]);
                }
                std::thread::sleep(Duration::from_millis(500));
            }
        });
        Self { project, files, env, gateway, prometheus, zipkin, checks: (stop, Some(thread)) }
    }

    fn try_run(&self, args: &[&str]) -> std::process::Output {
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/target/containers/python");
        let mut compose = command("timeout");
        compose.args(["300", "python3", "-m", "podman_compose", "-p", &self.project]);
        for file in self.files {
            compose.arg("-f").arg(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(file));
        }
        compose.args(args);
        compose.env("PYTHONPATH", root).envs(&self.env);
        compose.output().unwrap()
    }

    fn run(&self, args: &[&str]) -> String {
        let output = self.try_run(args);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "podman-compose {args:?}: {said}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Returns the running containers of a service.
    fn containers(&self, service: &str) -> Vec<String> {
        let project = format!("label=io.podman.compose.project={}", self.project);
        let service = format!("label=com.docker.compose.service={service}");
        let listed = podman(&["ps", "--format={{.Names}}", "--filter", &project, "--filter", &service]);
        listed.lines().map(str::to_owned).collect()
    }

    /// Returns what the gateway says of itself on its admin port.
    fn status(&self) -> Option<Value> {
        let ip = Self::address(&self.containers("apigateway").pop()?)?;
        let mut curl = std::process::Command::new("curl");
        curl.args(["-sS", "--max-time", "2"]).arg(format!("http://{ip}:6060/status"));
        if let Some(dir) = self.env.get("ADMIN_TOKEN") {
            let token = std::fs::read_to_string(Path::new(dir).join("token")).ok()?;
            curl.arg("--header").arg(format!("authorization: Bearer {}", token.trim()));
        }
        serde_json::from_slice(&curl.output().ok()?.stdout).ok()
    }

    /// Returns the address of a container.
    fn address(container: &str) -> Option<String> {
        let networks = crate::kit::podman::inspect(container)["NetworkSettings"]["Networks"].clone();
        Some(networks.as_object()?.values().next()?["IPAddress"].as_str()?.to_owned())
    }

    /// Waits until the gateway calls so many instances of feed, and one of each other service.
    async fn wait_for_feeds(&self, count: usize) {
        wait_long_for("the gateway calls every instance", || async {
            let status = self.status()?;
            let up = |service: &str| {
                let all = status["clients"][0][service].as_array()?;
                Some(all.iter().filter(|endpoint| endpoint["state"] == "up").count())
            };
            let seen = (up("feed")?, up("profile")?, up("topic")?);
            (seen == (count, 1, 1)).then_some(())
        })
        .await;
    }
}

impl Drop for Compose {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for service in
                ["etcd", "postgres", "feed", "profile", "topic", "apigateway", "prometheus", "zipkin"]
            {
                for container in self.containers(service) {
                    let log = try_podman(&["logs", "--tail=15", &container]);
                    eprintln!("{container}: {}", String::from_utf8_lossy(&log.stderr));
                }
            }
        }
        let gone = self.try_run(&[
            "--profile=monitoring",
            "--profile=tracing",
            "down",
            "--volumes",
            "--remove-orphans",
        ]);
        if std::thread::panicking() {
            eprintln!("down: {}", String::from_utf8_lossy(&gone.stderr));
        }
        self.checks.0.store(true, Relaxed);
        if let Some(thread) = self.checks.1.take() {
            let _ = thread.join();
        }
    }
}

/// Asks a part that may not be there yet; returns the JSON of a good answer.
async fn ask(addr: SocketAddr, path: &str) -> Option<Value> {
    let asked = send(addr, request("GET", path, ""));
    let answer = tokio::time::timeout(Duration::from_secs(2), asked).await.ok()?.ok()?;
    (answer.status == StatusCode::OK).then(|| answer.json())
}

#[tokio::test]
#[ignore = "wants Podman: make test-containers"]
async fn compose_runs_the_application() {
    let compose = Compose::new();
    compose.run(&["up", "--detach"]);
    compose.wait_for_feeds(1).await;

    walkthrough::walk(compose.gateway);

    // three instances on one file: each gets its share
    compose.run(&["up", "--detach", "--scale", "feed=3"]);
    compose.wait_for_feeds(3).await;
    // a new instance is brought to its full share within 2 s
    tokio::time::sleep(Duration::from_secs(3)).await;
    let load = Load::get(compose.gateway, 60.0, "/api/feed/get_feeds?user_id=123&&size=2").within(PATIENCE);
    let record = load.clone().run(Duration::from_secs(8)).await;
    assert!(record.failed().is_empty(), "{}", record.failures());
    let mut shares = BTreeMap::<&str, usize>::new();
    for call in &record.calls {
        *shares.entry(&call.instance).or_default() += 1;
    }
    println!("{} calls: {shares:?}", record.calls.len());
    assert_eq!(shares.len(), 3, "{shares:?}");
    assert!(shares.values().all(|calls| calls * 6 > record.calls.len()), "{shares:?}");

    // one of them is killed: no call fails
    let victim = compose.containers("feed").pop().unwrap();
    let running = load.start();
    running.more(60).await;
    off(move || podman(&["kill", &victim])).await;
    running.more(240).await;
    let record = running.finish().await;
    assert!(record.failed().is_empty() && record.calls.len() >= 300, "{}", record.failures());

    // everything stops and comes back, with what it had
    // by its labels it finds what `--scale` has added as well
    compose.run(&["down", "--remove-orphans"]);
    assert!(compose.containers("feed").is_empty());
    compose.run(&["up", "--detach"]);
    compose.wait_for_feeds(1).await;
    walkthrough::read(compose.gateway);
}

#[tokio::test]
#[ignore = "wants Podman: make test-containers"]
async fn compose_watches_the_application() {
    let mut compose = Compose::new();
    for (name, part) in
        [("PROMETHEUS_IMAGE", "prometheus"), ("ALERTMANAGER_IMAGE", "alertmanager"), ("NODE_IMAGE", "node")]
    {
        compose.env.insert(name, image(part));
    }
    let parts = ["etcd", "feed", "profile", "topic", "apigateway", "prometheus", "alertmanager", "node"];
    // Grafana and cAdvisor are images that only a registry has
    compose.run(&[&["--profile", "monitoring", "up", "--detach"][..], &parts].concat());
    compose.wait_for_feeds(1).await;
    let wanted = ["alertmanager", "apigateway", "etcd", "feed", "node", "profile", "prometheus", "topic"];
    wait_long_for("Prometheus reaches every part", || async {
        let answer = ask(compose.prometheus, "/api/v1/query?query=up==1").await?;
        let mut jobs: Vec<_> =
            answer["data"]["result"].as_array()?.iter().map(|found| found["metric"]["job"].clone()).collect();
        jobs.sort_by_key(ToString::to_string);
        (jobs == wanted).then_some(())
    })
    .await;
    let rules = get(compose.prometheus, "/api/v1/rules").await.json();
    let groups = rules["data"]["groups"].as_array().unwrap();
    assert!(groups.len() > 5, "{rules:#}");
    let sick: Vec<_> = groups
        .iter()
        .flat_map(|group| group["rules"].as_array().unwrap())
        .filter(|rule| rule["health"] == "err")
        .collect();
    assert!(sick.is_empty(), "{sick:#?}");
}

/// Instances of one service that share a PostgreSQL give the same answers, and what was acknowledged outlives everything.
#[tokio::test]
#[ignore = "wants Podman: make test-containers"]
async fn compose_shares_a_database() {
    let mut compose = Compose::of(&["compose.yml", "compose.postgres.yml"]);
    compose.env.insert("POSTGRES_IMAGE", image("postgres"));
    compose.run(&["up", "--detach", "--scale", "feed=3"]);
    compose.wait_for_feeds(3).await;
    walkthrough::walk(compose.gateway);
    for feed in compose.containers("feed") {
        let ready = try_podman(&["exec", &feed, "/usr/local/bin/microservice-app", "check-health"]);
        assert!(ready.status.success(), "{feed}: {}", String::from_utf8_lossy(&ready.stderr));
    }
    let load = Load::get(compose.gateway, 60.0, "/api/feed/get_feeds?user_id=123&&size=2").within(PATIENCE);
    let record = load.run(Duration::from_secs(5)).await;
    assert!(record.failed().is_empty(), "{}", record.failures());
    let instances: BTreeSet<_> = record.calls.iter().map(|call| call.instance.as_str()).collect();
    assert_eq!(instances.len(), 3, "{instances:?}");

    // the database is killed: it comes back with what it had, and so do the services, without a restart of theirs
    let database = compose.containers("postgres").pop().unwrap();
    off(move || podman(&["kill", &database])).await;
    compose.run(&["up", "--detach", "--scale", "feed=3"]);
    wait_long_for("the records are there again", || async {
        let answer = get(compose.gateway, "/api/feed/get_feeds?user_id=123&&size=2").await;
        (answer.status == StatusCode::OK && answer.degraded().is_empty()).then_some(())
    })
    .await;
    walkthrough::read(compose.gateway);

    compose.run(&["down", "--remove-orphans"]);
    compose.run(&["up", "--detach"]);
    compose.wait_for_feeds(1).await;
    walkthrough::read(compose.gateway);
}

/// Lets the user of the containers read the files of a directory.
fn give_to_the_container(dir: &Path) {
    for file in std::fs::read_dir(dir).unwrap().map(|file| file.unwrap().path()).chain([dir.to_owned()]) {
        std::os::unix::fs::chown(file, Some(65532), Some(65532)).unwrap();
    }
}

/// The calls between the roles are encrypted, and feed refuses whoever has no certificate.
#[tokio::test]
#[ignore = "wants Podman: make test-containers"]
async fn compose_encrypts_the_calls() {
    let certificates = tempfile::tempdir().unwrap();
    let authority = Authority::new("test");
    for role in ROLES {
        let dir = certificates.path().join(role);
        std::fs::create_dir(&dir).unwrap();
        authority.issue_identity(&dir, role, &uri(role), HOUR, |_| {});
        replace(&dir.join("ca.pem"), &authority.pem());
        give_to_the_container(&dir);
    }
    let mut compose = Compose::of(&["compose.yml", "compose.tls.yml"]);
    compose.env.insert("CERTIFICATES", certificates.path().display().to_string());
    compose.run(&["up", "--detach"]);
    compose.wait_for_feeds(1).await;
    walkthrough::walk(compose.gateway);
    let feed = compose.containers("feed").pop().unwrap();
    let ip = Compose::address(&feed).unwrap();
    for (scheme, flags) in [("http", &["--http2-prior-knowledge"][..]), ("https", &["--insecure"])] {
        let mut curl = std::process::Command::new("curl");
        curl.args(["-sS", "--max-time", "5", "-o", "/dev/null", "-w", "%{http_code}"]).args(flags);
        let output = curl.arg(format!("{scheme}://{ip}:8082/grpc.health.v1.Health/Check")).output().unwrap();
        assert!(!output.status.success() && output.stdout == b"000", "{scheme}: {output:?}");
    }
}

/// With a token, operators show it; health checks and monitoring go on without.
#[tokio::test]
#[ignore = "wants Podman: make test-containers"]
async fn compose_asks_operators_for_a_token() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("token"), "a-token-for-operators\n").unwrap();
    give_to_the_container(dir.path());
    let mut compose = Compose::of(&["compose.yml", "compose.token.yml"]);
    compose.env.insert("ADMIN_TOKEN", dir.path().display().to_string());
    compose.run(&["up", "--detach"]);
    // it asks for /status, with the token
    compose.wait_for_feeds(1).await;
    for role in ROLES {
        let container = compose.containers(role).pop().unwrap();
        let ip = Compose::address(&container).unwrap();
        for (path, wanted) in [("status", "401"), ("metrics", "200"), ("livez", "200"), ("readyz", "200")] {
            let mut curl = std::process::Command::new("curl");
            curl.args(["-sS", "--max-time", "5", "-o", "/dev/null", "-w", "%{http_code}"]);
            let output = curl.arg(format!("http://{ip}:6060/{path}")).output().unwrap();
            assert_eq!(String::from_utf8_lossy(&output.stdout), wanted, "{role}: {path}: {output:?}");
        }
        let ready = try_podman(&["exec", &container, "/usr/local/bin/microservice-app", "check-health"]);
        assert!(ready.status.success(), "{role}: {}", String::from_utf8_lossy(&ready.stderr));
    }
}

/// A call is a trace in Zipkin. OpenSearch is an image that only a registry has, so Zipkin keeps it in memory.
#[tokio::test]
#[ignore = "wants Podman: make test-containers"]
async fn compose_traces_the_application() {
    let mut compose = Compose::new();
    compose.env.insert("ZIPKIN_IMAGE", image("zipkin"));
    compose.env.insert("ZIPKIN_STORAGE", "mem".to_owned());
    compose.env.insert("TRACE_RATIO", "1".to_owned());
    compose.run(&["--profile", "tracing", "up", "--detach", "--no-deps", "zipkin"]);
    compose.run(&["up", "--detach"]);
    compose.wait_for_feeds(1).await;
    let profile = r#"{"user_id":123,"name":"n","company":"c","title":"t"}"#;
    wait_long_for("a profile is written", || async {
        let put = request("PUT", "/api/profile/put_profile", profile);
        let answer = send(compose.gateway, put).await.ok()?;
        (answer.status == StatusCode::OK).then_some(())
    })
    .await;
    wait_long_for("a trace of the three roles is in Zipkin", || async {
        let _ = get(compose.gateway, "/api/profile/get_profile?user_id=123").await;
        let traces = ask(compose.zipkin, "/api/v2/traces?serviceName=apigateway&limit=50").await?;
        let whole = |trace: &Value| {
            let spans = trace.as_array().into_iter().flatten();
            let names: BTreeSet<_> =
                spans.filter_map(|span| span["localEndpoint"]["serviceName"].as_str()).collect();
            names.is_superset(&BTreeSet::from(["apigateway", "profile", "feed"]))
        };
        traces.as_array()?.iter().any(whole).then_some(())
    })
    .await;
}
