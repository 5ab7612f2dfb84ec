//! The host under the program: file descriptors, memory, processor, clock and disk run out or jump. The
//! functions `fNN` run a fault of faults.md for a time and return its numbers.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::edge::{fill, small};
use crate::kit::etcd::Etcd;
use crate::kit::http::{Connection, get};
use crate::kit::load::{Load, Outcome};
use crate::kit::process::{PROGRAM, Process};
use crate::kit::system::Role;
use crate::kit::{cpu, wait_for};

const LIST: &str = "/api/topic/list";
const MS: Duration = Duration::from_millis(1);

/// Starts `up`, with variables and before it a command such as `prlimit`.
fn up(before: &[&str], env: &[(&str, &str)]) -> (Process, SocketAddr, SocketAddr, tempfile::TempDir) {
    let data = tempfile::tempdir().expect("a directory");
    let words = [before, &[PROGRAM, "up", "--free-ports", "--data-dir"]].concat();
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).arg(data.path());
    let mut process = Process::spawn_with(command, env);
    let (gateway, admin) = process.wait_for_role("apigateway");
    (process, gateway, admin, data)
}

async fn metric(admin: SocketAddr, begin: &str) -> f64 {
    let text = get(admin, "/metrics").await.body;
    let lines = text.lines().filter(|line| line.starts_with(begin));
    lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
}

async fn ready(admin: SocketAddr) {
    wait_for("every role is there", || async {
        (get(admin, "/readyz").await.body == "ready\n").then_some(())
    })
    .await;
}

/// Numbers of F33.
#[derive(Debug)]
#[allow(dead_code, reason = "numbers for the fault table")]
pub struct Exhausted {
    /// Share of one core that the program used while it had no file descriptor left.
    pub cpu: f64,
    /// Lines in the log about it.
    pub lines: usize,
    /// Time until a call is answered once there are file descriptors again.
    pub recovery: Duration,
}

/// F33: 64 file descriptors, and more connections than that, each with a request under way.
pub async fn f33(time: Duration) -> Exhausted {
    let (mut process, gateway, admin, _data) = up(&["prlimit", "--nofile=64:64"], &[]);
    ready(admin).await;
    let mut held = Vec::new();
    for _ in 0..100 {
        let mut stream = TcpStream::connect(gateway).await.expect("the backlog takes it");
        let begin = "PUT /api/feed/create_feed HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{";
        stream.write_all(begin.as_bytes()).await.expect("its buffer takes it");
        held.push(stream);
    }
    process.wait_for_log("accept fails", |line| line["message"] == "accept failed");
    let (before, begun) = (cpu::of(process.id()), Instant::now());
    tokio::time::sleep(time).await;
    let cpu = (cpu::of(process.id()) - before).as_secs_f64() / begun.elapsed().as_secs_f64();
    let begun = Instant::now();
    drop(held);
    wait_for("it answers again", || async {
        let answer = tokio::time::timeout(Duration::from_secs(1), get(gateway, LIST)).await;
        answer.is_ok_and(|answer| answer.status == 200).then_some(())
    })
    .await;
    let recovery = begun.elapsed();
    process.stop(Duration::from_secs(20));
    let lines = process.seen.iter().filter(|line| line["message"] == "accept failed").count();
    Exhausted { cpu, lines, recovery }
}

#[tokio::test]
async fn f33_without_file_descriptors_it_neither_spins_nor_dies() {
    if !there("prlimit") {
        return eprintln!("skipped: prlimit is not there");
    }
    let found = f33(Duration::from_secs(1)).await;
    eprintln!("{found:?}");
    assert!(found.cpu < 0.5 && found.lines <= 3, "{found:?}");
}

#[tokio::test]
async fn f33_idle_connections_give_their_descriptors_back() {
    if !there("prlimit") {
        return eprintln!("skipped: prlimit is not there");
    }
    let (_process, gateway, admin, _data) = up(&["prlimit", "--nofile=64:64"], &[]);
    ready(admin).await;
    let mut idle = Vec::new();
    for n in 0..150 {
        let mut connection = Connection::open(gateway).await.unwrap();
        let answer = connection.get(LIST).await;
        assert_eq!(answer.unwrap_or_else(|error| panic!("{n}: {error}")).status, 200);
        idle.push(connection);
    }
}

