//! The rows that measure a store in a file: what group commits gain and cost, and that reads do not depend on how much
//! there is.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use microservice_app::api::proto::feed::FeedRecord;
use microservice_app::config::Store;
use microservice_app::store::metrics::Metrics;
use microservice_app::store::{self, FeedStore};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use rusqlite::{Connection, params};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{Findings, rounds, rows};
use crate::kit::ab;
use crate::kit::etcd::Etcd;
use crate::kit::http::{self, get, request};
use crate::kit::system::Role;

/// Callers of the comparisons under load.
const CALLERS: i64 = 64;
const CONTENT: usize = 55;
/// Feeds of each user in the files of P23, but for the first user, who has half of all.
const EACH: i64 = 100;
/// Feeds in the small file of P23, and in the large one at full length and in the short form.
const FEW: i64 = 10_000;
const MANY: i64 = 10_000_000;
const SHORT: i64 = 200_000;

rows! { "store"
    "P20" p20_group_commits_against_single_rows group_commits 60 4 "SQLite: 64 writers in group commits against a commit for each row";
    "P21" p21_creates_in_sqlite_against_memory against_memory 60 4 "creates of 64 callers in SQLite against in memory";
    "P22" p22_a_lone_writer lone_writer 60 4 "SQLite: a lone writer in group commits against a commit for each row";
    "P23" p23_reads_of_many_feeds_against_few many_feeds 60 4 "SQLite: get_feeds of 20 among 10 million feeds against 10 thousand";
}

type Request = ::http::Request<http_body_util::Full<bytes::Bytes>>;

/// A directory on the disk of the build; that of other tests may be in memory, where a sync costs nothing.
fn on_disk() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory")
}

/// Opens our store over a file, as the program does.
async fn ours(file: &Path) -> Arc<dyn FeedStore> {
    let url = format!("sqlite:{}", file.display()).parse().expect("a URL");
    let metrics = Metrics::register(&prometheus::Registry::new()).expect("its names are free");
    store::feed(&Store { url, ..Store::default() }, &metrics).await.expect("a store")
}

fn content() -> String {
    "x".repeat(CONTENT)
}

/// A store without group commits: every row is a transaction of its own. It is as durable as ours, has the same statement
/// and looks after its files as often.
struct SingleRows(mpsc::Sender<(FeedRecord, oneshot::Sender<()>)>);

impl SingleRows {
    fn open(path: &Path) -> Self {
        let db = Connection::open(path).expect("a database");
        let set = "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; CREATE TABLE feeds (
            user_id INTEGER NOT NULL, id INTEGER NOT NULL, content TEXT NOT NULL,
            PRIMARY KEY (user_id, id)) WITHOUT ROWID, STRICT";
        db.execute_batch(set).expect("a table");
        let files = ["", "-wal", "-shm"].map(|suffix| PathBuf::from(format!("{}{suffix}", path.display())));
        let check = move || assert!(files.iter().all(|file| file.metadata().is_ok()), "the files are there");
        let (send, mut queue) = mpsc::channel::<(FeedRecord, oneshot::Sender<()>)>(1024);
        std::thread::spawn(move || {
            let insert = "INSERT INTO feeds (user_id, id, content) VALUES (?1, ?2, ?3)
                ON CONFLICT (user_id, id) DO UPDATE SET content = excluded.content";
            while let Some((feed, done)) = queue.blocking_recv() {
                check();
                db.execute_batch("BEGIN IMMEDIATE").expect("nobody else writes");
                let mut statement = db.prepare_cached(insert).expect("valid");
                statement.execute(params![feed.user_id, feed.id, feed.content]).expect("it is written");
                db.execute_batch("COMMIT").expect("it is written");
                check();
                let _ = done.send(());
            }
        });
        Self(send)
    }

    async fn create(&self, feed: FeedRecord) {
        let (done, wait) = oneshot::channel();
        assert!(self.0.send((feed, done)).await.is_ok(), "the thread runs");
        wait.await.expect("it is written");
    }
}

/// Both stores, over files of their own.
struct Bench {
    ours: Arc<dyn FeedStore>,
    single: SingleRows,
    ids: Cell<i64>,
    _dir: tempfile::TempDir,
}

impl Bench {
    async fn new() -> Self {
        let dir = on_disk();
        let ours = ours(&dir.path().join("ours.db")).await;
        let single = SingleRows::open(&dir.path().join("single.db"));
        Self { ours, single, ids: Cell::new(0), _dir: dir }
    }

    /// Returns a new record.
    fn next(&self, user_id: i64) -> FeedRecord {
        let id = self.ids.get() + 1;
        self.ids.set(id);
        FeedRecord { id, user_id, content: content() }
    }

