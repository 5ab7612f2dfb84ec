//! What durability costs: writes a second of one writer and of 64 writers, with SQLite and with PostgreSQL, without a
//! standby and with one. Each mode is measured in every round.
//!
//! The standby is on the same machine and the same disk: a network between them adds a round trip to each commit that
//! waits for it, and a disk of its own takes load off.

use std::net::SocketAddr;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use microservice_app::api::proto::feed::FeedRecord;
use microservice_app::config::Store;
use microservice_app::store::{self, FeedStore, metrics::Metrics};
use tokio_postgres::Client;

use crate::kit::ab::median;
use crate::kit::cpu::Others;
use crate::kit::postgres::{Postgres, connect, kill_all, program};
use crate::kit::{free_addr, wait_for, wait_long_for};

const WRITERS: i64 = 64;
const SETTINGS: [&str; 3] = ["max_connections = 100", "shared_buffers = 256MB", "max_wal_size = 8GB"];

/// One line of the table: its name, `synchronous_commit`, and whether commits wait for the standby.
const MODES: [(&str, &str, bool); 6] = [
    ("off", "off", false),
    ("on, standby asynchronous", "on", false),
    ("local, standby synchronous", "local", true),
    ("remote_write, standby synchronous", "remote_write", true),
    ("on, standby synchronous", "on", true),
    ("remote_apply, standby synchronous", "remote_apply", true),
];

/// A standby of a server. Killed when dropped.
struct Standby(Child);

impl Standby {
    /// Copies a server, starts it and waits until it follows.
    async fn start(primary: &Postgres, admin: &Client) -> Self {
        // in the directory of the primary, which belongs to the right user
        let (data, addr) = (primary.data().with_file_name("standby"), free_addr());
        let directory = data.parent().expect("its directory");
        let mut copy = program("pg_basebackup", directory);
        copy.args(["-h", "127.0.0.1", "-p", &primary.addr.port().to_string(), "-U", "postgres", "-R"]);
        let copied = copy.args(["-X", "stream", "-c", "fast", "-D"]).arg(&data).output().expect("it runs");
        assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
        let mut server = program("postgres", directory);
        server.arg("-D").arg(&data).args(["-c", &format!("port={}", addr.port())]);
        server.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let standby = Self(server.spawn().expect("it runs"));
        wait_long_for("the standby follows", || async {
            let question = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'";
            (admin.query_one(question, &[]).await.ok()?.get::<_, i64>(0) == 1).then_some(())
        })
        .await;
        standby
    }
}

impl Drop for Standby {
    fn drop(&mut self) {
        kill_all(&mut self.0);
    }
}

async fn open(url: &str) -> Arc<dyn FeedStore> {
    let settings = Store { url: url.parse().expect("a URL"), ..Store::default() };
    let metrics = Metrics::register(&prometheus::Registry::new()).expect("metrics");
    let store = store::feed(&settings, &metrics).await.expect("a store");
    wait_for("it is connected", || async { store.warnings().is_empty().then_some(()) }).await;
    store
}

/// Returns writes a second of so many writers.
async fn write(store: &dyn FeedStore, writers: i64, time: Duration) -> f64 {
    let begun = Instant::now();
    let each = (0..writers).map(async |user_id| {
        let mut id = 0;
        while begun.elapsed() < time {
            id += 1;
            let feed = FeedRecord { user_id, id, content: format!("{id:0100}") };
            store.create(feed, Instant::now() + Duration::from_secs(10)).await.expect("a write");
        }
        id
    });
    let all: i64 = join_all(each).await.into_iter().sum();
    all as f64 / begun.elapsed().as_secs_f64()
}

/// Returns commits a second of one connection, a row in each.
async fn single(addr: SocketAddr, time: Duration) -> f64 {
    let client = connect(addr, "app", "msa").await.expect("a connection");
    let statement = "INSERT INTO feed.feeds (user_id, id, content) VALUES (-1, $1, $2) \
                     ON CONFLICT (user_id, id) DO UPDATE SET content = excluded.content";
    let statement = client.prepare(statement).await.expect("a statement");
    let (begun, mut id) = (Instant::now(), 0_i64);
    while begun.elapsed() < time {
        id += 1;
        client.execute(&statement, &[&id, &format!("{id:0100}")]).await.expect("a write");
    }
    id as f64 / begun.elapsed().as_secs_f64()
}

