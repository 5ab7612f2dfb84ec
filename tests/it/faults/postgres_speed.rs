//! What a shared database costs, and what group commit gives: ratios of two sides that are measured in turn.
//!
//! The stores of P30 and P32 run in the process of the test, and so do the clients that they are compared with. The
//! server is on the same machine and disk.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use http_body_util::Full;
use microservice_app::api::proto::feed::{FeedRecord, OkResponse};
use microservice_app::config::Store;
use microservice_app::store::{self, FeedStore, metrics::Metrics};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_postgres::{Client, Statement};
use tonic::Request;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;

use super::store_speed::System;
use super::{Findings, SECOND, rounds, rows};
use crate::kit::grpc::channel;
use crate::kit::http::{get, request};
use crate::kit::postgres::{Postgres, connect};
use crate::kit::process::Process;
use crate::kit::{ab, metrics, wait_for};

rows! { "store"
    "P30" p30_group_commit_against_single_rows group_commit 60 3 "64 writers on PostgreSQL: group commits against single rows";
    "P31" p31_postgresql_against_memory against_memory 60 3 "64 creates in flight: PostgreSQL against memory";
    "P32" p32_a_lone_writer lone_writer 60 3 "a lone writer on PostgreSQL: group commits against one write after the other";
    "P33" p33_reads_of_many_rows many_rows 90 6 "get_feeds of 20 on PostgreSQL: 10 million rows against 10 thousand";
}

/// Writers that write again as soon as they are answered.
const WRITERS: usize = 64;
/// Connections of the clients that write single rows. 1 is pipelined by all writers.
const POOLS: [usize; 4] = [1, 8, 32, WRITERS];
/// Of a server that is measured: no checkpoint and no want of memory in the midst of it.
const SETTINGS: [&str; 3] = ["max_connections = 150", "shared_buffers = 256MB", "max_wal_size = 8GB"];
/// A service without group commit would write each record so.
const SINGLE: &str = "INSERT INTO feed.feeds (user_id, id, content) VALUES ($1, $2, $3) \
                      ON CONFLICT (user_id, id) DO UPDATE SET content = excluded.content";
/// Users whose feeds are written or read.
const USERS: i64 = 1000;

/// Opens the store of the feed service.
async fn open(url: &str) -> Arc<dyn FeedStore> {
    open_with(url, &prometheus::Registry::new()).await
}

/// Opens the store of the feed service, its metrics in a registry.
async fn open_with(url: &str, registry: &prometheus::Registry) -> Arc<dyn FeedStore> {
    let settings = Store { url: url.parse().expect("a URL"), ..Store::default() };
    let metrics = Metrics::register(registry).expect("metrics");
    let store = store::feed(&settings, &metrics).await.expect("a store");
    wait_for("it is connected", || async { store.warnings().is_empty().then_some(()) }).await;
    store
}

/// Returns the next record that nobody has written yet.
fn record(next: &Cell<i64>) -> FeedRecord {
    let id = next.get();
    next.set(id + 1);
    FeedRecord { user_id: id % USERS + 1, id, content: format!("{id:0100}") }
}

/// Works with so many callers at once, each again as soon as it has done; returns how often a second.
async fn rate<F: Future<Output = ()>>(callers: usize, time: Duration, work: impl Fn(usize) -> F) -> f64 {
    let begun = Instant::now();
    let until = begun + time;
    let each = (0..callers).map(async |caller| {
        let mut done = 0_u32;
        while Instant::now() < until {
            work(caller).await;
            done += 1;
        }
        done
    });
    let all: u32 = join_all(each).await.into_iter().sum();
    f64::from(all) / begun.elapsed().as_secs_f64()
}

/// Writes with a store; returns writes a second.
async fn through(store: &dyn FeedStore, writers: usize, time: Duration, next: &Cell<i64>) -> f64 {
    rate(writers, time, async |_| {
        let deadline = std::time::Instant::now() + 10 * SECOND;
        store.create(record(next), deadline).await.expect("a write");
    })
    .await
}

/// Connections that write one row in one transaction.
struct Single(Vec<(Client, Statement)>);