    /// Writes a record to ours.
    async fn create(&self, feed: FeedRecord) {
        let deadline = std::time::Instant::now() + Duration::from_mins(1);
        self.ours.create(feed, deadline).await.expect("it is written");
    }

    /// Writes new records for `time`, `callers` at the same time; returns how many a second.
    async fn rate(&self, callers: i64, time: Duration, create: impl AsyncFn(FeedRecord)) -> f64 {
        let begun = Instant::now();
        let caller = async |user_id: i64| {
            let mut writes = 0;
            while begun.elapsed() < time {
                create(self.next(user_id)).await;
                writes += 1;
            }
            writes
        };
        let writes: i32 = futures_util::future::join_all((1..=callers).map(caller)).await.into_iter().sum();
        f64::from(writes) / begun.elapsed().as_secs_f64()
    }
}

async fn group_commits(time: Duration) -> Findings {
    let (mut findings, bench) = (Findings::default(), Bench::new().await);
    let rounds = rounds(time, 2);
    let each = time / (2 * rounds);
    let rates = [Cell::new(0.0), Cell::new(0.0)];
    let single = async || {
        rates[0].set(bench.rate(CALLERS, each, async |feed| bench.single.create(feed).await).await);
        rates[0].get()
    };
    let ours = async || {
        rates[1].set(bench.rate(CALLERS, each, async |feed| bench.create(feed).await).await);
        rates[1].get()
    };
    let compared = ab::compare(rounds as usize, single, ours).await;
    let [single, ours] = rates.each_ref().map(Cell::get);
    findings.tell("a commit for each row, last round", single, "/s");
    findings.tell("group commits, last round", ours, "/s");
    findings.share("group commits", ours, 1.0);
    findings.compared_at_least("group commits / a commit for each row", &compared, 5.0);
    findings
}

async fn lone_writer(time: Duration) -> Findings {
    let (mut findings, bench) = (Findings::default(), Bench::new().await);
    let rounds = rounds(time, 2);
    let work = async |ours: bool| {
        let (feed, begun) = (bench.next(1), Instant::now());
        if ours {
            bench.create(feed).await;
        } else {
            bench.single.create(feed).await;
        }
        begun.elapsed().as_secs_f64()
    };
    // ours is the base: the ratio of the times is that of the rates the other way round
    let compared = ab::in_turn(rounds, time / rounds, async || work(true).await, async || work(false).await);
    let (compared, [ours, single]) = compared.await;
    findings.tell("a commit for each row, median of the last round", single * 1e3, "ms");
    findings.tell("ours, median of the last round", ours * 1e3, "ms");
    findings.share("rounds", compared.ratios.len() as f64, 1.0);
    findings.compared_at_least("rate of ours / a commit for each row", &compared, 0.98);
    findings
}

/// A feed service and a gateway of its own.
pub(super) struct System {
    _etcd: Etcd,
    _feed: Role,
    pub(super) gateway: Role,
    next: Cell<i64>,
}

impl System {
    pub(super) async fn start(store: &str) -> Self {
        let etcd = Etcd::start().await;
        let endpoint = etcd.addr.to_string();
        let feed = Role::start(&endpoint, "feed", "127.0.0.1:0", &[("MSA__STORE__URL", store)]);
        let gateway = Role::gateway(&endpoint);
        gateway.wait_for_certain("feed", 1).await;
        Self { _etcd: etcd, _feed: feed, gateway, next: Cell::new(0) }
    }

    /// Calls for `time` from [`CALLERS`] connections; returns the answers a second. Each caller makes its requests
    /// from numbers that no other has.
    pub(super) async fn rate(&self, time: Duration, call: fn(&mut StdRng, i64) -> Request) -> f64 {
        let (begun, addr, first) = (Instant::now(), self.gateway.addr, self.next.get());
        let mut callers = JoinSet::new();
        for caller in 0..CALLERS {
            callers.spawn(async move {
                let mut random = StdRng::seed_from_u64(caller.unsigned_abs());
                let mut connection = http::Connection::open(addr).await.expect("it listens");
                let mut calls = 0;
                while begun.elapsed() < time {
                    let answer = connection.send(call(&mut random, first + calls * CALLERS + caller)).await;
                    let answer = answer.expect("an answer");
                    assert_eq!((answer.status.as_u16(), answer.degraded()), (200, ""), "{answer:?}");
                    calls += 1;
                }
                calls
            });
        }
        let calls = callers.join_all().await;
        self.next.set(first + calls.iter().max().copied().unwrap_or(0) * CALLERS);
        calls.into_iter().sum::<i64>() as f64 / begun.elapsed().as_secs_f64()
    }
}

