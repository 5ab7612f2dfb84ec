//! The servers that `make test-stack` fetches into `target/parts`: Elasticsearch, Zipkin's dependencies job,
//! cAdvisor.

use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, geteuid, kill_process_group};

use super::{free_addr, http, wait_long_for};

/// Nobody: Elasticsearch refuses to be run by root.
const NOBODY: u32 = 65534;

/// Returns the path of a part.
fn part(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/parts").join(name);
    assert!(path.exists(), "{} is not there (make test-stack)", path.display());
    path
}

pub fn is_root() -> bool {
    geteuid().is_root()
}

/// A process and all that it starts. Killed when dropped, its log shown if the test fails.
struct Group {
    child: Child,
    log: PathBuf,
}

impl Group {
    fn spawn(mut command: Command, log: PathBuf) -> Self {
        let file = std::fs::File::create(&log).expect("a file");
        command.stdin(Stdio::null()).stdout(file.try_clone().expect("a file")).stderr(file).process_group(0);
        Self { child: command.spawn().expect("it starts"), log }
    }

    /// Panics if it has ended by itself.
    fn still_runs(&mut self) {
        let ended = self.child.try_wait().expect("it is our child");
        assert!(ended.is_none(), "it has ended: {ended:?}");
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).expect("a pid");
        let _ = kill_process_group(pid, Signal::KILL);
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            let last: Vec<_> = log.lines().rev().take(40).collect();
            eprintln!("{}:\n{}", self.log.display(), last.into_iter().rev().collect::<Vec<_>>().join("\n"));
        }
    }
}

/// One node on free loopback ports, all of it in a directory that ends with it.
pub struct Elasticsearch {
    pub addr: SocketAddr,
    _group: Group,
    _dir: tempfile::TempDir,
}

impl Elasticsearch {
    /// Starts it and waits until it answers: about ten seconds.
    pub async fn start() -> Self {
        let (addr, transport) = (free_addr(), free_addr());
        let dir = tempfile::tempdir().expect("a directory");
        run(Command::new("unzip").arg("-q").arg(part("elasticsearch-8.7.1.zip")).arg("-d").arg(dir.path()));
        let home = dir.path().join("elasticsearch-8.7.1");
        let settings = format!(
            "discovery.type: single-node\nnetwork.host: {}\nhttp.port: {}\ntransport.port: {}\n\
             xpack.security.enabled: false\n",
            addr.ip(),
            addr.port(),
            transport.port()
        );
        std::fs::write(home.join("config/elasticsearch.yml"), settings).expect("a file");
        std::fs::create_dir(dir.path().join("tmp")).expect("a directory");
        let program = home.join("bin/elasticsearch");
        let mut command = Command::new(&program);
        if is_root() {
            run(Command::new("chown").args(["-R", &format!("{NOBODY}:{NOBODY}")]).arg(dir.path()));
            command = Command::new("setpriv");
            command.args([&format!("--reuid={NOBODY}"), &format!("--regid={NOBODY}"), "--clear-groups"]);
            command.arg(&program);
        }
        command
            .env("ES_JAVA_HOME", part("jdk17").canonicalize().expect("a JDK"))
            .env("ES_JAVA_OPTS", "-Xms256m -Xmx256m") // with less it loses spans that it has accepted
            .env("ES_TMPDIR", dir.path().join("tmp"))
            .env("HOME", dir.path())
            .current_dir(dir.path());
        let mut group = Group::spawn(command, dir.path().join("log"));
        wait_long_for("Elasticsearch is healthy", || {
            group.still_runs();
            async move {
                let asked = http::send(addr, http::request("GET", "/_cluster/health", ""));
                let answer = tokio::time::timeout(Duration::from_secs(5), asked).await.ok()?.ok()?;
                (answer.status == 200 && !answer.body.contains("\"red\"")).then_some(())
            }
        })
        .await;
        Self { addr, _group: group, _dir: dir }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }
}

/// Packages that Spark wants to look into, on a Java that keeps them closed.
const OPENED: [&str; 14] = [
    "java.io",
    "java.lang",
    "java.lang.invoke",
    "java.lang.reflect",
    "java.net",
    "java.nio",
    "java.util",
    "java.util.concurrent",
    "java.util.concurrent.atomic",
    "jdk.internal.ref",
    "sun.nio.ch",
    "sun.nio.cs",
    "sun.security.action",
    "sun.util.calendar",
];

