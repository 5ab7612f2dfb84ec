//! The rows about the file of a store: processes that are killed over it, and a file that cannot be written.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use rusqlite::{Connection, OpenFlags};
use rustix::process::{Pid, Resource, Rlimit, Signal, prlimit};
use tokio::time::{Instant, sleep};

use super::{Findings, SECOND, rows};
use crate::kit::disk::{NO_DISK, SmallDisk};
use crate::kit::etcd::Etcd;
use crate::kit::http::get;
use crate::kit::process::{PROGRAM, Process};
use crate::kit::system::Role;
use crate::kit::writers::{Ledger, Writers, read, version};
use crate::kit::{skip, wait_for};

/// Callers that write.
const WRITERS: i64 = 16;
/// The time limit of each call.
const LIMIT: Duration = Duration::from_secs(1);

rows! { "store"
    "F56" f56_the_file_cannot_be_written file_cannot_be_written 30 3 "the store's file is locked, may not grow, may not be changed";
    "F58" f58_kill_9_over_one_file kill_9 100 10 "kill -9 under load, of one of two instances over a file or of both";
    "F59" f59_the_disk_of_the_store_is_full disk_full 20 2 "the disk under the store is full";
}

/// Returns what a file holds, and what SQLite thinks of it.
fn look(file: &Path) -> (BTreeMap<i64, u64>, String) {
    let db = Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_WRITE).expect("a database");
    db.busy_timeout(5 * SECOND).expect("a time");
    let mut query = db.prepare("SELECT id, content FROM feeds").expect("a table");
    let record = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, version(&row.get::<_, String>(1)?)));
    let found = query.query_map([], record).and_then(Iterator::collect);
    let check = db.query_row("PRAGMA integrity_check", [], |row| row.get(0));
    (found.expect("records"), check.expect("a word"))
}

/// Judges the ends of calls, and what is in the store when all is over.
fn judge(findings: &mut Findings, ledger: &Ledger, found: &BTreeMap<i64, u64>) {
    for (status, count) in &ledger.statuses {
        findings.tell(&format!("calls that ended with {status}"), *count as f64, "");
    }
    findings.count("calls that ended neither with 200, 503 nor 504", ledger.strange(), 0);
    findings.guarantee("acknowledged writes", ledger.judge(ledger, found));
    findings.time("longest call", ledger.longest, LIMIT + SECOND / 10);
}

/// Kills once for each second of `time`.
async fn kill_9(time: Duration) -> Findings {
    let mut findings = Findings::default();
    let mut random = StdRng::seed_from_u64(58);
    let (etcd, dir) = (Etcd::start().await, tempfile::tempdir().expect("a directory"));
    let (endpoint, file) = (etcd.addr.to_string(), dir.path().join("feed.db"));
    let store = format!("sqlite:{}", file.display());
    let gateway = Role::gateway(&endpoint);
    let start = |listen: &str| Role::start(&endpoint, "feed", listen, &[("MSA__STORE__URL", &store)]);
    let mut feeds = ["127.0.0.1:0"; 2].map(start);
    gateway.wait_for_certain("feed", 2).await;
    let writers = Writers::start(gateway.addr, 0..WRITERS, LIMIT);
    let (mut kills, mut broken) = (0, Vec::new());
    for round in 0..time.as_secs() {
        writers.more(30).await;
        sleep(Duration::from_millis(random.random_range(0..80))).await;
        let dead = if round % 2 == 0 { vec![0, 1] } else { vec![random.random_range(0..2)] };
        // both at once: the second one does not write on while the end of the first is waited for
        for number in &dead {
            feeds[*number].process.signal(Signal::KILL);
        }
        for number in &dead {
            feeds[*number].process.kill();
        }
        kills += dead.len();
        let before = writers.ledger();
        let (found, check) = if dead.len() == 2 { look(&copied(&file, &dir)) } else { look(&file) };
        if check != "ok" {
            broken.push(check);
        }
        if let Err(lost) = before.judge(&writers.ledger(), &found) {
            broken.push(lost);
        }
        for number in dead {
            feeds[number] = start(&feeds[number].addr.to_string());
        }
    }
    writers.more(30).await;
    let ledger = writers.finish().await;
    findings.tell("kills", kills as f64, "");
    findings.tell("acknowledged writes", ledger.acknowledged() as f64, "");
    for broken in &broken {
        eprintln!("after a kill: {broken}");
    }
    findings.count("kills after which the file was damaged or writes lost", broken.len(), 0);
    judge(&mut findings, &ledger, &read(gateway.addr).await);
    findings
}

