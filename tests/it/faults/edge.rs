//! Faults that callers and the host bring: attacks on the listeners, and file descriptors, memory,
//! processor, clock and disk that run out or jump. Others must not feel the first, and the program must
//! outlive the second.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::{Bound, Findings, SECOND, rounds, rows};
use crate::kit::cpu::Meter;
use crate::kit::etcd::Etcd;
use crate::kit::frames::{Flood, flood};
use crate::kit::http::{fill, get, raw, request, send, small};
use crate::kit::load::{Load, Outcome, Record};
use crate::kit::process::{PROGRAM, Process};
use crate::kit::system::Role;
use crate::kit::{ab, wait_for};

/// Calls of others a second.
const RATE: f64 = 200.0;
const LIST: &str = "/api/topic/list";
/// The largest answer there is, 2 MiB.
const LARGE: &str = "GET /api/feed/get_feeds?user_id=7&size=1000 HTTP/1.1\r\nhost: x\r\n\r\n";

rows! { "callpath"
    "F31" f31_slow_callers slow_callers 60 4 "callers that send slowly, or read nothing";
    "F32" f32_floods_of_frames floods 40 4 "floods of HTTP/2 frames to a service";
    "F33" f33_no_file_descriptors no_descriptors 30 2 "64 file descriptors, and more callers";
    "F34" f34_memory memory 20 2 "large bodies that never end, large answers that nobody reads";
    "F35" f35_no_processor_time no_processor 30 4 "two hogs for each core";
    "F36" f36_the_clock_jumps clock_jumps 20 6 "the wall clock jumps by an hour, and by a second";
    "F37" f37_the_disk_of_the_view_is_full disk_full 10 2 "the disk under the view is full";
}

/// The whole application as one process.
struct Whole {
    process: Process,
    gateway: SocketAddr,
    topic: SocketAddr,
    admin: SocketAddr,
    _data: tempfile::TempDir,
}

impl Whole {
    /// Starts it, with variables and before it a command such as `prlimit`.
    async fn start(before: &[&str], env: &[(&str, &str)]) -> Self {
        let data = tempfile::tempdir().expect("a directory");
        let words = [before, &[PROGRAM, "up", "--free-ports", "--data-dir"]].concat();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).arg(data.path());
        let mut process = Process::spawn_with(command, env);
        let (gateway, admin) = process.wait_for_role("apigateway");
        let (topic, _) = process.wait_for_role("topic");
        wait_for("every role is there", || async {
            (get(admin, "/readyz").await.body == "ready\n").then_some(())
        })
        .await;
        Self { process, gateway, topic, admin, _data: data }
    }

    /// Returns the sum of the series that begin so; panics if there is none.
    async fn metric(&self, begin: &str) -> f64 {
        crate::kit::metrics::metric(self.admin, begin).await
    }

    /// Waits until a call is answered well.
    async fn serves(&self) {
        wait_for("it answers", || async {
            let answer = tokio::time::timeout(SECOND, send(self.gateway, request("GET", LIST, ""))).await;
            matches!(answer, Ok(Ok(answer)) if answer.status == 200).then_some(())
        })
        .await;
    }
}

fn p99(record: &Record) -> f64 {
    record.latency(0.99).as_secs_f64()
}