impl Single {
    async fn open(server: &Postgres, connections: usize) -> Self {
        let mut all = Vec::new();
        for _ in 0..connections {
            let client = connect(server.addr, "app", "msa").await.expect("a connection");
            let statement = client.prepare(SINGLE).await.expect("a statement");
            all.push((client, statement));
        }
        Self(all)
    }

    /// Writes with so many writers, who share the connections; returns writes a second.
    async fn write(&self, writers: usize, time: Duration, next: &Cell<i64>) -> f64 {
        rate(writers, time, async |writer| {
            let (client, statement) = &self.0[writer % self.0.len()];
            let FeedRecord { user_id, id, content } = record(next);
            client.execute(statement, &[&user_id, &id, &content]).await.expect("a write");
        })
        .await
    }
}

async fn group_commit(time: Duration) -> Findings {
    let (server, next, mut findings) =
        (Postgres::start_with(&SETTINGS).await, Cell::new(1), Findings::default());
    let registry = prometheus::Registry::new();
    let store = open_with(&server.url(), &registry).await;
    // the best that single rows can do here is the base
    let mut best: Option<(f64, Single)> = None;
    for connections in POOLS {
        let single = Single::open(&server, connections).await;
        single.write(WRITERS, SECOND / 4, &next).await;
        let found = single.write(WRITERS, time / 20, &next).await;
        findings.tell(&format!("single rows over {connections} connections"), found, "/s");
        if best.as_ref().is_none_or(|(rate, _)| found > *rate) {
            best = Some((found, single));
        }
    }
    let (_, single) = best.expect("one of them");
    findings.tell("base: single rows over this many connections", single.0.len() as f64, "");
    let rounds = rounds(time, 2);
    let phase = time / (2 * rounds);
    let (mut rates, mut grouped) = (Vec::new(), Vec::new());
    let compared = ab::compare(
        rounds as usize,
        async || {
            rates.push(single.write(WRITERS, phase, &next).await);
            rates[rates.len() - 1]
        },
        async || {
            grouped.push(through(store.as_ref(), WRITERS, phase, &next).await);
            grouped[grouped.len() - 1]
        },
    );
    let compared = compared.await;
    findings.tell("single rows, median", ab::median(&mut rates), "/s");
    findings.tell("group commits, median", ab::median(&mut grouped), "/s");
    let page = microservice_app::telemetry::metrics::text(&registry);
    let total = |series: &str| metrics::find(&page, series).expect("it has written");
    let mean = total("store_batch_writes_sum") / total("store_batch_writes_count");
    findings.tell("writes in a transaction, mean", mean, "");
    findings.compared_at_least("writes/s, group commits / single rows", &compared, 3.0);
    findings.count("writes that were lost", lost(&server, next.get()).await, 0);
    findings
}

/// Returns how many of the records below `next` are not in the table.
async fn lost(server: &Postgres, next: i64) -> usize {
    let there =
        server.admin().await.query_one("SELECT count(*) FROM feed.feeds", &[]).await.expect("a count");
    usize::try_from(next - 1 - there.get::<_, i64>(0)).expect("each was written once")
}

/// The write of the store for one record: a transaction of its own that begins in time or not at all.
const GUARDED: &str = "INSERT INTO feed.feeds (user_id, id, content) \
                       SELECT $1::bigint, $2::bigint, $3::text WHERE clock_timestamp() < $4::timestamptz \
                       ON CONFLICT (user_id, id) DO UPDATE SET content = excluded.content RETURNING user_id, id";
/// The settings of the store's session for writes. A time limit costs the server a timer at each statement.
const SESSION: &str = "SET statement_timeout = 500; SET lock_timeout = 100; \
                       SET idle_in_transaction_session_timeout = 4000; SET plan_cache_mode = force_generic_plan; \
                       SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off";

/// A connection without a store.
struct Bare {
    client: Client,
    guarded: Statement,
    single: Statement,
}

impl Bare {
    async fn open(server: &Postgres) -> Self {
        let client = connect(server.addr, "app", "msa").await.expect("a connection");
        client.batch_execute(SESSION).await.expect("settings");
        let (guarded, single) = (client.prepare(GUARDED).await, client.prepare(SINGLE).await);
        Self { client, guarded: guarded.expect("a statement"), single: single.expect("a statement") }
    }