/// Runs Zipkin's dependencies job for a day, `2026-11-22`, in UTC; panics if it fails. About 20 seconds.
pub fn link_spans(elasticsearch: &Elasticsearch, day: &str) {
    let classes = part("zipkin-dependencies");
    let open = OPENED.map(|package| format!("--add-opens=java.base/{package}=ALL-UNNAMED"));
    let mut command = Command::new(part("jdk17").join("bin/java"));
    command
        .args(["-Xmx512m", "-Dspark.ui.enabled=false"])
        .args(open)
        .arg("--add-opens=java.security.jgss/sun.security.krb5=ALL-UNNAMED")
        .arg("-cp")
        .arg(format!("{0}:{0}/lib/*", classes.display()))
        .args(["DependenciesJob", day])
        .env("SPARK_LOCAL_IP", "127.0.0.1")
        .env("ES_HOSTS", elasticsearch.url());
    run(&mut command);
}

/// Runs a command to its end, at most two minutes; panics with what it said if it fails.
fn run(command: &mut Command) -> Output {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).expect("a pid");
    // the pipes are read meanwhile; a watchdog ends what does not end
    let (done, waiting) = std::sync::mpsc::channel::<()>();
    let watchdog = std::thread::spawn(move || {
        let begun = Instant::now();
        if waiting.recv_timeout(Duration::from_mins(2)) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
        begun.elapsed()
    });
    child.stdin.take();
    let output = child.wait_with_output().expect("it ends");
    drop(done);
    let took = watchdog.join().expect("a watchdog");
    assert!(
        output.status.success(),
        "{command:?}: {} after {took:?}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// A running cAdvisor, which sees the cgroups of this host.
pub struct Cadvisor {
    pub addr: SocketAddr,
    _group: Group,
    _dir: tempfile::TempDir,
}

impl Cadvisor {
    /// Returns why it cannot be had here, if so.
    pub fn missing() -> Option<&'static str> {
        let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/parts/cadvisor/cadvisor").exists();
        match (built, is_root()) {
            (false, _) => Some("it was not built: it wants a newer Go than is here"),
            (_, false) => Some("it wants root"),
            _ => None,
        }
    }

    /// Starts it and waits until it answers.
    pub async fn start() -> Self {
        let (addr, dir) = (free_addr(), tempfile::tempdir().expect("a directory"));
        let mut command = Command::new(part("cadvisor/cadvisor"));
        command.arg("-listen").arg(addr.to_string());
        let mut group = Group::spawn(command, dir.path().join("log"));
        wait_long_for("cAdvisor answers", || {
            group.still_runs();
            async move {
                let asked = http::send(addr, http::request("GET", "/metrics", ""));
                let answer = tokio::time::timeout(Duration::from_secs(5), asked).await.ok()?.ok()?;
                answer.body.contains("\ncadvisor_version_info{").then_some(())
            }
        })
        .await;
        Self { addr, _group: group, _dir: dir }
    }
}

/// A cgroup with one busy process in it. Both end when dropped.
pub struct Cgroup {
    /// As cAdvisor names it, `/name`.
    pub id: String,
    /// One directory, or with version 1 one for each controller.
    paths: Vec<PathBuf>,
    child: Child,
}

impl Cgroup {
    /// Makes one, if this host lets us; else says why not.
    pub fn make() -> Result<Self, String> {
        let name = format!("msa-test-{}", std::process::id());
        let root = Path::new("/sys/fs/cgroup");
        let mut roots = vec![root.to_owned()];
        if !root.join("cgroup.controllers").exists() {
            roots = ["cpuacct", "memory"].map(|controller| root.join(controller)).to_vec();
        }
        let child = Command::new("sh").args(["-c", "while :; do :; done"]).spawn().expect("sh");
        let mut cgroup = Self { id: format!("/{name}"), paths: Vec::new(), child };
        for path in roots.iter().map(|root| root.join(&name)) {
            let explain = |error| format!("{}: {error}", path.display());
            std::fs::create_dir(&path).map_err(explain)?;
            cgroup.paths.push(path.clone());
            // a plain directory would take any file
            let procs = path.join("cgroup.procs");
            let moved = std::fs::OpenOptions::new().write(true).open(procs);
            let moved = moved.and_then(|mut file| file.write_all(cgroup.child.id().to_string().as_bytes()));
            moved.map_err(explain)?;
        }
        Ok(cgroup)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        for path in &self.paths {
            let _ = std::fs::remove_dir(path);
        }
    }
}
