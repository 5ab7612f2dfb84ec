//! Writes that go on during a fault, and the account of them afterwards: what was acknowledged must be found, nothing
//! else than what was tried may be.
//!
//! Two kinds of writes, all of one user's feeds. New ones come in an open loop and are never written again: they show a
//! lost insert. A few records are written again and again, each by one writer of its own: they show an old version
//! that comes back.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use http::HeaderValue;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::guarantees::Write;
use super::http::{Answer, get, request, send};
use super::load::{Load, Outcome, Record, Running};
use super::{postgres, wait_for};

/// Whose feeds are written.
pub const USER: i64 = 1;
/// New records a second.
const RATE: f64 = 40.0;
/// Ids of the records that are written again; new ones stay below.
const AGAIN: std::ops::Range<i64> = 1_000_000_000..1_000_000_004;
/// Pause of the writer of such a record after each write.
const PAUSE: Duration = Duration::from_millis(25);
/// Limit of a write.
pub const LIMIT: Duration = Duration::from_secs(1);

/// Writers that are at work.
pub struct Writers {
    new: Running,
    again: JoinSet<Vec<Written>>,
    stop: CancellationToken,
}

/// One write of a record that is written again, and its answer.
#[derive(Clone, Debug)]
struct Written {
    write: Write,
    status: Option<u16>,
}

impl Writers {
    /// Begins to write through a gateway.
    pub fn start(gateway: SocketAddr) -> Self {
        let new = Load::of(gateway, RATE, |number| put(new_id(number), 1)).within(LIMIT).start();
        let (mut again, stop) = (JoinSet::new(), CancellationToken::new());
        for id in AGAIN {
            let stop = stop.clone();
            again.spawn(async move {
                let mut written = Vec::new();
                for version in 1.. {
                    if stop.run_until_cancelled(sleep(PAUSE)).await.is_none() {
                        break;
                    }
                    let sent = send(gateway, put(id, version));
                    // the gateway answers by the limit; a writer that gives up must not overtake its own write
                    let answer = tokio::time::timeout(4 * LIMIT, sent).await;
                    let status = answer.ok().and_then(Result::ok).map(|answer| answer.status.as_u16());
                    let write = Write { key: id, version, acknowledged: status == Some(200) };
                    written.push(Written { write, status });
                }
                written
            });
        }
        Self { new, again, stop }
    }

    /// Waits until so many more new records were tried.
    pub async fn more(&self, count: usize) {
        self.new.more(count).await;
    }

    /// Stops the writers and returns what they did.
    pub async fn finish(self) -> Ledger {
        self.stop.cancel();
        let new = self.new.finish().await;
        let again = self.again.join_all().await.into_iter().flatten().collect();
        Ledger { new, again }
    }
}

fn new_id(number: u64) -> i64 {
    i64::try_from(number + 1).expect("a small number")
}

fn put(id: i64, version: u64) -> http::Request<http_body_util::Full<bytes::Bytes>> {
    let body = format!(r#"{{"id":{id},"user_id":{USER},"content":"{version}"}}"#);
    let mut request = request("PUT", "/api/feed/create_feed", &body);
    request.headers_mut().insert("x-request-timeout-ms", HeaderValue::from(LIMIT.as_millis() as u64));
    request
}

/// Everything that was tried, and what came of it.
pub struct Ledger {
    /// The new records.
    pub new: Record,
    again: Vec<Written>,
}

impl Ledger {
    /// Returns every write, those whose outcome is unknown as not acknowledged.
    pub fn writes(&self) -> Vec<Write> {
        let ok = |outcome: &Outcome| matches!(outcome, Outcome::Status(status) if status.as_u16() == 200);
        let new = self.new.calls.iter().map(|call| Write {
            key: new_id(call.number),
            version: 1,
            acknowledged: ok(&call.outcome),
        });
        new.chain(self.again.iter().map(|written| written.write.clone())).collect()
    }

    /// Returns how many writes had an answer that is none of 200, 503 and 504, or no answer.
    pub fn other_answers(&self) -> usize {
        let new = self.new.calls.iter().map(|call| match call.outcome {
            Outcome::Status(status) => Some(status.as_u16()),
            _ => None,
        });
        let other: Vec<_> = new
            .chain(self.again.iter().map(|written| written.status))
            .filter(|status| !matches!(status, Some(200 | 503 | 504)))
            .collect();
        if !other.is_empty() {
            eprintln!("other answers: {other:?}");
        }
        other.len()
    }

    /// Returns the longest time in a span in which no new record was acknowledged.
    pub fn longest_silence(&self, from: Instant, to: Instant) -> Duration {
        let mut ends: Vec<_> = self
            .new
            .calls
            .iter()
            .filter(|call| matches!(call.outcome, Outcome::Status(status) if status.as_u16() == 200))
            .map(|call| call.ended)
            .filter(|ended| (from..to).contains(ended))
            .chain([from, to])
            .collect();
        ends.sort_unstable();
        ends.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
    }

    /// Returns the share of the new records due in a span that were acknowledged, 0 to 1; 0 if there were none.
    pub fn acknowledged_share(&self, from: Instant, to: Instant) -> f64 {
        let due = self.new.between(from, to);
        if due.calls.is_empty() { 0.0 } else { due.ok_share() }
    }
}

/// What became of the writes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Records that were acknowledged.
    pub acknowledged: usize,
    /// Those whose last acknowledged version, or a later one, is not found.
    pub lost: Vec<i64>,
    /// Records, or versions, that nobody tried to write.
    pub unexpected: Vec<i64>,
    /// Records that hold a write whose caller was not told that it took effect.
    pub recovered: usize,
}