    /// Writes as the store does, without a group.
    async fn write_guarded(&self, feed: FeedRecord) {
        let (FeedRecord { user_id, id, content }, limit) = (feed, 10 * SECOND);
        let until = std::time::SystemTime::now() + limit;
        let write = async { self.client.query(&self.guarded, &[&user_id, &id, &content, &until]).await };
        let rows = tokio::time::timeout(limit, write).await.expect("in time").expect("a write");
        assert_eq!(rows.len(), 1);
    }

    /// Writes with as little as possible: a write that is late is made, too.
    async fn write_single(&self, feed: FeedRecord) {
        let FeedRecord { user_id, id, content } = feed;
        self.client.execute(&self.single, &[&user_id, &id, &content]).await.expect("a write");
    }
}

/// A store without groups: a queue, and a task that makes one write after the other, so that one that has begun is
/// finished though its caller is gone, as in ours.
struct Ungrouped(mpsc::Sender<(FeedRecord, oneshot::Sender<()>)>);

impl Ungrouped {
    fn over(bare: Arc<Bare>) -> Self {
        let (send, mut queue) = mpsc::channel::<(FeedRecord, oneshot::Sender<()>)>(1024);
        tokio::spawn(async move {
            while let Some((feed, done)) = queue.recv().await {
                bare.write_guarded(feed).await;
                let _ = done.send(());
            }
        });
        Self(send)
    }

    async fn write(&self, feed: FeedRecord) {
        let (done, written) = oneshot::channel();
        self.0.try_send((feed, done)).expect("there is room");
        written.await.expect("it is written");
    }
}

async fn lone_writer(time: Duration) -> Findings {
    let (server, next, mut findings) =
        (Postgres::start_with(&SETTINGS).await, Cell::new(1), Findings::default());
    let (store, bare) = (open(&server.url()).await, Arc::new(Bare::open(&server).await));
    let ungrouped = Ungrouped::over(bare.clone());
    let stored = async || {
        let (feed, begun) = (record(&next), Instant::now());
        store.create(feed, std::time::Instant::now() + 10 * SECOND).await.expect("a write");
        begun.elapsed().as_secs_f64()
    };
    let rounds = rounds(time, 2);
    let round = time / (2 * rounds);
    ab::in_turn(1, round / 2, &stored, &stored).await;
    // the store is the base: the ratio of the times is that of the rates the other way round
    let alone = async || {
        let (feed, begun) = (record(&next), Instant::now());
        ungrouped.write(feed).await;
        begun.elapsed().as_secs_f64()
    };
    let (compared, [ours, alone]) = ab::in_turn(rounds, round, &stored, alone).await;
    findings.tell("the store, median of the last round", ours * 1e6, "us");
    findings.tell("without a group, median of the last round", alone * 1e6, "us");
    findings.compared_at_least("rate of the store / without a group", &compared, 0.98);
    let single = async || {
        let (feed, begun) = (record(&next), Instant::now());
        bare.write_single(feed).await;
        begun.elapsed().as_secs_f64()
    };
    let (compared, _) = ab::in_turn(rounds, round, &stored, single).await;
    findings.compared("rate of the store / a bare INSERT, which may be late", &compared);
    findings.count("writes that were lost", lost(&server, next.get()).await, 0);
    findings
}

/// A feed service, and a client with one connection.
struct Feed {
    _process: Process,
    grpc: Grpc<Channel>,
}

impl Feed {
    async fn start(store: &str) -> Self {
        let args = ["feed", "--addr", "127.0.0.1:0", "--debug-addr", "127.0.0.1:0"];
        let mut process = Process::start(&[&args[..], &["--store", store]].concat());
        let (addr, _) = process.wait_for_role("feed");
        Self { _process: process, grpc: Grpc::new(channel(addr).await) }
    }

    /// Creates feeds; returns how many a second.
    async fn create(&self, time: Duration, next: &Cell<i64>) -> f64 {
        rate(WRITERS, time, async |_| {
            let mut grpc = self.grpc.clone();
            grpc.ready().await.expect("a connection");
            let codec = tonic_prost::ProstCodec::<FeedRecord, OkResponse>::default();
            let path = PathAndQuery::from_static("/feed.Feed/CreateFeed");
            grpc.unary(Request::new(record(next)), path, codec).await.expect("a write");
        })
        .await
    }
}