/// Copies a file that nobody uses, so that looking at it repairs nothing for the next start.
fn copied(file: &Path, dir: &tempfile::TempDir) -> PathBuf {
    let copy = dir.path().join("copy.db");
    for suffix in ["", "-wal"] {
        let with = |path: &Path| PathBuf::from(format!("{}{suffix}", path.display()));
        std::fs::copy(with(file), with(&copy)).expect("a copy");
    }
    copy
}

/// One instance with its gateway, whose file gets into trouble.
struct Bench {
    etcd: Etcd,
    store: String,
    gateway: Role,
    feed: Role,
    writers: Writers,
    findings: Findings,
}

impl Bench {
    /// Starts the instance by a command that runs the program, and `writers` of its gateway.
    async fn start(command: Command, file: &Path, writers: impl FnOnce(SocketAddr) -> Writers) -> Self {
        let etcd = Etcd::start().await;
        let (endpoint, store) = (etcd.addr.to_string(), format!("sqlite:{}", file.display()));
        let gateway = Role::gateway(&endpoint);
        let env = [("MSA__STORE__URL", store.as_str())];
        let feed = Role::start_by(command, &endpoint, "feed", "127.0.0.1:0", &env);
        gateway.wait_for_certain("feed", 1).await;
        let writers = writers(gateway.addr);
        writers.more(100).await;
        Self { etcd, store, gateway, feed, writers, findings: Findings::default() }
    }

    /// Starts the instance again where it was.
    async fn start_again(&mut self, command: Command) {
        let (endpoint, listen) = (self.etcd.addr.to_string(), self.feed.addr.to_string());
        let env = [("MSA__STORE__URL", self.store.as_str())];
        self.feed = Role::start_by(command, &endpoint, "feed", &listen, &env);
        self.gateway.wait_for_certain("feed", 1).await;
    }

    /// Something is broken, for `time`. Expects that readiness says so, that from then on `most` writes are
    /// acknowledged, that reads go on, and that writes go on soon after `mend`.
    async fn trouble(&mut self, what: &str, reason: &str, time: Duration, most: usize, mend: impl FnOnce()) {
        let admin = self.feed.admin;
        wait_for(reason, || async { get(admin, "/readyz").await.body.contains(reason).then_some(()) }).await;
        sleep(SECOND / 5).await;
        let (begun, before) = (Instant::now(), self.writers.ledger());
        let mut reads = 0;
        let mut failed = 0;
        while begun.elapsed() < time {
            let answer = get(self.gateway.addr, "/api/feed/get_feeds?user_id=7&size=20").await;
            reads += 1;
            failed += usize::from(answer.status != 200 || !answer.degraded().is_empty());
            let page = get(admin, "/readyz").await;
            assert_eq!(page.status, 200, "{page:?}");
            sleep(SECOND / 20).await;
        }
        let during = self.writers.ledger();
        mend();
        let mended = Instant::now();
        self.writers.more(50).await;
        self.findings.time(
            &format!("{what}: until writes are acknowledged again"),
            mended.elapsed(),
            3 * SECOND,
        );
        let acknowledged = during.acknowledged() - before.acknowledged();
        self.findings.count(&format!("{what}: writes acknowledged meanwhile"), acknowledged, most);
        let calls = |ledger: &Ledger| ledger.statuses.values().sum::<usize>();
        self.findings.share(
            &format!("{what}: writes refused"),
            (calls(&during) - calls(&before)) as f64,
            1.0,
        );
        self.findings.share(&format!("{what}: reads"), f64::from(reads), 1.0);
        self.findings.count(&format!("{what}: reads that failed"), failed, 0);
        wait_for("nothing is wrong any more", || async {
            (!get(admin, "/readyz").await.body.contains("store sqlite")).then_some(())
        })
        .await;
    }
}