impl Account {
    /// Compares what was tried with the versions that are found, by record.
    pub fn of(writes: &[Write], found: &BTreeMap<i64, u64>) -> Self {
        let mut bounds = BTreeMap::<i64, (u64, u64)>::new();
        for write in writes {
            let (acknowledged, tried) = bounds.entry(write.key).or_default();
            *tried = (*tried).max(write.version);
            if write.acknowledged {
                *acknowledged = (*acknowledged).max(write.version);
            }
        }
        let mut account = Self::default();
        for (key, (acknowledged, tried)) in &bounds {
            let read = found.get(key).copied().unwrap_or(0);
            account.acknowledged += usize::from(*acknowledged > 0);
            if read < *acknowledged {
                account.lost.push(*key);
            } else if read > *tried {
                account.unexpected.push(*key);
            } else if read > *acknowledged {
                account.recovered += 1;
            }
        }
        account.unexpected.extend(found.keys().filter(|key| !bounds.contains_key(key)));
        account
    }

    /// Returns the first of the records that are wrong, for a person.
    pub fn wrong(&self) -> String {
        let mut text = String::new();
        for (what, keys) in [("lost", &self.lost), ("unexpected", &self.unexpected)] {
            let _ = write!(text, "{} {what} {:?} ", keys.len(), &keys[..keys.len().min(5)]);
        }
        text
    }
}

/// Reads every record through a gateway, from the store and not from its cache.
pub async fn read_through(gateway: SocketAddr) -> BTreeMap<i64, u64> {
    let (mut found, mut before) = (BTreeMap::new(), String::new());
    loop {
        let path = format!("/api/feed/get_feeds?user_id={USER}&size=1000{before}");
        let page = wait_for("the feeds are read", || async {
            let fresh =
                |answer: &Answer| matches!(answer.status.as_u16(), 200 | 404) && answer.degraded().is_empty();
            Some(get(gateway, &path).await).filter(fresh)
        })
        .await;
        let page = if page.status == 200 { page.json() } else { serde_json::Value::Null };
        let feeds = page["feeds"].as_array().cloned().unwrap_or_default();
        let Some(first) = feeds.first() else { return found };
        before = format!("&before={}", first["id"]);
        found.extend(feeds.iter().map(|feed| {
            let version = feed["content"].as_str().and_then(|text| text.parse().ok());
            (feed["id"].as_i64().expect("an id"), version.expect("a version"))
        }));
    }
}

/// Reads every record from a server of the database, which has to be the one that is written to.
pub async fn read_directly(server: SocketAddr) -> BTreeMap<i64, u64> {
    let client = wait_for("the database answers", || postgres::connect(server, "postgres", "msa")).await;
    let question = "SELECT id, content FROM feed.feeds WHERE user_id = $1";
    let rows = client.query(question, &[&USER]).await.expect("the records");
    rows.iter()
        .map(|row| {
            let version: &str = row.get(1);
            (row.get(0), version.parse().expect("a version"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(key: i64, version: u64, acknowledged: bool) -> Write {
        Write { key, version, acknowledged }
    }

    #[test]
    fn an_account_sees_what_is_lost_unexpected_and_recovered() {
        let writes = [
            write(1, 1, true),
            write(2, 1, false),
            write(3, 1, false),
            write(4, 1, true),
            write(4, 2, true),
            write(4, 3, false),
        ];
        let account = |found: &[(i64, u64)]| Account::of(&writes, &found.iter().copied().collect());
        let right = Account { acknowledged: 2, ..Account::default() };
        assert_eq!(account(&[(1, 1), (4, 2)]), right);
        assert_eq!(account(&[(1, 1), (2, 1), (4, 3)]), Account { recovered: 2, ..right.clone() });
        assert_eq!(account(&[(4, 2)]), Account { lost: vec![1], ..right.clone() });
        assert_eq!(account(&[(1, 1), (4, 1)]), Account { lost: vec![4], ..right.clone() });
        assert_eq!(account(&[(1, 1), (4, 4), (9, 1)]), Account { unexpected: vec![4, 9], ..right });
        assert_eq!(account(&[]).lost, [1, 4]);
    }

    #[test]
    fn silence_is_counted_at_both_ends_and_between_acknowledged_writes() {
        let begun = Instant::now();
        let at = |ms: u64| begun + Duration::from_millis(ms);
        let call = |ended: u64, status: u16| super::super::load::Call {
            number: ended,
            due: at(ended),
            sent: at(ended),
            ended: at(ended),
            outcome: Outcome::Status(http::StatusCode::from_u16(status).unwrap()),
            instance: String::new(),
            degraded: None,
            no_hint: false,
            again: false,
        };
        let calls = vec![call(100, 200), call(300, 200), call(500, 503), call(900, 200), call(1000, 500)];
        let ledger = Ledger { new: Record { calls, unsent: 0, limit: LIMIT }, again: Vec::new() };
        let silence = |from, to| ledger.longest_silence(at(from), at(to)).as_millis();
        assert_eq!((silence(0, 1000), silence(0, 350), silence(400, 2000)), (600, 200, 1100));
        assert_eq!(ledger.other_answers(), 1);
        assert!((ledger.acknowledged_share(at(0), at(2000)) - 0.6).abs() < 1e-9);
        assert!(ledger.acknowledged_share(at(2000), at(3000)).abs() < 1e-9);
    }
}