fn there(program: &str) -> bool {
    let found = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    found.is_ok_and(|status| status.success())
}

/// Numbers of F34.
#[derive(Debug)]
#[allow(dead_code, reason = "numbers for the fault table")]
pub struct Memory {
    /// Resident bytes before, while bodies arrive slowly, and while answers are not read.
    pub base: u64,
    pub uploads: u64,
    pub readers: u64,
    /// Answers 503 meanwhile, to attackers.
    pub refused: f64,
    /// Connections cut meanwhile.
    pub cut: f64,
}

/// F34: `clients` that send a large body but for its end, then as many that ask for the largest answer
/// and do not read it.
pub async fn f34(clients: usize) -> Memory {
    let env = [("MSA__HTTP__MAX_IN_FLIGHT", "16"), ("MSA__GRPC__MAX_IN_FLIGHT", "16")];
    let (process, gateway, admin, _data) = up(&[], &env);
    ready(admin).await;
    fill(gateway, 7).await;
    let base = process.resident();

    let body = vec![b' '; 200 * 1024];
    let mut senders = Vec::new();
    for _ in 0..clients {
        let mut stream = TcpStream::connect(gateway).await.expect("it listens");
        let begin = "PUT /api/feed/create_feed HTTP/1.1\r\nhost: x\r\ncontent-length: 204801\r\n\r\n";
        // one that was refused may be closed by now
        let _ = stream.write_all(begin.as_bytes()).await;
        let _ = tokio::time::timeout(Duration::from_secs(2), stream.write_all(&body)).await;
        senders.push(stream);
    }
    let uploads = process.resident();
    drop(senders);
    wait_for("others are served", || async { (get(gateway, LIST).await.status == 200).then_some(()) }).await;

    let mut peak = 0;
    let mut readers = Vec::new();
    for n in 0..clients {
        let mut stream = small(gateway).await;
        let asked = "GET /api/feed/get_feeds?user_id=7&size=1000 HTTP/1.1\r\nhost: x\r\n\r\n";
        let _ = stream.write_all(asked.as_bytes()).await;
        readers.push(stream);
        if n % 10 == 0 {
            tokio::time::sleep(20 * MS).await;
            peak = peak.max(process.resident());
        }
    }
    wait_for("others are served", || async { (get(gateway, LIST).await.status == 200).then_some(()) }).await;
    let readers_at = peak.max(process.resident());
    drop(readers);
    Memory {
        base,
        uploads,
        readers: readers_at,
        refused: metric(admin, "http_server_refused_total").await,
        cut: metric(admin, "server_connections_cut_total").await,
    }
}

#[tokio::test]
async fn f34_slow_bodies_and_unread_answers_keep_memory_bounded() {
    let found = f34(400).await;
    eprintln!("{found:?}");
    // 80 MB of bodies and 800 MB of answers are on offer
    assert!(found.uploads < found.base + 110_000_000, "{found:?}");
    assert!(found.readers < found.base + 350_000_000, "{found:?}");
}

/// Takes processor time until it is dropped.
struct Hogs(Vec<Child>);

impl Hogs {
    fn start(count: usize) -> Self {
        let hog = |_| {
            let mut command = Command::new("sh");
            command.args(["-c", "while :; do :; done"]).stdin(Stdio::null()).spawn().expect("sh")
        };
        Self((0..count).map(hog).collect())
    }
}

