//! Cost against records: reads and writes of a store, its memory and its file. Each count has a process of its own.

use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use microservice_app::api::proto::feed::FeedRecord;
use microservice_app::config::Store;
use microservice_app::store::{self, FeedStore};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde::{Deserialize, Serialize};

use super::super::plot::Panel;
use super::super::process::{memory, this};
use super::super::stack::{CONTENT, FEEDS};

const COUNTS: [usize; 5] = [1_000, 10_000, 100_000, 1_000_000, 10_000_000];
const STORES: [&str; 2] = ["memory", "sqlite"];
/// Writes at the same time while a store is filled.
const TOGETHER: usize = 2000;
const TIME: Duration = Duration::from_secs(1);
const SOON: Duration = Duration::from_mins(1);

/// What a store of so many feeds needs.
#[derive(Debug, Serialize, Deserialize)]
struct Found {
    /// A read of a user's newest feeds, and a write, one at a time, microseconds.
    read: f64,
    write: f64,
    /// Resident memory of the process beyond what it had before, and the file, bytes a feed.
    memory: f64,
    file: f64,
    /// Feeds a second while it was filled.
    filled: f64,
}

pub fn run() -> Vec<Panel> {
    let mut reads = Vec::new();
    let (mut writes, mut bytes) = (Vec::new(), Vec::new());
    for store in STORES {
        let (mut read, mut write, mut size) = (Vec::new(), Vec::new(), Vec::new());
        for count in COUNTS {
            let mut command: Command = this();
            let output = command.args(["rows", store, &count.to_string()]).output().expect("this program");
            let found: Found = serde_json::from_slice(&output.stdout).expect("what was found");
            println!("  {store}, {count} feeds: {found:.1?}");
            let count = count as f64;
            read.push((count, found.read));
            write.push((count, found.write));
            size.push((count, if store == "memory" { found.memory } else { found.file }));
        }
        reads.push((store, read));
        writes.push((store, write));
        bytes.push((store, size));
    }
    vec![
        Panel::new("Read of 20 feeds, us", "feeds", reads),
        Panel::new("Write of a feed by one writer, us", "feeds", writes),
        Panel::new("Bytes a feed: of memory, of the file", "feeds", bytes),
    ]
}

/// The process: `rows memory|sqlite COUNT`.
pub fn child(arguments: &[String]) -> ExitCode {
    let [name, count] = arguments else { panic!("rows memory|sqlite COUNT") };
    let count: usize = count.parse().expect("a number");
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("feed.db");
    let url = if name == "memory" { "memory:".to_owned() } else { format!("sqlite:{}", file.display()) };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let found = runtime.block_on(async {
        let settings = Store { url: url.parse().expect("a URL"), ..Store::default() };
        let metrics = store::metrics::Metrics::register(&prometheus::Registry::new()).expect("metrics");
        let store = store::feed(&settings, &metrics).await.expect("a store");
        let (before, begun) = (memory(std::process::id()), Instant::now());
        for first in (0..count).step_by(TOGETHER) {
            let together = first..(first + TOGETHER).min(count);
            join_all(together.map(|number| store.create(feed(number), Instant::now() + SOON)))
                .await
                .into_iter()
                .for_each(|written| written.expect("a write"));
        }
        let filled = count as f64 / begun.elapsed().as_secs_f64();
        let held = (memory(std::process::id()) - before) * 1e6 / count as f64;
        let size =
            |suffix: &str| std::fs::metadata(format!("{}{suffix}", file.display())).map_or(0, |it| it.len());
        let file = (size("") + size("-wal")) as f64 / count as f64;
        let (read, write) = (read(&store, count).await, write(&store, count).await);
        Found { read, write, memory: held, file, filled }
    });
    println!("{}", serde_json::to_string(&found).expect("JSON"));
    ExitCode::SUCCESS
}

fn feed(number: usize) -> FeedRecord {
    let (user_id, id) = ((number / FEEDS) as i64 + 1, (number % FEEDS) as i64 + 1);
    FeedRecord { id, user_id, content: "x".repeat(CONTENT) }
}

async fn read(store: &Arc<dyn FeedStore>, count: usize) -> f64 {
    let (mut random, begun, mut reads) = (StdRng::seed_from_u64(1), Instant::now(), 0_u32);
    while begun.elapsed() < TIME {
        let user = feed(random.random_range(0..count)).user_id;
        let page = store.newest(user, FEEDS as u32, 0).await.expect("a read");
        assert!(page.is_some(), "user {user} has no feeds");
        reads += 1;
    }
    begun.elapsed().as_secs_f64() / f64::from(reads) * 1e6
}

async fn write(store: &Arc<dyn FeedStore>, count: usize) -> f64 {
    let (mut random, begun, mut writes) = (StdRng::seed_from_u64(2), Instant::now(), 0_u32);
    while begun.elapsed() < TIME {
        let feed = feed(random.random_range(0..count));
        store.create(feed, Instant::now() + SOON).await.expect("a write");
        writes += 1;
    }
    begun.elapsed().as_secs_f64() / f64::from(writes) * 1e6
}
