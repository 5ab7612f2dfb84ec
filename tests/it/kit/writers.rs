//! Callers that write records as fast as they are answered, and a ledger of what was tried and acknowledged.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::HeaderValue;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::guarantees::{self, Verdict, Write};
use super::http::{Connection, get, request};
use super::wait_for;

/// The user whose feeds they are.
const USER: i64 = 7;
/// Records of each writer that rewrites.
const KEYS: i64 = 10;
/// Most records of a writer that makes new ones, and how long it waits after each.
const NEW_KEYS: i64 = 1_000_000;
const GROWTH: Duration = Duration::from_millis(20);
/// Bytes of a record: several pages of them are in one transaction.
const CONTENT: usize = 1500;
/// How long a writer waits after a refusal.
const PAUSE: Duration = Duration::from_millis(20);

/// What was written so far.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    writes: Vec<Write>,
    /// How many calls ended with each status; 0 counts those without an answer.
    pub statuses: BTreeMap<u16, usize>,
    /// The longest time from a call to its end.
    pub longest: Duration,
}

impl Ledger {
    /// Returns how many writes were acknowledged.
    pub fn acknowledged(&self) -> usize {
        self.statuses.get(&200).copied().unwrap_or(0)
    }

    /// Returns how many calls ended otherwise than they may while a store is in trouble.
    pub fn strange(&self) -> usize {
        self.statuses
            .iter()
            .filter(|(status, _)| ![200, 503, 504].contains(*status))
            .map(|(_, count)| count)
            .sum()
    }

    /// Judges what was found in a store (G5, G10) that was looked at after `self` and before `later`: what was
    /// acknowledged by then is there, and nothing that was not tried until then.
    pub fn judge(&self, later: &Self, found: &BTreeMap<i64, u64>) -> Verdict {
        let tried = later.writes.iter().map(|write| Write { acknowledged: false, ..write.clone() });
        guarantees::no_double_effect(&self.writes.iter().cloned().chain(tried).collect::<Vec<_>>(), found)
    }
}

/// Writers at work. Each writes its own records, one after the other.
pub struct Writers {
    stop: CancellationToken,
    tasks: JoinSet<()>,
    ledger: Arc<Mutex<Ledger>>,
}

impl Writers {
    /// Starts writers with these numbers, through a gateway. Each rewrites a few records as fast as it is answered.
    /// Each call has a time limit.
    pub fn start(gateway: SocketAddr, numbers: Range<i64>, limit: Duration) -> Self {
        Self::spawn(gateway, numbers, limit, KEYS)
    }

    /// As [`Writers::start`], but each record is a new one, up to 50 a second from each writer.
    pub fn growing(gateway: SocketAddr, numbers: Range<i64>, limit: Duration) -> Self {
        Self::spawn(gateway, numbers, limit, NEW_KEYS)
    }

    fn spawn(gateway: SocketAddr, numbers: Range<i64>, limit: Duration, keys: i64) -> Self {
        let (stop, ledger, mut tasks) = (CancellationToken::new(), Arc::default(), JoinSet::new());
        for writer in numbers {
            let (stop, ledger) = (stop.clone(), Arc::clone(&ledger));
            tasks.spawn(write(gateway, (writer, keys), limit, stop, ledger));
        }
        Self { stop, tasks, ledger }
    }

    /// Returns what was written so far.
    pub fn ledger(&self) -> Ledger {
        self.ledger.lock().expect("no writer panics").clone()
    }

    /// Waits for so many more acknowledged writes.
    pub async fn more(&self, count: usize) {
        let wanted = self.ledger().acknowledged() + count;
        wait_for("writes are acknowledged", || async {
            (self.ledger().acknowledged() >= wanted).then_some(())
        })
        .await;
    }

    /// Stops them once each has its answer, and returns what was written.
    pub async fn finish(mut self) -> Ledger {
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended.expect("a writer does not panic");
        }
        self.ledger()
    }
}

async fn write(
    gateway: SocketAddr,
    (writer, keys): (i64, i64),
    limit: Duration,
    stop: CancellationToken,
    ledger: Arc<Mutex<Ledger>>,
) {
    let mut connection = None;
    for version in 1.. {
        if stop.is_cancelled() {
            return;
        }
        // ids are from 1 on
        let key = writer * keys + i64::try_from(version).expect("small") % keys + 1;
        let content = format!("{version} {}", "x".repeat(CONTENT));
        let mut put = request(
            "PUT",
            "/api/feed/create_feed",
            &format!(r#"{{"id":{key},"user_id":{USER},"content":"{content}"}}"#),
        );
        put.headers_mut().insert("x-request-timeout-ms", HeaderValue::from(limit.as_millis() as u64));
        let note = |change: &dyn Fn(&mut Ledger)| change(&mut ledger.lock().expect("no writer panics"));
        note(&|ledger| ledger.writes.push(Write { key, version, acknowledged: false }));
        let begun = Instant::now();
        if connection.is_none() {
            connection = Connection::open(gateway).await.ok();
        }
        let answer = match &mut connection {
            Some(connection) => connection.send(put).await.ok(),
            None => None,
        };
        let status = answer.map_or(0, |answer| answer.status.as_u16());
        note(&|ledger| {
            *ledger.statuses.entry(status).or_default() += 1;
            ledger.longest = ledger.longest.max(begun.elapsed());
            if status == 200 {
                ledger.writes.push(Write { key, version, acknowledged: true });
            }
        });
        if status == 0 {
            connection = None;
        }
        if status != 200 {
            tokio::time::sleep(PAUSE).await;
        } else if keys == NEW_KEYS {
            tokio::time::sleep(GROWTH).await;
        }
    }
}

/// Returns the version that a record's content names.
///
/// # Panics
/// When it names none.
pub fn version(content: &str) -> u64 {
    let word = content.split(' ').next().unwrap_or_default();
    word.parse().unwrap_or_else(|_| panic!("{content:?} has no version"))
}

/// Returns the versions of the records as a gateway's callers see them, once they are answered from the store.
pub async fn read(gateway: SocketAddr) -> BTreeMap<i64, u64> {
    let path = format!("/api/feed/get_feeds?user_id={USER}&size=1000");
    let page = wait_for("the feeds are read", || async {
        let answer = get(gateway, &path).await;
        assert!(!answer.headers.contains_key("link"), "the page holds all");
        (answer.status == 200 && answer.degraded().is_empty()).then(|| answer.json())
    })
    .await;
    let feeds = page["feeds"].as_array().expect("a list of feeds");
    let key = |feed: &serde_json::Value| feed["id"].as_i64().expect("an id");
    feeds.iter().map(|feed| (key(feed), version(feed["content"].as_str().expect("a text")))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_that_lost_or_invented_a_write_is_found() {
        let write = |version, acknowledged| Write { key: 1, version, acknowledged };
        let ledger = |writes: &[Write]| Ledger { writes: writes.to_vec(), ..Ledger::default() };
        let before = ledger(&[write(1, true), write(2, false), write(2, true), write(3, false)]);
        // the store was looked at, then these came
        let later = ledger(&[before.writes.as_slice(), &[write(3, true), write(4, false)]].concat());
        for (version, holds) in [(1, false), (2, true), (3, true), (4, true), (5, false)] {
            assert_eq!(before.judge(&later, &BTreeMap::from([(1, version)])).is_ok(), holds, "{version}");
        }
        assert!(before.judge(&later, &BTreeMap::new()).is_err(), "all is lost");
        assert!(
            Ledger::default().judge(&Ledger::default(), &BTreeMap::new()).is_err(),
            "nothing was written"
        );
    }
}
