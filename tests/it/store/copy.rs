//! `copy-store`: what it copies, what it refuses, and that it can be ended and repeated.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use microservice_app::api::proto::feed::{FeedRecord, OkResponse};
use rusqlite::{Connection, params};
use rustix::process::Signal;
use tonic::Request;

use crate::kit::grpc::call;
use crate::kit::process::{self, PROGRAM, Process, run};
use crate::kit::{SOON, wait_for};

/// Makes the files of `up` in a directory, without records.
pub fn machine(dir: &Path) {
    let data = dir.display().to_string();
    let mut up = Process::start(&["up", "--free-ports", "--data-dir", &data]);
    up.wait_for_roles();
    up.stop(SOON);
}

pub fn db(dir: &Path, service: &str) -> Connection {
    let db = Connection::open(dir.join(format!("{service}.db"))).unwrap();
    db.busy_timeout(SOON).unwrap();
    db
}

/// Writes feeds of user 7 with these ids.
pub fn fill(dir: &Path, ids: impl IntoIterator<Item = i64>, content: &str) {
    let mut db = db(dir, "feed");
    let tx = db.transaction().unwrap();
    for id in ids {
        tx.execute("INSERT INTO feeds VALUES (?, ?, ?)", params![id % 1000 + 1, id, content]).unwrap();
    }
    tx.commit().unwrap();
}

/// Returns everything in a table.
pub fn rows(dir: &Path, service: &str) -> Vec<Vec<String>> {
    let db = db(dir, service);
    let mut query = db.prepare(&format!("SELECT * FROM {service}s ORDER BY 1, 2")).unwrap();
    let columns = query.column_count();
    let row = |row: &rusqlite::Row<'_>| {
        let text = |at| row.get::<_, rusqlite::types::Value>(at).map(|value| format!("{value:?}"));
        (0..columns).map(text).collect::<Result<Vec<_>, _>>()
    };
    query.query_map([], row).unwrap().map(Result::unwrap).collect()
}

pub fn count(dir: &Path) -> i64 {
    db(dir, "feed").query_row("SELECT count(*) FROM feeds", [], |row| row.get(0)).unwrap()
}

pub fn url(path: impl AsRef<Path>) -> String {
    format!("sqlite:{}", path.as_ref().display())
}

/// Two directories for stores.
struct Dirs {
    _root: tempfile::TempDir,
    from: PathBuf,
    to: PathBuf,
}

impl Dirs {
    /// The first one has the files of a machine.
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let (from, to) = (root.path().join("from"), root.path().join("to"));
        machine(&from);
        Self { _root: root, from, to }
    }

    fn args<'a>(more: &[&'a str], urls: &'a [String; 2]) -> Vec<&'a str> {
        [&["copy-store", &urls[0], &urls[1]], more].concat()
    }

    fn urls(&self) -> [String; 2] {
        [url(&self.from), url(&self.to)]
    }

    /// Runs a copy that must succeed; returns what it prints.
    fn copy(&self, more: &[&str]) -> String {
        let urls = self.urls();
        let (status, out, err) = run(&Self::args(more, &urls));
        assert!(status.success(), "{status}: {out}\n{err}");
        out
    }

    /// Runs a copy that must fail with status 1; returns what it says.
    fn refused(&self, more: &[&str]) -> String {
        let urls = self.urls();
        let (status, out, err) = run(&Self::args(more, &urls));
        assert_eq!(status.code(), Some(1), "{out}\n{err}");
        err
    }

    /// Starts a copy.
    fn start(&self) -> Child {
        let urls = self.urls();
        let mut command = Command::new(PROGRAM);
        command.args(Self::args(&["--service", "feed"], &urls));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }
}

#[test]
fn every_record_of_a_machine_is_copied_and_the_source_stays_as_it_is() {
    let dirs = Dirs::new();
    fill(&dirs.from, 1..=1234, "hello \u{1F600}\n'quoted'");
    fill(&dirs.from, [-5, i64::MAX], "");
    let put = |service: &str, sql: &str| db(&dirs.from, service).execute(sql, []).unwrap();
    put("profile", "INSERT INTO profiles VALUES (7, 'Ada', '', 'countess')");
    put("topic", "INSERT INTO topics VALUES (1, 's', 'c'), (9223372036854775807, '', '')");
    let before =
        ["feed", "profile", "topic"].map(|s| std::fs::read(dirs.from.join(format!("{s}.db"))).unwrap());
    let out = dirs.copy(&[]);
    assert_eq!(
        out,
        "feed: 1236 records: 1236 copied, 0 already there; checked\n\
         profile: 1 records: 1 copied, 0 already there; checked\n\
         topic: 2 records: 2 copied, 0 already there; checked\n"
    );
    let after =
        ["feed", "profile", "topic"].map(|s| std::fs::read(dirs.from.join(format!("{s}.db"))).unwrap());
    assert!(before == after, "the files of the source have changed");
    for service in ["feed", "profile", "topic"] {
        assert_eq!(rows(&dirs.from, service), rows(&dirs.to, service));
    }
    fill(&dirs.to, [5000], "own");
    let again = dirs.copy(&["--service", "feed"]);
    assert_eq!(again, "feed: 1236 records: 0 copied, 1236 already there; checked; TO has 1 more\n");
    // a service starts on it
    let store = url(dirs.to.join("feed.db"));
    let mut feed =
        Process::start(&["feed", "--addr", "127.0.0.1:0", "--debug-addr", "127.0.0.1:0", "--store", &store]);
    feed.wait_for_role("feed");
    feed.stop(SOON);
}