async fn slow_callers(time: Duration) -> Findings {
    let mut findings = Findings::default();
    let rounds = rounds(time, 2);
    let long = rounds >= 10;
    let attackers = if long { 1000 } else { 200 };
    let phase = time / (2 * rounds);
    // they are all there for the whole phase, and all gone soon after
    let patience = (phase + SECOND * 3 / 2).as_millis().to_string();
    let env = [
        ("MSA__HTTP__HEADER_TIMEOUT_MS", patience.as_str()),
        ("MSA__HTTP__BODY_TIMEOUT_MS", patience.as_str()),
        ("MSA__HTTP__WRITE_TIMEOUT_MS", "1000"),
        // the largest answer takes its time in a debug build on a busy machine
        ("MSA__CLIENT__DEADLINE_MS", "20000"),
    ];
    let app = Whole::start(&[], &env).await;
    let load = || Load::get(app.gateway, RATE, LIST).run(phase);
    let (mut failed, mut otherwise) = (0, 0);
    let attack = async || {
        let mut tasks = JoinSet::new();
        for n in 0..attackers {
            let bytes: &[u8] = match n % 3 {
                0 => b"GET /api/topic/list HTTP/1.1\r\nhost:",
                1 => b"PUT /api/feed/create_feed HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{",
                _ => b"",
            };
            tasks.spawn(raw(app.gateway, bytes));
        }
        wait_for("they are all there", || async {
            let open = std::fs::read_dir(format!("/proc/{}/fd", app.process.id())).expect("it runs").count();
            (open > attackers).then_some(())
        })
        .await;
        let record = load().await;
        failed += record.failed().len();
        // a slow body is told 408, the others nothing; each is closed, or this panics
        let answers = tasks.join_all().await;
        otherwise += answers.iter().filter(|a| !a.is_empty() && !a.starts_with("HTTP/1.1 408")).count();
        p99(&record)
    };
    let compared = ab::compare(rounds as usize, async || p99(&load().await), attack).await;
    findings.p99_compared_at_most("p99 of others with the attack / without", &compared, 1.25);
    findings.count("failed calls of others", failed, 0);
    findings.count("attackers that were answered otherwise", otherwise, 0);

    fill(app.gateway, 7).await;
    let mut readers = Vec::new();
    for _ in 0..5 {
        let mut reader = small(app.gateway).await;
        reader.write_all(LARGE.as_bytes()).await.expect("it reads");
        readers.push(reader);
    }
    // a peer whose window is full need not take the reset for one: the program says what it did
    let line = "server_connections_cut_total{reason=\"write_timeout\"}";
    wait_for("those who read nothing are cut", || async { (app.metric(line).await >= 5.0).then_some(()) })
        .await;
    findings.tell("readers cut, of 5", app.metric(line).await, "");
    drop(readers);
    if long {
        let mut idle = Vec::new();
        for _ in 0..files(10_000) {
            idle.push(TcpStream::connect(app.gateway).await.expect("it listens"));
        }
        let record = load().await;
        findings.tell("10000 idle connections: p99 of others, ms", p99(&record) * 1000.0, "");
        findings.count("10000 idle connections: failed calls", record.failed().len(), 0);
        findings.tell("memory with them, MB", app.process.resident() as f64 / 1e6, "");
    }
    findings
}

async fn floods(time: Duration) -> Findings {
    let mut findings = Findings::default();
    let app = Whole::start(&[], &[]).await;
    let phases = 2 * Flood::ALL.len() as u32;
    let rounds = rounds(time, phases);
    let phase = time / (phases * rounds);
    // below what one core can do: what others lack then is the attacker's doing
    let load = || Load::get(app.gateway, RATE, LIST).run(phase);
    let goodput = |record: &Record| record.ok_share();
    for kind in Flood::ALL {
        let (mut failed, mut opened, mut closed, mut longest) = (0, 0, 0, Duration::ZERO);
        let attack = async || {
            let (addr, begun) = (app.topic, Instant::now());
            // one that comes again whenever it is thrown out, on a thread of its own
            let attacker = std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                runtime.expect("a runtime").block_on(async {
                    let mut all = Vec::new();
                    while begun.elapsed() < phase {
                        all.push(flood(addr, kind, "/topic.Topic/ListTopics", PATIENCE).await);
                    }
                    all
                })
            });
            let record = load().await;
            failed += record.failed().len();
            while !attacker.is_finished() {
                sleep(SECOND / 100).await;
            }
            let all = attacker.join().expect("the attacker ends");
            opened += all.len();
            closed += all.iter().filter(|one| one.closed.is_some()).count();
            let each = all.iter().map(|one| one.closed.unwrap_or(PATIENCE));
            longest = each.fold(longest, Duration::max);
            goodput(&record)
        };
        let compared = ab::compare(rounds as usize, async || goodput(&load().await), attack).await;
        let what = |text: &str| format!("{kind:?}: {text}");
        findings.tell(&what("connections of the attacker"), f64::from(opened as u32), "");
        findings.count(&what("not closed by the service"), opened - closed, 0);
        findings.time(&what("longest life of one"), longest, 2 * SECOND);
        findings.compared_at_least(&what("goodput of others / without"), &compared, 0.8);
        findings.tell(&what("failed calls of others"), failed as f64, "");
    }
    let cut = app.metric("server_connections_cut_total{reason=\"flood\"}").await;
    findings.add("floods counted", cut, "", Bound::AtLeast(4.0), false);
    app.serves().await;
    findings
}

/// How long a flood may go on.
const PATIENCE: Duration = Duration::from_secs(6);

/// Returns true if a program can be started.
fn there(program: &str) -> bool {
    let found = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    found.is_ok_and(|status| status.success())
}

