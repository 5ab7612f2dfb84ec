//! The rows about a store: writes whose callers have given up, in instances that share a file.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use futures_util::future::join_all;
use rusqlite::Connection;
use rustix::process::Signal;
use tokio::time::{Instant, sleep, timeout};

use super::{Findings, rows};
use crate::kit::etcd::Etcd;
use crate::kit::guarantees::{self, Write};
use crate::kit::http::{Answer, get, request, send};
use crate::kit::system::Role;
use crate::kit::wait_for;

/// Records that every step writes.
const KEYS: i64 = 40;
/// Records from this one on are not written again by the caller after a write was cancelled.
const LEFT: i64 = 21;
/// The caller's limit of writes that are to be cancelled, or the time after which the caller hangs up.
const SHORT: Duration = Duration::from_millis(300);
const LONG: Duration = Duration::from_secs(2);
const MS: Duration = Duration::from_millis(1);

rows! { "store"
    "F53" f53_cancelled_writes cancelled_writes 60 8 "writes are cancelled in a frozen instance, gateway, or behind a lock";
}

/// One of two instances over the same file, with a gateway that knows only this one.
struct Side {
    _etcd: Etcd,
    gateway: Role,
    feed: Role,
}

impl Side {
    async fn start(store: &str) -> Self {
        let etcd = Etcd::start().await;
        let endpoint = etcd.addr.to_string();
        let env = [("MSA__REGISTRY__TTL_S", "10"), ("MSA__STORE__URL", store)];
        let feed = Role::start(&endpoint, "feed", "127.0.0.1:0", &env);
        let gateway = Role::start(&endpoint, "apigateway", "127.0.0.1:0", &env[..1]);
        gateway.wait_for_certain("feed", 1).await;
        Self { _etcd: etcd, gateway, feed }
    }

    /// Writes a version of a record. Nothing is returned if the caller hangs up after `patience`.
    async fn put(&self, key: i64, version: u64, limit: Duration, patience: Duration) -> Option<Answer> {
        let body = format!(r#"{{"id":{key},"user_id":1,"content":"{version}"}}"#);
        let mut put = request("PUT", "/api/feed/create_feed", &body);
        put.headers_mut().insert("x-request-timeout-ms", http::HeaderValue::from(limit.as_millis() as u64));
        timeout(patience, send(self.gateway.addr, put)).await.ok().map(|answer| answer.expect("an answer"))
    }

    /// Waits until writes work, so that everything which came before has been worked on.
    async fn settle(&self) {
        sleep(300 * MS).await;
        wait_for("writes work", || async {
            (self.put(KEYS + 1, 0, 1000 * MS, 2000 * MS).await?.status == 200).then_some(())
        })
        .await;
    }
}

/// What is written, by which way, and what came of it.
struct Bench {
    one: Side,
    other: Side,
    file: PathBuf,
    _dir: tempfile::TempDir,
    version: u64,
    writes: Vec<Write>,
    /// By record: the last version that was acknowledged.
    acknowledged: BTreeMap<i64, u64>,
    /// The version up to which the records were judged.
    judged: u64,
    /// Records that hold a version whose caller was told that it failed, or hung up.
    resurrected: usize,
    /// Cancelled writes.
    cancelled: usize,
}

impl Bench {
    async fn start() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("feed.db");
        let store = format!("sqlite:{}", file.display());
        let (one, other) = (Side::start(&store).await, Side::start(&store).await);
        let (version, writes, acknowledged) = (0, Vec::new(), BTreeMap::new());
        let mut bench = Self {
            one,
            other,
            file,
            _dir: dir,
            version,
            writes,
            acknowledged,
            judged: 0,
            resurrected: 0,
            cancelled: 0,
        };
        bench.rewrite(1).await;
        bench
    }

    /// Writes every record through the first instance, which is kept from it, and does `meanwhile`. Every other caller
    /// hangs up long before its limit.
    async fn cancelled(&mut self, meanwhile: impl AsyncFn(&Side)) {
        self.version += 1;
        let puts = (1..=KEYS).map(|key| {
            let (limit, patience) = if key % 2 == 0 { (SHORT, 2 * SHORT) } else { (LONG, SHORT) };
            self.one.put(key, self.version, limit, patience)
        });
        let (answers, ()) = tokio::join!(join_all(puts), meanwhile(&self.one));
        for (key, answer) in (1..=KEYS).zip(answers) {
            let acknowledged = answer.is_some_and(|answer| answer.status == 200);
            self.note(key, acknowledged);
            self.cancelled += usize::from(!acknowledged);
        }
    }

    /// Writes the records from 1 on through the second instance, which must work; `from` is the first of them.
    async fn rewrite(&mut self, from: i64) {
        self.version += 1;
        let keys: Vec<_> = (1..=KEYS).filter(|key| from == 1 && self.version == 1 || *key < LEFT).collect();
        let answers =
            join_all(keys.iter().map(|key| self.other.put(*key, self.version, LONG, 2 * LONG))).await;
        for (key, answer) in keys.into_iter().zip(answers) {
            self.note(key, answer.is_some_and(|answer| answer.status == 200));
        }
    }