#[test]
fn one_file_is_copied_to_one_file_and_a_directory_to_a_directory() {
    let dirs = Dirs::new();
    fill(&dirs.from, 1..=3, "x");
    let one = dirs.to.with_file_name("one.db");
    let (status, out, err) = run(&["copy-store", &url(dirs.from.join("feed.db")), &url(&one)]);
    assert!(status.success() && out.starts_with("feed: 3 records: 3 copied") && one.is_file(), "{out}{err}");
    // into a directory that is there, under its usual name
    std::fs::create_dir(&dirs.to).unwrap();
    let (status, out, err) = run(&["copy-store", &url(&one), &url(&dirs.to)]);
    assert!(status.success() && out.starts_with("feed: 3 records: 3 copied"), "{out}{err}");
    assert_eq!(count(&dirs.to), 3);
}

#[test]
fn a_record_that_differs_ends_the_copy_unless_it_says_what_to_do() {
    let dirs = Dirs::new();
    fill(&dirs.from, 1..=600, "old");
    dirs.copy(&["--service", "feed"]);
    fill(&dirs.from, 601..=700, "old");
    db(&dirs.to, "feed").execute("UPDATE feeds SET content = 'newer' WHERE id = 555", []).unwrap();
    let words = dirs.refused(&["--service", "feed"]);
    for part in ["TO has another record with user_id 556, id 555", "--on-conflict", "nothing of its page"] {
        assert!(words.contains(part), "{part}: {words}");
    }
    assert!(!words.contains("newer") && !words.contains("old"), "no content is told: {words}");
    assert_eq!(count(&dirs.to), 600, "the page with that record was not written");
    let newer = || {
        let db = db(&dirs.to, "feed");
        db.query_row("SELECT content FROM feeds WHERE id = 555", [], |row| row.get::<_, String>(0)).unwrap()
    };
    assert_eq!(
        dirs.copy(&["--service", "feed", "--on-conflict", "keep"]),
        "feed: 700 records: 100 copied, 599 already there, 1 differ and were kept; checked\n"
    );
    assert_eq!((count(&dirs.to), newer().as_str()), (700, "newer"));
    assert_eq!(
        dirs.copy(&["--service", "feed", "--on-conflict", "overwrite"]),
        "feed: 700 records: 0 copied, 699 already there, 1 overwritten; checked\n"
    );
    assert_eq!(newer(), "old");
}

#[tokio::test]
async fn a_copy_that_was_killed_goes_on_when_it_is_repeated() {
    let dirs = Dirs::new();
    fill(&dirs.from, 1..=60_000, "x");
    machine(&dirs.to);
    for signal in [Signal::KILL, Signal::TERM, Signal::INT] {
        let before = count(&dirs.to);
        let mut copy = dirs.start();
        wait_for("some pages", || async { (count(&dirs.to) > before).then_some(()) }).await;
        process::signal(&copy, signal);
        let status = copy.wait().unwrap();
        let mut words = String::new();
        copy.stderr.take().unwrap().read_to_string(&mut words).unwrap();
        let there = count(&dirs.to);
        assert!(there < 60_000 && there % 250 == 0, "{signal:?} came too late, or amid a page: {there}");
        if signal != Signal::KILL {
            assert_eq!(status.code(), Some(130), "{words}");
            assert!(words.contains("stopped by a signal; repeat the command"), "{words}");
        }
    }
    let there = count(&dirs.to);
    let out = dirs.copy(&["--service", "feed"]);
    assert_eq!(
        out,
        format!("feed: 60000 records: {} copied, {there} already there; checked\n", 60_000 - there)
    );
    assert_eq!(rows(&dirs.from, "feed"), rows(&dirs.to, "feed"));
}

/// Writes feeds of user 2000 until it is dropped.
struct Writer {
    stop: std::sync::Arc<std::sync::atomic::AtomicBool>,
    task: tokio::task::JoinHandle<i64>,
}