async fn no_descriptors(time: Duration) -> Findings {
    if !there("prlimit") {
        return Findings::skipped("prlimit is not there");
    }
    let mut findings = Findings::default();
    let mut app = Whole::start(&["prlimit", "--nofile=64:64"], &[]).await;
    // idle ones give theirs back
    let mut idle = Vec::new();
    for _ in 0..100 {
        let mut connection = crate::kit::http::Connection::open(app.gateway).await.expect("it listens");
        let status = connection.get(LIST).await.map_or(0, |answer| answer.status.as_u16());
        findings.count("calls that failed beside idle connections", usize::from(status != 200), 0);
        idle.push(connection);
    }
    findings.numbers.dedup_by(|a, b| a.what == b.what && a.holds() && b.holds());
    drop(idle);
    // those with a request under way keep theirs
    let mut held = Vec::new();
    for _ in 0..100 {
        let mut stream = TcpStream::connect(app.gateway).await.expect("the backlog takes it");
        let upload = "PUT /api/feed/create_feed HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{";
        stream.write_all(upload.as_bytes()).await.expect("its buffer takes it");
        held.push(stream);
    }
    app.process.wait_for_log("accept fails", |line| line["message"] == "accept failed");
    let meter = Meter::start(app.process.id());
    sleep(time.min(8 * SECOND)).await; // the uploads end after 10 s
    let spent = meter.share();
    findings.ratio("share of a core meanwhile", spent, 0.1);
    findings.count("cores taken by a loop that spins", usize::from(spent > 0.5), 0);
    let begun = Instant::now();
    drop(held);
    app.serves().await;
    findings.time("until calls are answered again", begun.elapsed(), SECOND);
    app.process.stop(20 * SECOND);
    let lines = app.process.seen.iter().filter(|line| line["message"] == "accept failed").count();
    findings.count("lines in the log", lines, 1 + time.as_secs() as usize / 10 + 1);
    findings
}

/// Bytes that unfinished bodies, unsent answers, and the fallback may hold (docs/operations.md, Memory).
const BODIES: f64 = 64.0 * 1024.0 * 1024.0;
const UNSENT: f64 = 128.0 * 1024.0 * 1024.0;
const FALLBACK: f64 = 8.0 * 1024.0 * 1024.0;
/// Bytes of each connection while its body arrives: the buffer that it is read into, and what does not count.
const UPLOAD: f64 = (64.0 + 8.0) * 1024.0;
/// Bytes of a request in progress: its answer as records, as a message sent and received, and as JSON, where the
/// buffers of the message grow by doubling.
const IN_PROGRESS: f64 = 6.0 * 2.0 * 1024.0 * 1024.0;
/// What the allocator keeps beyond what is used.
const ALLOCATOR: f64 = 1.2;

async fn memory(_: Duration) -> Findings {
    let mut findings = Findings::default();
    let clients = files(2000);
    let in_flight = 16.0;
    let env = [("MSA__HTTP__MAX_IN_FLIGHT", "16"), ("MSA__GRPC__MAX_IN_FLIGHT", "16")];
    let app = Whole::start(&[], &env).await;
    fill(app.gateway, 7).await;
    let base = app.process.resident();
    let grown = || app.process.resident().saturating_sub(base) as f64 / 1e6;

    let body = vec![b' '; 200 * 1024];
    let mut uploads = Vec::new();
    for _ in 0..clients {
        let mut stream = TcpStream::connect(app.gateway).await.expect("it listens");
        let upload = "PUT /api/feed/create_feed HTTP/1.1\r\nhost: x\r\ncontent-length: 204801\r\n\r\n";
        // one that was refused may be closed by now
        let _ = stream.write_all(upload.as_bytes()).await;
        let _ = tokio::time::timeout(2 * SECOND, stream.write_all(&body)).await;
        uploads.push(stream);
    }
    // it reads on after the last of them has written
    let mut most = 0.0;
    while grown() > most + 1.0 {
        most = grown();
        sleep(SECOND / 5).await;
    }
    findings.tell("bodies on offer, MB", f64::from(clients) * 0.2, "");
    let promised = (BODIES + f64::from(clients) * UPLOAD) * ALLOCATOR / 1e6;
    let bound = Bound::AtMost(promised.round());
    findings.add("growth by bodies that never end, MB", most.max(grown()), "", bound, false);
    app.serves().await;
    drop(uploads);

    let mut readers = Vec::new();
    let mut peak = 0.0_f64;
    for n in 0..clients / 4 {
        let mut stream = small(app.gateway).await;
        let _ = stream.write_all(LARGE.as_bytes()).await;
        readers.push(stream);
        if n % 10 == 0 {
            sleep(SECOND / 50).await;
            peak = peak.max(grown());
        }
    }
    app.serves().await;
    findings.tell("answers on offer, MB", f64::from(clients) / 2.0, "");
    let promised = (UNSENT + FALLBACK + in_flight * IN_PROGRESS) * ALLOCATOR / 1e6;
    let bound = Bound::AtMost(promised.round());
    findings.add("growth by answers that nobody reads, MB", peak.max(grown()), "", bound, false);
    findings.tell("requests refused", app.metric("http_server_refused_total").await, "");
    findings.tell("connections cut", app.metric("server_connections_cut_total").await, "");
    findings
}