impl Drop for Hogs {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Numbers of F35.
#[derive(Debug)]
#[allow(dead_code, reason = "numbers for the fault table")]
pub struct Starved {
    /// Answers 200 a second, without and with the hogs.
    pub base: f64,
    pub goodput: f64,
    /// Calls that were neither answered nor refused with a status.
    pub broken: usize,
    /// Share of calls answered well once the hogs are gone.
    pub after: f64,
}

/// F35: two hogs for each core beside a whole application under load.
pub async fn f35(time: Duration) -> Starved {
    let (_process, gateway, admin, _data) = up(&[], &[]);
    ready(admin).await;
    let load = Load::get(gateway, 300.0, LIST);
    let each_second = |record: &crate::kit::load::Record| {
        let good = |call: &&crate::kit::load::Call| call.ok() && call.latency() <= Duration::from_secs(1);
        record.calls.iter().filter(good).count() as f64 / time.as_secs_f64()
    };
    let base = load.clone().run(time).await;
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let hogs = Hogs::start(2 * cores);
    let starved = load.clone().run(time).await;
    drop(hogs);
    let after = load.run(time).await;
    let answered = |call: &&crate::kit::load::Call| matches!(call.outcome, Outcome::Status(_));
    Starved {
        base: each_second(&base),
        goodput: each_second(&starved),
        broken: starved.calls.len() - starved.calls.iter().filter(answered).count(),
        after: after.ok_share(),
    }
}

#[tokio::test]
async fn f35_without_processor_time_it_answers_what_it_can_and_recovers() {
    let found = f35(Duration::from_secs(2)).await;
    eprintln!("{found:?}");
    assert!(found.goodput > 0.2 * found.base && found.after > 0.95, "{found:?}");
}

/// Returns libfaketime, which makes a program see another wall clock.
fn faketime() -> Option<PathBuf> {
    let named = std::env::var_os("FAKETIME_LIB").map(PathBuf::from);
    let usual = std::fs::read_dir("/usr/lib").into_iter().flatten().flatten();
    let usual = usual.map(|entry| entry.path().join("faketime/libfaketime.so.1"));
    named.into_iter().chain(usual).find(|path| path.is_file())
}

/// Returns the wall clock of a server, by its Date header, in seconds from ours.
async fn clock(addr: SocketAddr) -> Option<i64> {
    let answer = crate::kit::http::send(addr, crate::kit::http::request("GET", LIST, "")).await.ok()?;
    let output = Command::new("date").args(["-u", "+%s", "-d", answer.header("date")]).output().ok()?;
    let told: i64 = String::from_utf8_lossy(&output.stdout).trim().parse().ok()?;
    let ours = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).ok()?.as_secs();
    Some(told - i64::try_from(ours).ok()?)
}

/// Numbers of F36.
#[derive(Debug)]
#[allow(dead_code, reason = "numbers for the fault table")]
pub struct Jumped {
    /// Calls, and those that failed.
    pub calls: usize,
    pub failed: usize,
    /// True if the instance's key in etcd was written again, because its lease was lost.
    pub registered_again: bool,
    /// All latencies that the gateway counted, s, and the longest that is possible.
    pub counted: f64,
    pub possible: f64,
    /// Age of the gateway's view afterwards, s.
    pub view_age: f64,
}