async fn against_memory(time: Duration) -> Findings {
    let (server, mut findings) = (Postgres::start_with(&SETTINGS).await, Findings::default());
    let next = [Cell::new(1), Cell::new(1)];
    let (memory, shared) = (Feed::start("memory:").await, Feed::start(&server.url()).await);
    let rounds = rounds(time, 2);
    let phase = time / (2 * rounds);
    let (mut quick, mut durable) = (Vec::new(), Vec::new());
    for (feed, next) in [&memory, &shared].into_iter().zip(&next) {
        feed.create(phase, next).await;
    }
    let compared = ab::compare(
        rounds as usize,
        async || {
            quick.push(memory.create(phase, &next[0]).await);
            quick[quick.len() - 1]
        },
        async || {
            durable.push(shared.create(phase, &next[1]).await);
            durable[durable.len() - 1]
        },
    );
    let compared = compared.await;
    findings.tell("memory, median", ab::median(&mut quick), "/s");
    findings.tell("PostgreSQL, median", ab::median(&mut durable), "/s");
    findings.compared_at_least("creates/s, PostgreSQL / memory", &compared, 0.3);
    findings.count("writes that were lost", lost(&server, next[1].get()).await, 0);
    findings
}

/// Rows of the small table; a user has [`EACH`].
const FEW: i64 = 10_000;
/// Rows of the large table, in the full form and in the short one.
const MANY: [i64; 2] = [10_000_000, 200_000];
/// Huge pages that the large table takes in the full form: its shared memory and what belongs to it. Without them much of a
/// read's time goes into the tables of 4 KiB pages (docs/storage.md).
const HUGE_PAGES: usize = 2300;
/// Feeds of each user.
const EACH: i64 = 100;
/// Readers that ask again as soon as they are answered.
const READERS: usize = 8;

/// Makes a database with so many rows, everything of it in the server's memory; returns its URL. The rows are written in
/// the order of the ids, so that the feeds of a user are spread over the table.
async fn filled(server: &Postgres, database: &str, rows: i64) -> String {
    let create = format!("CREATE DATABASE {database} OWNER app");
    server.admin().await.batch_execute(&create).await.expect("a database");
    let url = server.url().replace("/msa", &format!("/{database}"));
    drop(open(&url).await);
    let admin = connect(server.addr, "postgres", database).await.expect("a connection");
    // the index is made at the end, which is quicker
    let fill = format!(
        "ALTER TABLE feed.feeds DROP CONSTRAINT feeds_pkey;
         INSERT INTO feed.feeds (user_id, id, content)
         SELECT g % {} + 1, g, lpad(g::text, 100, '0') FROM generate_series(1, {rows}) AS g;
         ALTER TABLE feed.feeds ADD PRIMARY KEY (user_id, id)",
        rows / EACH
    );
    admin.batch_execute(&fill).await.expect("rows");
    admin.batch_execute("VACUUM (FREEZE, ANALYZE) feed.feeds").await.expect("a vacuum");
    admin.batch_execute("CHECKPOINT; CREATE EXTENSION pg_prewarm").await.expect("PostgreSQL's own extension");
    let warm = "SELECT pg_prewarm('feed.feeds') + pg_prewarm('feed.feeds_pkey')";
    let pages: i64 = admin.query_one(warm, &[]).await.expect("it is read").get(0);
    assert!(pages * 8192 > rows * EACH, "{pages} pages of {rows} rows");
    url
}

/// Reads the newest 20 of random users; returns the time of a read, seconds. Counts answers with other feeds.
async fn read(store: &dyn FeedStore, users: i64, time: Duration, wrong: &Cell<usize>) -> f64 {
    let random = RefCell::new(StdRng::seed_from_u64(33));
    let reads = rate(READERS, time, async |_| {
        let user = random.borrow_mut().random_range(1..=users);
        let page = store.newest(user, 20, 0).await.expect("an answer").expect("a user with feeds");
        // user `u` has the ids u - 1, u - 1 + users, ...
        let own = |feed: &FeedRecord| feed.id % users + 1 == user && feed.id > (EACH - 21) * users;
        if page.feeds.len() != 20 || !page.feeds.iter().all(own) {
            wrong.set(wrong.get() + 1);
        }
    });
    1.0 / reads.await
}