/// Makes room for so many sockets, and returns how many there is room for.
fn files(wanted: u32) -> u32 {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    let _ = setrlimit(Resource::Nofile, limit);
    let most = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    wanted.min(u32::try_from(most / 2).unwrap_or(u32::MAX))
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

async fn no_processor(time: Duration) -> Findings {
    let mut findings = Findings::default();
    let app = Whole::start(&[], &[]).await;
    let phase = time / 3;
    let load = || Load::get(app.gateway, RATE, LIST).run(phase);
    let base = load().await;
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let hogs = Hogs::start(2 * cores);
    let starved = load().await;
    drop(hogs);
    let after = load().await;
    // a third of the processor time is left, and the load wants much less than that
    findings.add("goodput / without", starved.ok_share() / base.ok_share(), "", Bound::AtLeast(0.8), true);
    findings.tell("p99, ms", p99(&starved) * 1000.0, "");
    let told = |call: &&crate::kit::load::Call| matches!(call.outcome, Outcome::Status(_));
    let untold = starved.calls.len() - starved.calls.iter().filter(told).count();
    findings.count("calls without an answer or a refusal", untold, 0);
    findings.share("share of good answers afterwards", after.ok_share(), 0.99);
    findings
}

/// Returns libfaketime, which makes a program see another wall clock: that of the program `faketime` in the path. Debian
/// has it in a directory of the platform, Nix in `lib` beside `bin`.
fn faketime() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let program = std::env::split_paths(&path).map(|dir| dir.join("faketime")).find(|p| p.is_file())?;
    let lib = program.canonicalize().ok()?.ancestors().nth(2)?.join("lib");
    let below = std::fs::read_dir(&lib).into_iter().flatten().flatten().map(|entry| entry.path());
    let dirs = [lib].into_iter().chain(below);
    let found =
        dirs.flat_map(|dir| ["libfaketime.so.1", "faketime/libfaketime.so.1"].map(|name| dir.join(name)));
    found.filter(|path| path.is_file()).min()
}

/// The wall clock of programs under libfaketime.
struct Clock {
    dir: tempfile::TempDir,
    library: String,
    file: String,
}

impl Clock {
    fn new(library: &Path) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("clock").display().to_string();
        let clock = Self { dir, library: library.display().to_string(), file };
        clock.set("+0");
        clock
    }

    /// Sets it to so many seconds from the true time; renamed, so that nobody reads half of it.
    fn set(&self, offset: &str) {
        let new = self.dir.path().join("new");
        let written = std::fs::write(&new, format!("{offset}\n"));
        written.and_then(|()| std::fs::rename(&new, &self.file)).expect("a file");
    }

    fn env(&self) -> [(&str, &str); 5] {
        [
            ("LD_PRELOAD", &self.library),
            ("FAKETIME_TIMESTAMP_FILE", &self.file),
            ("FAKETIME_NO_CACHE", "1"),
            // a jump of the wall clock leaves the monotonic one alone; the name has changed over time
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
            ("DONT_FAKE_MONOTONIC", "1"),
        ]
    }
}