/// F36: the wall clock of gateway and service jumps by an hour forth, back, and by a second, under load.
pub async fn f36(library: &Path, pause: Duration) -> Jumped {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("clock");
    let set = |offset: &str| {
        // renamed, so that nobody reads half of it
        let new = dir.path().join("new");
        std::fs::write(&new, format!("{offset}\n")).and_then(|()| std::fs::rename(&new, &file))
    };
    set("+0").expect("a file");
    let (library, path) = (library.display().to_string(), file.display().to_string());
    let env = [
        ("LD_PRELOAD", library.as_str()),
        ("FAKETIME_TIMESTAMP_FILE", path.as_str()),
        ("FAKETIME_NO_CACHE", "1"),
        // what a jump of the wall clock leaves alone
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ("DONT_FAKE_MONOTONIC", "1"),
    ];
    let etcd = Etcd::start().await;
    let endpoint = etcd.addr.to_string();
    let topic = Role::start(&endpoint, "topic", "127.0.0.1:0", &env);
    let gateway = Role::start(&endpoint, "apigateway", "127.0.0.1:0", &env);
    gateway.wait_for_certain("topic", 1).await;
    let key = format!("/services/topic/{}", topic.addr);
    let revision = || async {
        let found = etcd.client().await.get(key.clone(), None).await.expect("etcd answers");
        found.kvs().first().map(|kv| (kv.create_revision(), kv.mod_revision(), kv.lease()))
    };
    let (before, begun) = (revision().await, Instant::now());
    assert!(before.is_some(), "it is registered");
    let load = Load::get(gateway.addr, 100.0, LIST).start();
    for (offset, seconds) in [("+3600", 3600), ("-3600", -3600), ("+1", 1), ("+0", 0)] {
        set(offset).expect("a file");
        wait_for("the clock has jumped", || async {
            let told = clock(gateway.addr).await?;
            ((told - seconds).abs() <= 1).then_some(())
        })
        .await;
        tokio::time::sleep(pause).await;
    }
    let record = load.finish().await;
    Jumped {
        calls: record.calls.len(),
        failed: record.failed().len(),
        registered_again: revision().await != before,
        counted: gateway.metric("http_server_request_duration_seconds_sum").await,
        possible: begun.elapsed().as_secs_f64() * record.calls.len() as f64,
        view_age: gateway.metric("registry_view_age_seconds").await,
    }
}

#[tokio::test]
async fn f36_a_clock_that_jumps_loses_no_lease_and_no_call() {
    let Some(library) = faketime() else {
        return eprintln!("skipped: libfaketime is not there");
    };
    // longer than the lease, which is 1 s here
    let found = f36(&library, 1500 * MS).await;
    eprintln!("{found:?}");
    assert!(found.failed == 0 && !found.registered_again, "{found:?}");
    assert!(found.counted > 0.0 && found.counted < 0.1 * found.possible, "{found:?}");
    assert!((0.0..10.0).contains(&found.view_age), "{found:?}");
}

/// Numbers of F37.
#[derive(Debug)]
#[allow(dead_code, reason = "numbers for the fault table")]
pub struct Full {
    pub calls: usize,
    pub failed: usize,
    /// Warnings about it.
    pub warnings: usize,
}

/// F37: the disk that the view is kept on is full; instances come and go under load. The scratch file
/// leads to a device that has no room.
pub async fn f37() -> Full {
    let dir = tempfile::tempdir().expect("a directory");
    let (file, scratch) = (dir.path().join("view"), dir.path().join("view.new"));
    std::os::unix::fs::symlink("/dev/full", &scratch).expect("a link");
    let shown = file.display().to_string();
    let etcd = Etcd::start().await;
    let endpoint = etcd.addr.to_string();
    let topic = Role::start(&endpoint, "topic", "127.0.0.1:0", &[]);
    let env = [("MSA__REGISTRY__SNAPSHOT_FILE", shown.as_str())];
    let mut gateway = Role::start(&endpoint, "apigateway", "127.0.0.1:0", &env);
    gateway.wait_for_certain("topic", 1).await;
    let load = Load::get(gateway.addr, 100.0, LIST).start();
    let full = |line: &serde_json::Value| line["message"] == "the view cannot be kept on disk";
    gateway.process.wait_for_log("the disk is full", full);
    let other = Role::start(&endpoint, "topic", "127.0.0.1:0", &[]);
    gateway.wait_for_certain("topic", 2).await;
    load.more(50).await;
    assert!(!file.exists(), "nothing can have been written");
    // there is room again
    std::fs::remove_file(&scratch).expect("the link");
    drop(topic);
    wait_for("the view is on disk", || async { file.exists().then_some(()) }).await;
    let record = load.finish().await;
    drop(other);
    gateway.process.stop(Duration::from_secs(20));
    let warnings = gateway.process.seen.iter().filter(|line| full(line)).count();
    Full { calls: record.calls.len(), failed: record.failed().len(), warnings }
}

#[tokio::test]
async fn f37_a_full_disk_under_the_view_fails_no_call() {
    let found = f37().await;
    eprintln!("{found:?}");
    assert!(found.calls > 50 && found.failed == 0 && found.warnings == 1, "{found:?}");
}