/// A call about a random one of so many users, who are spread evenly over a table with so many rows.
fn newest_of<const ROWS: i64, const ASKED: i64>(random: &mut StdRng, _: i64) -> ::http::Request<Full<Bytes>> {
    let user = random.random_range(0..ASKED) * (ROWS / EACH / ASKED) + 1;
    request("GET", &format!("/api/feed/get_feeds?user_id={user}&size=20"), "")
}

/// Returns how many huge pages of 2 MiB are free on this machine.
fn huge_pages() -> usize {
    let page = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";
    std::fs::read_to_string(page).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

async fn many_rows(time: Duration) -> Findings {
    let whole = time >= 30 * SECOND;
    if whole && huge_pages() < HUGE_PAGES {
        return Findings::skipped("it needs 2300 huge pages of 2 MiB (sysctl vm.nr_hugepages=2300)");
    }
    let (many, memory) = if whole { (MANY[0], "4GB") } else { (MANY[1], "256MB") };
    let memory = format!("shared_buffers = {memory}");
    let huge_pages = if whole { "huge_pages = on" } else { "huge_pages = try" };
    let settings = [
        "fsync = off",
        "autovacuum = off",
        "max_wal_size = 8GB",
        "maintenance_work_mem = 512MB",
        huge_pages,
        &memory,
    ];
    let (server, mut findings) = (Postgres::start_with(&settings).await, Findings::default());
    let few_url = filled(&server, "small", FEW).await;
    let many_url = filled(&server, "large", many).await;
    findings.tell("rows of the large table", many as f64, "");
    let (few, large) = (System::start(&few_url).await, System::start(&many_url).await);
    let page = get(large.gateway.addr, "/api/feed/get_feeds?user_id=1&size=20").await.json();
    findings.share("feeds on a page", page["feeds"].as_array().map_or(0, Vec::len) as f64, 20.0);
    let of_all = newest_of::<FEW, { FEW / EACH }>;
    let [of_some, of_any] = if whole {
        [newest_of::<{ MANY[0] }, { FEW / EACH }>, newest_of::<{ MANY[0] }, { MANY[0] / EACH }>]
    } else {
        [newest_of::<{ MANY[1] }, { FEW / EACH }>, newest_of::<{ MANY[1] }, { MANY[1] / EACH }>]
    };
    let rounds = rounds(time, 6);
    let phase = time / (6 * rounds);
    // a process of the server maps each page of the shared memory when it first touches it: until then a read takes longer
    let warm_up = if whole { 15 * SECOND } else { phase };
    few.rate(phase, of_all).await;
    large.rate(warm_up, of_any).await;
    // the first changes nothing but the number of rows. The second asks for a thousand times as many records, too, which
    // are in no cache of the processor
    for (asked, calls, most) in [("as many users", of_some, 1.2), ("any user", of_any, 1.4)] {
        let compared = ab::compare(
            rounds as usize,
            async || 1.0 / few.rate(phase, of_all).await,
            async || 1.0 / large.rate(phase, calls).await,
        );
        let what = format!("time of get_feeds for {asked}, many rows / few rows");
        findings.compared_at_most(&what, &compared.await, most);
    }
    drop((few, large));

    // the statement alone, without the call: for the reader
    let (few, large, wrong) = (open(&few_url).await, open(&many_url).await, Cell::new(0));
    let mut times = [Vec::new(), Vec::new()];
    let [few_times, many_times] = &mut times;
    read(large.as_ref(), many / EACH, warm_up, &wrong).await;
    let compared = ab::compare(
        rounds as usize,
        async || {
            few_times.push(read(few.as_ref(), FEW / EACH, phase, &wrong).await);
            few_times[few_times.len() - 1]
        },
        async || {
            many_times.push(read(large.as_ref(), many / EACH, phase, &wrong).await);
            many_times[many_times.len() - 1]
        },
    );
    let compared = compared.await;
    let [few_times, many_times] = &mut times;
    findings.tell("the statement alone, few rows, median", ab::median(few_times) * 1e6, "us");
    findings.tell("the statement alone, many rows, median", ab::median(many_times) * 1e6, "us");
    findings.compared("time of the statement alone, many rows / few rows", &compared);
    findings.count("answers with other feeds than the newest 20", wrong.get(), 0);
    findings
}