async fn clock_jumps(time: Duration) -> Findings {
    let Some(library) = faketime() else {
        return Findings::skipped("libfaketime is not there");
    };
    let mut findings = Findings::default();
    let clock = Clock::new(&library);
    // every request is a line in the log, with the time that the gateway believes in
    let env = [clock.env().as_slice(), &[("MSA__LOG__SLOW_MS", "0")]].concat();
    let etcd = Etcd::start().await;
    let endpoint = etcd.addr.to_string();
    let topic = Role::start(&endpoint, "topic", "127.0.0.1:0", &env);
    let mut gateway = Role::start(&endpoint, "apigateway", "127.0.0.1:0", &env);
    gateway.wait_for_certain("topic", 1).await;
    let key = format!("/services/topic/{}", topic.addr);
    let registered = || async {
        let found = etcd.client().await.get(key.clone(), None).await.expect("etcd answers");
        found.kvs().first().map(|kv| (kv.create_revision(), kv.mod_revision(), kv.lease()))
    };
    let (before, begun) = (registered().await, Instant::now());
    assert!(before.is_some(), "it is registered");
    let load = Load::get(gateway.addr, RATE / 2.0, LIST).start();
    let offsets = ["+3600", "-3600", "+1", "-1", "+0"];
    for offset in offsets {
        clock.set(offset);
        // longer than the lease, which is 1 s here
        sleep((time / offsets.len() as u32).max(SECOND * 12 / 10)).await;
    }
    let record = load.finish().await;
    findings.no_failures(&record);
    findings.count("leases lost", usize::from(registered().await != before), 0);
    let counted = gateway.metric("http_server_request_duration_seconds_sum").await;
    findings.add("sum of all latencies that the gateway counted, s", counted, "", Bound::AtLeast(0.0), false);
    let possible = begun.elapsed().as_secs_f64() * 10.0;
    findings.add("  of at most", counted, "", Bound::AtMost(possible), false);
    let age = gateway.metric("registry_view_age_seconds").await;
    findings.add("age of the view, s", age, "", Bound::AtMost(5.0), false);
    let down = gateway.metric("client_endpoints{service=\"topic\",state=\"up\"}").await;
    findings.add("instances up", down, "", Bound::AtLeast(1.0), false);
    gateway.process.stop(20 * SECOND);
    let hour = |line: &serde_json::Value| line["timestamp"].as_str().map(|text| text[..13].to_owned());
    let hours: std::collections::BTreeSet<_> = gateway.process.seen.iter().filter_map(hour).collect();
    findings.add("hours that the gateway saw", hours.len() as f64, "", Bound::AtLeast(3.0), false);
    findings
}

async fn disk_full(_: Duration) -> Findings {
    let mut findings = Findings::default();
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("view");
    let shown = file.display().to_string();
    let etcd = Etcd::start().await;
    let endpoint = etcd.addr.to_string();
    let mut topic = Role::start(&endpoint, "topic", "127.0.0.1:0", &[]);
    // the file that the view is written to before it is renamed, which has the process's number in its name, leads to a
    // device without room: the shell makes the link and becomes the program
    let mut command = Command::new("sh");
    command.args(["-c", "ln -s /dev/full \"$0.$$.new\" && exec \"$@\"", &shown, PROGRAM, "apigateway"]);
    command.args(["--http-addr", "127.0.0.1:0", "--debug-addr", "127.0.0.1:0"]);
    let env = [
        ("MSA__REGISTRY__ENDPOINTS", endpoint.as_str()),
        ("MSA__REGISTRY__TTL_S", "1"),
        ("MSA__REGISTRY__KEEPALIVE_MS", "300"),
        ("MSA__REGISTRY__SNAPSHOT_FILE", shown.as_str()),
    ];
    let mut process = Process::spawn_with(command, &env);
    let (addr, admin) = process.wait_for_role("apigateway");
    let scratch = dir.path().join(format!("view.{}.new", process.id()));
    let mut gateway = Role { process, addr, admin };
    gateway.wait_for_certain("topic", 1).await;
    let full = |line: &serde_json::Value| line["message"] == "the view cannot be kept on disk";
    gateway.process.wait_for_log("the disk is full", full);
    let load = Load::get(gateway.addr, RATE / 2.0, LIST).start();
    let _other = Role::start(&endpoint, "topic", "127.0.0.1:0", &[]);
    gateway.wait_for_certain("topic", 2).await;
    load.more(50).await;
    findings.count("files written", usize::from(file.exists()), 0);
    // there is room again
    std::fs::remove_file(&scratch).expect("the link");
    topic.process.stop(20 * SECOND);
    wait_for("the view is on disk", || async { file.exists().then_some(()) }).await;
    let record = load.finish().await;
    findings.no_failures(&record);
    gateway.process.stop(20 * SECOND);
    let warnings = gateway.process.seen.iter().filter(|line| full(line)).count();
    findings.add("warnings", warnings as f64, "", Bound::AtLeast(1.0), false);
    findings.count("warnings, at most", warnings, 1);
    findings
}