async fn file_cannot_be_written(time: Duration) -> Findings {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("feed.db");
    let mut bench =
        Bench::start(Command::new(PROGRAM), &file, |gateway| Writers::start(gateway, 0..WRITERS, LIMIT))
            .await;
    let each = time / 3;

    let lock = Connection::open(&file).expect("it is there");
    lock.busy_timeout(5 * SECOND).expect("a time");
    lock.execute_batch("BEGIN IMMEDIATE").expect("the lock is free");
    let unlock = || lock.execute_batch("COMMIT").expect("the lock is ours");
    bench.trouble("locked", "warn: feed: store sqlite: a write has waited for", each, 0, unlock).await;

    let pid = i32::try_from(bench.feed.process.id()).ok().and_then(Pid::from_raw);
    let limit = |most| {
        let limits = Rlimit { current: most, maximum: None };
        prlimit(pid, Resource::Fsize, limits).expect("the process is ours");
    };
    limit(Some(4096));
    let failed = "warn: feed: store sqlite: the last write failed: store: disk I/O error";
    bench.trouble("may not grow", failed, each, 0, || limit(None)).await;

    // as after an error of the disk, with which many systems make it read-only
    let log = format!("{}-wal", file.display());
    let chattr = |change: &str| {
        Command::new("chattr").args([change, &log]).output().is_ok_and(|out| out.status.success())
    };
    if chattr("+i") {
        bench.trouble("may not be changed", failed, each, 0, || assert!(chattr("-i"))).await;
    } else {
        skip("F56, the file may not be changed", "no leave to make a file immutable (chattr +i)");
    }
    let ledger = bench.writers.finish().await;
    judge(&mut bench.findings, &ledger, &read(bench.gateway.addr).await);
    bench.feed.process.stop(20 * SECOND);
    bench.findings
}

async fn disk_full(time: Duration) -> Findings {
    let Some(disk) = SmallDisk::mount(16 << 20).await else {
        return Findings::skipped(NO_DISK);
    };
    let file = disk.path("feed.db");
    // new records, for which there must be room at last: rewriting a few goes on within a log that has its size
    let growing = |gateway| Writers::growing(gateway, 0..WRITERS, LIMIT);
    let mut bench = Bench::start(disk.command(PROGRAM), &file, growing).await;
    disk.fill();
    let reason = "warn: feed: store sqlite: disk full, writes are refused";
    // what is refused with others may find room alone
    let most = WRITERS.unsigned_abs() as usize;
    bench.trouble("full", reason, time / 2, most, || disk.empty()).await;

    // an instance that starts meanwhile serves reads; one that has to make its file says why it cannot
    disk.fill();
    let mut new = disk.command(PROGRAM);
    new.args(["feed", "--addr", "127.0.0.1:0", "--debug-addr", "127.0.0.1:0"]);
    let store = format!("sqlite:{}", disk.path("new.db").display());
    let mut new = Process::spawn_with(new, &[("MSA__STORE__URL", &store)]);
    let status = new.wait(10 * SECOND);
    let words = format!("{:?}", new.seen);
    bench.findings.share(
        "a start without a file: ends and says why",
        f64::from(u8::from(status.code() == Some(1) && words.contains("new.db: ") && words.contains("full"))),
        1.0,
    );
    bench.feed.process.kill();
    bench.start_again(disk.command(PROGRAM)).await;
    bench.trouble("full at the start", reason, time / 2, most, || disk.empty()).await;
    let ledger = bench.writers.finish().await;
    bench.feed.process.stop(20 * SECOND);
    let dir = tempfile::tempdir().expect("a directory");
    for name in ["feed.db", "feed.db-wal"] {
        // not where the service has put everything into the database at its end
        if disk.seen(name).exists() {
            std::fs::copy(disk.seen(name), dir.path().join(name)).expect("a copy");
        }
    }
    let copy = dir.path().join("feed.db");
    std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o600)).expect("the copy is ours");
    let (found, check) = look(&copy);
    judge(&mut bench.findings, &ledger, &found);
    bench.findings.count("damage", usize::from(check != "ok"), 0);
    bench.findings
}
