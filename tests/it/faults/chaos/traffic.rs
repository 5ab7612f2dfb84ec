//! Writers and readers that know what they must find: each record has one writer, whose versions only grow.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::Value;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::plan::SERVICES;
use crate::kit::guarantees::Write;
use crate::kit::http::{Answer, request, send};

/// Records of each service.
const RECORDS: usize = 2;
/// The time limit of each call.
const LIMIT: Duration = Duration::from_secs(1);
/// How long a caller waits for an answer, beyond the limit.
const PATIENCE: Duration = Duration::from_secs(2);
/// Share of the writers that hang up amid a write, and after how long, ms: within the limit.
const IN_A_HURRY: f64 = 0.2;
const HURRY: std::ops::Range<u64> = 1..400;
/// An end of the stream that comes so soon may be a half-close: the gateway makes the write (docs/api.md, "Hanging up").
const HALF_CLOSE: Duration = Duration::from_millis(50);
/// Writes of a record that are remembered.
const LAST: usize = 6;

/// One record.
#[derive(Clone, Copy, Debug)]
struct Record {
    service: usize,
    number: i64,
}

impl Record {
    fn write(self, version: u64) -> (&'static str, String) {
        let Self { number, .. } = self;
        match SERVICES[self.service] {
            "feed" => {
                ("/api/feed/create_feed", format!(r#"{{"id":1,"user_id":{number},"content":"{version}"}}"#))
            }
            "profile" => (
                "/api/profile/put_profile",
                format!(r#"{{"user_id":{number},"name":"n","company":"c","title":"{version}"}}"#),
            ),
            _ => (
                "/api/topic/put_topic",
                format!(r#"{{"topic_id":{number},"subject":"s","content":"{version}"}}"#),
            ),
        }
    }

    fn path(self) -> String {
        let Self { number, .. } = self;
        match SERVICES[self.service] {
            "feed" => format!("/api/feed/get_feeds?user_id={number}&size=5"),
            "profile" => format!("/api/profile/get_profile?user_id={number}"),
            _ => format!("/api/topic/view?topic_id={number}"),
        }
    }

    /// Returns the version that an answer shows; 0 for none.
    fn version(self, answer: &Value) -> u64 {
        let text = match SERVICES[self.service] {
            "feed" => &answer["feeds"][0]["content"],
            "profile" => &answer["title"],
            _ => &answer["content"],
        };
        text.as_str().and_then(|text| text.parse().ok()).unwrap_or(0)
    }
}

/// What is known of one record.
#[derive(Debug, Default)]
struct Known {
    tried: u64,
    acknowledged: u64,
    /// The last version that each gateway acknowledged.
    by_gateway: [u64; 2],
    /// The last writes, for a reader that finds what cannot be.
    last: VecDeque<Attempt>,
}

/// How a write went.
#[derive(Clone, Copy, Debug)]
#[expect(dead_code, reason = "printed when a guarantee is broken")]
struct Attempt {
    version: u64,
    gateway: usize,
    /// From the start of the run.
    begun: Duration,
    took: Duration,
    /// Without a status the writer hung up or the connection broke.
    status: Option<u16>,
}

/// The traffic of a run.
pub struct Traffic {
    start: Instant,
    gateways: Vec<SocketAddr>,
    records: Vec<(Record, Mutex<Known>)>,
    writes: Mutex<Vec<Write>>,
    /// What a reader found that cannot be.
    broken: Mutex<Vec<String>>,
    reads: std::sync::atomic::AtomicUsize,
}

impl Traffic {
    pub fn new(gateways: Vec<SocketAddr>) -> Self {
        let services = 0..SERVICES.len();
        let records = services.flat_map(|service| {
            (0..RECORDS).map(move |record| {
                let number = i64::try_from(100 * (service + 1) + record).expect("a small number");
                (Record { service, number }, Mutex::default())
            })
        });
        let (writes, broken, reads) = Default::default();
        Self { start: Instant::now(), gateways, records: records.collect(), writes, broken, reads }
    }

    /// Writes and reads every record until the end.
    pub async fn run(&self, seed: u64, end: &CancellationToken) {
        let each = (0..self.records.len()).map(async |number| {
            let random = |n: usize| StdRng::seed_from_u64(seed.wrapping_mul(1009).wrapping_add(n as u64));
            tokio::join!(
                self.write_all(number, random(2 * number), end),
                self.read_all(number, random(2 * number + 1), end),
            )
        });
        futures_util::future::join_all(each).await;
    }

    async fn write_all(&self, number: usize, mut random: StdRng, end: &CancellationToken) {
        while !end.is_cancelled() {
            let gateway = random.random_range(0..self.gateways.len());
            if random.random_bool(IN_A_HURRY) {
                let patience = Duration::from_millis(random.random_range(HURRY));
                if self.write(number, gateway, patience).await {
                    continue;
                }
                if patience < HALF_CLOSE {
                    // behind its limit it does not come either
                    sleep(LIMIT.saturating_sub(patience)).await;
                }
                // at once, by another way if there is one, with what the writer has by now
                self.write(number, (gateway + 1) % self.gateways.len(), PATIENCE).await;
            } else {
                self.write(number, gateway, PATIENCE).await;
            }
            sleep(Duration::from_millis(random.random_range(10..80))).await;
        }
    }

    async fn read_all(&self, number: usize, mut random: StdRng, end: &CancellationToken) {
        while !end.is_cancelled() {
            let gateway = random.random_range(0..self.gateways.len());
            self.read(number, gateway).await;
            sleep(Duration::from_millis(random.random_range(10..80))).await;
        }
    }

    /// Writes the next version of a record; returns true if it is acknowledged. After `patience` the writer hangs up.
    async fn write(&self, number: usize, gateway: usize, patience: Duration) -> bool {
        let (record, known) = &self.records[number];
        let version = {
            let mut known = known.lock().expect("no panic under it");
            known.tried += 1;
            known.tried
        };
        let (path, body) = record.write(version);
        let (begun, sent) = (self.start.elapsed(), Instant::now());
        let answer = self.ask(gateway, "PUT", path, &body, patience).await;
        let (status, took) = (answer.map(|answer| answer.status.as_u16()), sent.elapsed());
        let acknowledged = status == Some(200);
        {
            let mut known = known.lock().expect("no panic under it");
            if acknowledged {
                known.acknowledged = version;
                known.by_gateway[gateway] = version;
            }
            known.last.truncate(LAST - 1);
            known.last.push_front(Attempt { version, gateway, begun, took, status });
        }
        let key = record.number;
        self.writes.lock().expect("no panic under it").push(Write { key, version, acknowledged });
        acknowledged
    }

    /// Reads a record; returns the version of a whole answer.
    async fn read(&self, number: usize, gateway: usize) -> Option<u64> {
        let (record, known) = &self.records[number];
        let (acknowledged, by_gateway) = {
            let known = known.lock().expect("no panic under it");
            (known.acknowledged, known.by_gateway[gateway])
        };
        let answer = self.ask(gateway, "GET", &record.path(), "", PATIENCE).await?;
        let found = match answer.status.as_u16() {
            200 => record.version(&answer.json()),
            404 => 0,
            _ => return None,
        };
        self.reads.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let tried = known.lock().expect("no panic under it").tried;
        // an earlier answer may miss what was written through another gateway, but not what this one acknowledged
        let stale = answer.degraded() == "stale";
        let least = if stale { by_gateway } else { acknowledged };
        if !(least..=tried).contains(&found) {
            let last = known.lock().expect("no panic under it").last.clone();
            let what = format!(
                "{record:?} reads {found} through gateway {gateway} at {:?}, want {least} to {tried}, stale: {stale}; {last:?}",
                self.start.elapsed()
            );
            self.broken.lock().expect("no panic under it").push(what);
        }
        answer.degraded().is_empty().then_some(found)
    }

    async fn ask(
        &self,
        gateway: usize,
        method: &str,
        path: &str,
        body: &str,
        patience: Duration,
    ) -> Option<Answer> {
        let mut request = request(method, path, body);
        let limit = u64::try_from(LIMIT.as_millis()).expect("a short time");
        request.headers_mut().insert("x-request-timeout-ms", limit.into());
        timeout(patience, send(self.gateways[gateway], request)).await.ok()?.ok()
    }

    /// Returns true if every record can be written and read well through every gateway, right now.
    pub async fn all_well(&self) -> bool {
        for gateway in 0..self.gateways.len() {
            for number in 0..self.records.len() {
                if !self.write(number, gateway, PATIENCE).await || self.read(number, gateway).await.is_none()
                {
                    return false;
                }
            }
        }
        true
    }

    /// Returns every write, what is found of each record in the end, and what readers found that cannot be.
    pub async fn finish(&self) -> (Vec<Write>, std::collections::BTreeMap<i64, u64>, Vec<String>) {
        let mut found = std::collections::BTreeMap::new();
        for (number, (record, _)) in self.records.iter().enumerate() {
            let version =
                crate::kit::wait_for("the record is read", || async { self.read(number, 0).await }).await;
            found.insert(record.number, version);
        }
        let writes = std::mem::take(&mut *self.writes.lock().expect("no panic under it"));
        let broken = std::mem::take(&mut *self.broken.lock().expect("no panic under it"));
        (writes, found, broken)
    }

    /// Returns how many reads were answered.
    pub fn reads(&self) -> usize {
        self.reads.load(std::sync::atomic::Ordering::Relaxed)
    }
}