async fn against_memory(time: Duration) -> Findings {
    let (mut findings, dir) = (Findings::default(), on_disk());
    let store = format!("sqlite:{}", dir.path().join("feed.db").display());
    let (memory, sqlite) = (System::start("memory:").await, System::start(&store).await);
    let create = |_: &mut StdRng, number: i64| {
        let body =
            format!(r#"{{"id":{},"user_id":{},"content":"{}"}}"#, number + 1, number % 1000 + 1, content());
        request("PUT", "/api/feed/create_feed", &body)
    };
    let rounds = rounds(time, 2);
    let each = time / (2 * rounds);
    let rates = [Cell::new(0.0), Cell::new(0.0)];
    let measure = async |system: &System, rate: &Cell<f64>| {
        rate.set(system.rate(each, create).await);
        rate.get()
    };
    let compared = ab::compare(
        rounds as usize,
        async || measure(&memory, &rates[0]).await,
        async || measure(&sqlite, &rates[1]).await,
    );
    let compared = compared.await;
    let [in_memory, in_sqlite] = rates.map(Cell::into_inner);
    findings.tell("in memory, last round", in_memory, "/s");
    findings.tell("in SQLite, last round", in_sqlite, "/s");
    findings.share("creates", in_sqlite, 1.0);
    findings.compared_at_least("SQLite / memory", &compared, 0.3);
    findings
}

/// Makes a file of the store as the program does, then fills it at once. Returns its URL.
async fn filled(path: &Path, feeds: i64) -> String {
    drop(ours(path).await);
    let db = Connection::open(path).expect("a database");
    db.busy_timeout(Duration::from_secs(5)).expect("a time");
    let fill = "PRAGMA synchronous = OFF; BEGIN IMMEDIATE;
        INSERT INTO feeds WITH RECURSIVE n(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM n WHERE n + 1 < HALF)
            SELECT 1, n + 1, 'CONTENT' FROM n;
        INSERT INTO feeds WITH RECURSIVE n(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM n WHERE n + 1 < HALF)
            SELECT 2 + n / EACH, n % EACH + 1, 'CONTENT' FROM n;
        COMMIT; PRAGMA wal_checkpoint(TRUNCATE)";
    let fill = fill.replace("HALF", &(feeds / 2).to_string()).replace("EACH", &EACH.to_string());
    db.execute_batch(&fill.replace("CONTENT", &content())).expect("room on the disk");
    let count: i64 = db.query_row("SELECT count(*) FROM feeds", [], |row| row.get(0)).expect("a count");
    assert_eq!(count, feeds);
    format!("sqlite:{}", path.display())
}

/// Every second call is about the user who has half of all feeds, somewhere among them.
fn read_of<const FEEDS: i64>(random: &mut StdRng, _: i64) -> Request {
    let path = if random.random() {
        format!("/api/feed/get_feeds?user_id=1&size=20&before={}", random.random_range(21..=FEEDS / 2))
    } else {
        let user = random.random_range(2..2 + FEEDS / 2 / EACH);
        format!("/api/feed/get_feeds?user_id={user}&size=20")
    };
    request("GET", &path, "")
}

async fn many_feeds(time: Duration) -> Findings {
    let (mut findings, dir) = (Findings::default(), on_disk());
    // the short form has fewer, which takes a second to make
    let whole = rounds(time, 2) > 2;
    let (feeds, read): (_, fn(&mut StdRng, i64) -> Request) =
        if whole { (MANY, read_of::<MANY>) } else { (SHORT, read_of::<SHORT>) };
    let few = System::start(&filled(&dir.path().join("few.db"), FEW).await).await;
    let many = System::start(&filled(&dir.path().join("many.db"), feeds).await).await;
    let page = get(many.gateway.addr, "/api/feed/get_feeds?user_id=1&size=20").await.json();
    findings.share("feeds on a page", page["feeds"].as_array().map_or(0, Vec::len) as f64, 20.0);
    let rounds = rounds(time, 2);
    let each = time / (2 * rounds);
    let (rates, seconds) = ([Cell::new(0.0), Cell::new(0.0)], |rate: &Cell<f64>| 1.0 / rate.get());
    let compared = ab::compare(
        rounds as usize,
        async || {
            rates[0].set(few.rate(each, read_of::<FEW>).await);
            seconds(&rates[0])
        },
        async || {
            rates[1].set(many.rate(each, read).await);
            seconds(&rates[1])
        },
    );
    let compared = compared.await;
    findings.tell("feeds in the large file", feeds as f64, "");
    findings.tell("reads in the small file, last round", rates[0].get(), "/s");
    findings.tell("reads in the large file, last round", rates[1].get(), "/s");
    findings.compared_at_most("time of a read, large / small file", &compared, 1.2);
    findings
}