/// Sets how durable a commit is, and waits until that holds.
async fn set(admin: &Client, commit: &str, wait: bool) {
    let names = if wait { "*" } else { "" };
    admin.batch_execute(&format!("ALTER SYSTEM SET synchronous_commit = {commit}")).await.expect("a setting");
    let names = format!("ALTER SYSTEM SET synchronous_standby_names = '{names}'");
    admin.batch_execute(&names).await.expect("a setting");
    admin.batch_execute("SELECT pg_reload_conf()").await.expect("it reads its settings");
    wait_long_for("the standby has its part", || async {
        let question = "SELECT current_setting('synchronous_commit'), sync_state FROM pg_stat_replication";
        let row = admin.query_opt(question, &[]).await.ok()??;
        let state = row.get::<_, String>(1);
        (row.get::<_, String>(0) == commit && (state == "sync") == wait).then_some(())
    })
    .await;
}

/// `PERF_ROUNDS` and `PERF_SECONDS` (of one measurement) may be set.
#[tokio::test]
#[ignore = "takes minutes: cargo test --release --test it durability_costs -- --ignored --nocapture"]
async fn what_durability_costs() {
    let number = |name: &str, or: f64| std::env::var(name).map_or(or, |n| n.parse().expect("a number"));
    let (rounds, time) = (number("PERF_ROUNDS", 10.0), Duration::from_secs_f64(number("PERF_SECONDS", 1.0)));
    let (server, alone) = (Postgres::start_with(&SETTINGS).await, Postgres::start_with(&SETTINGS).await);
    let dir = tempfile::tempdir().expect("a directory");
    let file = open(&format!("sqlite:{}/feed.db", dir.path().display())).await;
    let (store, lonely) = (open(&server.url()).await, open(&alone.url()).await);
    let admin = server.admin().await;
    let _standby = Standby::start(&server, &admin).await;
    let others = Others::watch();
    // name, writes a second of one writer, of 64
    let mut table: Vec<(&str, Vec<f64>, Vec<f64>)> = Vec::new();
    let mut note = |name: &'static str, one: f64, many: f64| match table.iter_mut().find(|row| row.0 == name)
    {
        Some(row) => {
            row.1.push(one);
            row.2.push(many);
        }
        None => table.push((name, vec![one], vec![many])),
    };
    for _ in 0..rounds as u32 {
        note("SQLite", write(file.as_ref(), 1, time).await, write(file.as_ref(), WRITERS, time).await);
        let one = single(alone.addr, time).await;
        note("PostgreSQL, on, no standby", one, write(lonely.as_ref(), WRITERS, time).await);
        for (name, commit, wait) in MODES {
            set(&admin, commit, wait).await;
            let one = single(server.addr, time).await;
            // the store does not run with `off`: it sets `on`
            let many = if commit == "off" { f64::NAN } else { write(store.as_ref(), WRITERS, time).await };
            note(name, one, many);
        }
    }
    let base = table.iter().position(|row| row.0 == "PostgreSQL, on, no standby").expect("it was measured");
    let (one, many) = (table[base].1.clone(), table[base].2.clone());
    let ratio =
        |of: &[f64], base: &[f64]| median(&mut of.iter().zip(base).map(|(a, b)| a / b).collect::<Vec<_>>());
    println!("{:<36} {:>9} {:>6} {:>9} {:>6}", "", "1 writer", "ratio", "64", "ratio");
    for (name, of_one, of_many) in &table {
        println!(
            "{name:<36} {:>9.0} {:>6.2} {:>9.0} {:>6.2}",
            median(&mut of_one.clone()),
            ratio(of_one, &one),
            median(&mut of_many.clone()),
            ratio(of_many, &many)
        );
    }
    println!(
        "{rounds} rounds of {time:?}; other processes took {:.0} % of the cores",
        others.share() * 100.0
    );
}