impl Writer {
    fn start(addr: std::net::SocketAddr) -> Self {
        let stop = std::sync::Arc::<std::sync::atomic::AtomicBool>::default();
        let until = stop.clone();
        let task = tokio::spawn(async move {
            let mut id = 0;
            while !until.load(std::sync::atomic::Ordering::Relaxed) {
                id += 1;
                let feed = FeedRecord { id, user_id: 2000, content: "meanwhile".to_owned() };
                let _: OkResponse = call(addr, "/feed.Feed/CreateFeed", Request::new(feed)).await.unwrap();
            }
            id
        });
        Self { stop, task }
    }

    async fn finish(self) -> i64 {
        self.stop.store(true, std::sync::atomic::Ordering::Relaxed);
        self.task.await.unwrap()
    }
}

#[tokio::test]
async fn both_stores_may_be_in_use_while_they_are_copied() {
    let dirs = Dirs::new();
    fill(&dirs.from, 1..=20_000, "x");
    machine(&dirs.to);
    for busy in [&dirs.from, &dirs.to] {
        let store = url(busy.join("feed.db"));
        let args = ["feed", "--addr", "127.0.0.1:0", "--debug-addr", "127.0.0.1:0", "--store", &store];
        let mut feed = Process::start(&args);
        let (addr, _) = feed.wait_for_role("feed");
        let before = count(busy);
        let writer = Writer::start(addr);
        wait_for("writes", || async { (count(busy) > before + 5).then_some(()) }).await;
        let at_start = u64::try_from(count(busy)).unwrap();
        let copy = dirs.start();
        let output = tokio::task::spawn_blocking(move || copy.wait_with_output().unwrap()).await.unwrap();
        let at_end = u64::try_from(count(busy)).unwrap();
        let wrote = writer.finish().await;
        assert!(wrote > 10, "{wrote}");
        let out = String::from_utf8(output.stdout).unwrap();
        let words = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{out}\n{words}");
        assert!(out.contains("; checked"), "{out}");
        if busy == &dirs.from {
            // what was there when it began, and nothing of what came while it ran
            let copied: u64 = out.strip_prefix("feed: ").unwrap().split(' ').next().unwrap().parse().unwrap();
            assert!((at_start..at_end).contains(&copied), "{at_start}..{at_end}: {out}");
            let there = rows(&dirs.to, "feed");
            assert_eq!(there.len() as u64, copied);
            assert!(there.iter().all(|row| rows_contain(&dirs.from, row)), "a record that never was");
            // the records of both runs are the writer's
            db(&dirs.to, "feed").execute("DELETE FROM feeds WHERE user_id = 2000", []).unwrap();
            db(&dirs.from, "feed").execute("DELETE FROM feeds WHERE user_id = 2000", []).unwrap();
        }
        feed.stop(SOON);
    }
}

fn rows_contain(dir: &Path, row: &[String]) -> bool {
    // the order of the columns is user_id, id, content
    let key: Vec<i64> = row[..2]
        .iter()
        .map(|value| value.trim_start_matches("Integer(").trim_end_matches(')').parse().unwrap())
        .collect();
    db(dir, "feed")
        .query_row("SELECT 1 FROM feeds WHERE user_id = ? AND id = ?", params![key[0], key[1]], |_| Ok(()))
        .is_ok()
}

/// Returns the most memory that a process had so far, bytes.
fn peak(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let kib = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    kib.trim().trim_end_matches(" kB").parse::<u64>().ok().map(|kib| kib * 1024)
}

#[test]
fn a_hundred_thousand_records_take_seconds() {
    let dirs = Dirs::new();
    fill(&dirs.from, 1..=100_000, &"x".repeat(100));
    let begun = Instant::now();
    let out = dirs.copy(&["--service", "feed"]);
    let took = begun.elapsed();
    assert!(out.starts_with("feed: 100000 records: 100000 copied"), "{out}");
    assert!(took < Duration::from_secs(30), "{took:?}");
    println!("100,000 records in {took:?}");
}