    fn note(&mut self, key: i64, acknowledged: bool) {
        self.writes.push(Write { key, version: self.version, acknowledged });
        if acknowledged {
            self.acknowledged.insert(key, self.version);
        }
    }

    /// Reads the records and counts those that a cancelled write has changed.
    async fn judge(&mut self, findings: &mut Findings, step: &str) {
        self.one.settle().await;
        self.other.settle().await;
        let path = format!("/api/feed/get_feeds?user_id=1&size=100&before={}", KEYS + 1);
        let page = wait_for("the feeds are read", || async {
            let answer = get(self.other.gateway.addr, &path).await;
            (answer.status == 200 && answer.degraded().is_empty()).then(|| answer.json())
        })
        .await;
        let feeds = page["feeds"].as_array().expect("a list of feeds");
        let found: BTreeMap<i64, u64> = feeds
            .iter()
            .map(|feed| {
                let content = feed["content"].as_str().and_then(|text| text.parse().ok());
                (feed["id"].as_i64().expect("an id"), content.expect("a version"))
            })
            .collect();
        // from this step; what an earlier one has left was counted there
        let before = std::mem::replace(&mut self.judged, self.version);
        let cancelled =
            |(key, version): &(&i64, &u64)| **version > before && self.acknowledged.get(key) != Some(version);
        let wrong = found.iter().filter(cancelled).count();
        if wrong > 0 {
            eprintln!("{step}: {wrong} of {KEYS} records hold a cancelled write");
        }
        self.resurrected += wrong;
        if let Err(broken) = guarantees::no_double_effect(&self.writes, &found) {
            findings.guarantee(&format!("G5, {step}"), Err(broken));
        }
    }

    /// The instance is frozen when the writes come, and thaws after their callers were told that they failed.
    async fn frozen_instance(&mut self, findings: &mut Findings) {
        self.one.feed.process.signal(Signal::STOP);
        self.cancelled(async |_| {}).await;
        self.rewrite(LEFT).await;
        self.one.feed.process.signal(Signal::CONT);
        self.judge(findings, "frozen instance").await;
    }

    /// Another program holds the lock of the file when the writes come.
    async fn locked_file(&mut self, findings: &mut Findings) {
        let lock = self.lock();
        self.cancelled(async |_| {}).await;
        let release = async {
            sleep(100 * MS).await;
            lock.execute_batch("COMMIT").expect("the lock is ours");
        };
        let begun = Instant::now();
        tokio::join!(self.rewrite(LEFT), release);
        findings.tell("writes behind the lock", begun.elapsed().as_secs_f64(), "s");
        self.judge(findings, "locked file").await;
    }

    /// The instance is frozen while its writes wait for the lock.
    async fn frozen_behind_a_lock(&mut self, findings: &mut Findings) {
        let lock = self.lock();
        self.cancelled(async |one| {
            sleep(SHORT / 2).await;
            one.feed.process.signal(Signal::STOP);
        })
        .await;
        lock.execute_batch("COMMIT").expect("the lock is ours");
        self.rewrite(LEFT).await;
        self.one.feed.process.signal(Signal::CONT);
        self.judge(findings, "frozen behind a lock").await;
    }

    /// The gateway is frozen, and thaws after its callers have hung up.
    async fn frozen_gateway(&mut self, findings: &mut Findings) {
        self.one.gateway.process.signal(Signal::STOP);
        self.cancelled(async |_| {}).await;
        self.rewrite(LEFT).await;
        self.one.gateway.process.signal(Signal::CONT);
        self.judge(findings, "frozen gateway").await;
    }

    fn lock(&self) -> Connection {
        let other = Connection::open(&self.file).expect("it is there");
        other.busy_timeout(5000 * MS).expect("a time");
        other.execute_batch("BEGIN IMMEDIATE").expect("the lock is free");
        other
    }
}

async fn cancelled_writes(time: Duration) -> Findings {
    let (mut bench, mut findings) = (Bench::start().await, Findings::default());
    let begun = Instant::now();
    let mut rounds = 0;
    while rounds == 0 || begun.elapsed() < time {
        bench.frozen_instance(&mut findings).await;
        bench.locked_file(&mut findings).await;
        bench.frozen_behind_a_lock(&mut findings).await;
        bench.frozen_gateway(&mut findings).await;
        rounds += 1;
    }
    findings.tell("rounds", f64::from(rounds), "");
    findings.share("cancelled writes", bench.cancelled as f64, f64::from(rounds) * 4.0 * KEYS as f64);
    findings.count("records that hold a cancelled write", bench.resurrected, 0);
    let again = bench.writes.iter().filter(|write| write.acknowledged).count() as f64;
    let wanted = f64::from(rounds) * 4.0 * (LEFT - 1) as f64 + KEYS as f64;
    findings.share("writes acknowledged elsewhere", again / wanted, 1.0);
    findings
}