/// Waits for the end of a copy, which must succeed with little memory.
pub fn succeeds_with_little_memory(copy: &mut Child) {
    const MIB: u64 = 1 << 20;
    let mut most = 0;
    let status = loop {
        most = peak(copy.id()).unwrap_or(0).max(most);
        if let Some(status) = copy.try_wait().unwrap() {
            break status;
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    assert!(status.success(), "{status}");
    assert!((10 * MIB..100 * MIB).contains(&most), "{} MiB", most / MIB);
    println!("{} MiB", most / MIB);
}

#[test]
fn the_memory_does_not_grow_with_the_records() {
    let dirs = Dirs::new();
    // the largest contents: 128 MiB in all
    fill(&dirs.from, 1..=4096, &"x".repeat(32 << 10));
    succeeds_with_little_memory(&mut dirs.start());
    assert_eq!(count(&dirs.to), 4096);
}

#[test]
fn progress_goes_to_standard_error() {
    let dirs = Dirs::new();
    fill(&dirs.from, 1..=30_000, "x");
    // the lock of another program keeps the first page waiting for more than a second
    machine(&dirs.to);
    let other = db(&dirs.to, "feed");
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let copy = dirs.start();
    std::thread::sleep(Duration::from_millis(1500));
    other.execute_batch("COMMIT").unwrap();
    let output = copy.wait_with_output().unwrap();
    let words = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{words}");
    let first = words.lines().next().unwrap_or_default();
    assert_eq!(first, "feed: read 250 of 30000 records, copied 250", "{words}");
}

#[test]
fn what_cannot_be_copied_is_refused_with_the_store_and_the_reason() {
    let dirs = Dirs::new();
    fill(&dirs.from, 1..=3, "x");
    let (feed, topic) = (url(dirs.from.join("feed.db")), url(dirs.from.join("topic.db")));
    let there = dirs.to.with_file_name("there");
    std::fs::create_dir(&there).unwrap();
    let foreign = there.join("foreign.db");
    Connection::open(&foreign).unwrap().execute_batch("CREATE TABLE notes (text)").unwrap();
    let text = there.join("text.db");
    std::fs::write(&text, "no database at all").unwrap();
    let newer = there.join("newer.db");
    std::fs::copy(dirs.from.join("feed.db"), &newer).unwrap();
    Connection::open(&newer).unwrap().pragma_update(None, "user_version", 99).unwrap();
    let empty = there.join("empty.db");
    std::fs::write(&empty, "").unwrap();
    let target = url(there.join("target.db"));
    for (args, store, reason) in [
        (vec![url("/no/such.db"), target.clone()], "FROM: store /no/such.db", "No such file"),
        (
            vec![url(&there), target.clone()],
            "FROM: store",
            "has none of the files feed.db, profile.db and topic.db",
        ),
        (vec![url(&foreign), target.clone()], "FROM: store", "is not a file of this program"),
        (vec![url(&text), target.clone()], "FROM: store", "not a database"),
        (vec![url(&newer), target.clone()], "FROM: store", "version 99"),
        (vec![url(&empty), target.clone()], "FROM: store", "has no records"),
        (
            vec![feed.clone(), target.clone(), "--service".to_owned(), "topic".to_owned()],
            "FROM: store",
            "is a file of feed, not of topic",
        ),
        (vec![feed.clone(), topic.clone()], "TO: store", "is not this service's file"),
        (vec![feed.clone(), feed.clone()], "TO: store", "is also the source"),
        (vec![feed.clone(), url(&dirs.from)], "TO: store", "is also the source"),
        (vec![url(&dirs.from), feed.clone()], "TO: store", "no directory"),
        (vec![feed.clone(), url("/no/such/dir.db")], "TO: store /no/such/dir.db", ""),
    ] {
        let args: Vec<&str> = std::iter::once("copy-store").chain(args.iter().map(String::as_str)).collect();
        let (status, out, err) = run(&args);
        assert_eq!((status.code(), out.as_str()), (Some(1), ""), "{args:?}: {err}");
        assert!(err.contains(store) && err.contains(reason), "{args:?}: {err}");
        assert!(!there.join("target.db").exists(), "{args:?} made the target");
    }
    for args in [&[feed.as_str()][..], &[&feed, "memory:"], &[&feed, &target, "--on-conflict", "merge"]] {
        let args: Vec<&str> = [&["copy-store"], args].concat();
        assert_eq!(run(&args).0.code(), Some(2), "{args:?}");
    }
}

#[test]
fn a_record_that_the_target_refuses_is_named_and_nothing_of_its_page_is_written() {
    let dirs = Dirs::new();
    dirs.copy(&[]);
    fill(&dirs.from, 1..=600, "x");
    let trap =
        "CREATE TRIGGER trap BEFORE INSERT ON feeds WHEN NEW.id = 300 BEGIN SELECT RAISE(ABORT, 'no'); END";
    db(&dirs.to, "feed").execute_batch(trap).unwrap();
    let words = dirs.refused(&["--service", "feed"]);
    assert!(words.contains("TO: store: no: user_id 301, id 300"), "{words}");
    assert_eq!(count(&dirs.to), 250, "the page before");
}

#[test]
fn a_record_that_cannot_be_read_is_named() {
    let dirs = Dirs::new();
    fill(&dirs.from, 1..=600, "x");
    let damage = "UPDATE feeds SET content = CAST(x'ff' AS TEXT) WHERE id = 300";
    db(&dirs.from, "feed").execute_batch(damage).unwrap();
    let words = dirs.refused(&["--service", "feed"]);
    assert!(words.contains("FROM: store: ") && words.contains(": user_id 301, id 300"), "{words}");
    assert!(words.contains("UTF-8") || words.contains("utf-8"), "{words}");
}
