//! The rows about the shared database: the system at work, something of the database broken meanwhile, and an account
//! of every write at the end.

pub mod cluster;
pub mod one;
pub mod outage;
mod unreplicated;

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{Findings, Row, short};
use crate::kit::etcd::Etcd;
use crate::kit::http::{get, request, send};
use crate::kit::ledger::{Account, Ledger, Writers, read_directly, read_through};
use crate::kit::load::{Load, Outcome, Running};
use crate::kit::system::Role;
use crate::kit::{wait_for, wait_long_for};

/// Whose feeds are read.
const READER: i64 = 3;
/// Whose feeds are written and read back at once, and how often each is read.
const WITNESS: i64 = 4;
const READ_BACK: usize = 8;
/// Longest time in which a read may lack what was acknowledged, while an old primary still answers: an instance learns
/// of the new one when a commit of its own gets no answer in `store.timeout_ms`.
const UNAWARE: Duration = Duration::from_secs(4);
/// Time for which a step is watched after writes work again.
const AFTER: Duration = Duration::from_millis(500);

/// Longest time without an acknowledged write if nothing but a connection is broken, or nothing at all.
const HARDLY: Duration = Duration::from_millis(1500);
/// The same if PostgreSQL alone is gone, or a host that is not written to hangs.
const SERVER: Duration = Duration::from_secs(5);

/// The whole system over one store: two feed instances in two processes.
pub struct System {
    pub gateway: Role,
    pub feeds: [Role; 2],
    _others: [Role; 2],
    _etcd: Etcd,
}

impl System {
    /// Starts it and waits until writes work.
    pub async fn start(store: &str) -> Self {
        let etcd = Etcd::start().await;
        let endpoint = etcd.addr.to_string();
        let env = [("MSA__REGISTRY__TTL_S", "10"), ("MSA__STORE__URL", store)];
        let start = |role| Role::start(&endpoint, role, "127.0.0.1:0", &env);
        let (feeds, others) = ([start("feed"), start("feed")], [start("profile"), start("topic")]);
        let gateway = Role::start(&endpoint, "apigateway", "127.0.0.1:0", &env[..1]);
        gateway.wait_for_certain("feed", 2).await;
        let system = Self { gateway, feeds, _others: others, _etcd: etcd };
        // both instances are called in turn
        for _ in 0..4 {
            system.wait_for_writes().await;
        }
        system
    }

    /// Waits until a write of another user than that of the account works, and a topic can be read.
    pub async fn wait_for_writes(&self) {
        wait_long_for("writes work", || async {
            let body = r#"{"id":1,"user_id":2,"content":"x"}"#;
            let answer = send(self.gateway.addr, request("PUT", "/api/feed/create_feed", body)).await.ok()?;
            (answer.status == 200).then_some(())
        })
        .await;
    }

    /// Tries to write one record; returns whether it was refused with 503.
    pub async fn refuses_a_write(&self) -> bool {
        let body = r#"{"id":1,"user_id":2,"content":"x"}"#;
        let answer = send(self.gateway.addr, request("PUT", "/api/feed/create_feed", body)).await;
        answer.is_ok_and(|answer| answer.status == 503)
    }

    /// Returns the sum of a metric over the feed instances.
    pub async fn sum(&self, series: &str) -> f64 {
        let [one, other] = &self.feeds;
        one.metric(series).await + other.metric(series).await
    }
}

/// A span of time in which something was broken.
struct Span {
    what: String,
    from: Instant,
    to: Instant,
    /// Longest time without an acknowledged write.
    most: Duration,
    /// Share of the writes that have to be acknowledged.
    least: f64,
    /// Largest share that may be: a fault that bites refuses some.
    largest: f64,
}

/// Writes and reads that go on while something is broken.
pub struct Trial {
    pub system: System,
    writers: Writers,
    reads: Running,
    spans: Vec<Span>,
    /// Times without a bound.
    told: Vec<(String, Duration)>,
    /// For how long reads lacked a write that was acknowledged.
    unaware: Vec<(String, Duration)>,
    /// Counts of what shows that a fault has bitten: each must be at least 1.
    bitten: Vec<(String, f64)>,
}

impl Trial {
    /// Begins, and waits until some records are written.
    pub async fn start(store: &str) -> Self {
        let system = System::start(store).await;
        let addr = system.gateway.addr;
        let writers = Writers::start(addr);
        writers.more(20).await;
        // of a user who writes nothing meanwhile: a write ends the use of earlier answers
        let feed = format!(r#"{{"id":1,"user_id":{READER},"content":"x"}}"#);
        let put = send(addr, request("PUT", "/api/feed/create_feed", &feed)).await.expect("an answer");
        assert_eq!(put.status, 200, "{put:?}");
        let path = format!("/api/feed/get_feeds?user_id={READER}&size=20");
        // what was never read cannot be answered from the cache
        wait_for("the feeds are read", || async { (get(addr, &path).await.status == 200).then_some(()) })
            .await;
        let reads = Load::of(addr, 30.0, move |_| request("GET", &path, "")).start();
        Self {
            system,
            writers,
            reads,
            spans: Vec::new(),
            told: Vec::new(),
            unaware: Vec::new(),
            bitten: Vec::new(),
        }
    }

    /// Notes a fault that stops writes for at most `most`: it began at `from`, and by now is over as far as the
    /// database goes.
    pub async fn resumed(&mut self, what: &str, from: Instant, most: Duration) {
        self.system.wait_for_writes().await;
        sleep(AFTER).await;
        self.span(what, from, most, 0.0..=1.0);
    }

    /// Notes a fault that has lasted since `from` and may cost a few writes, or none.
    pub fn undisturbed(&mut self, what: &str, from: Instant, most: Duration, least: f64) {
        self.span(what, from, most, least..=1.0);
    }

    /// Notes a fault that has lasted since `from` and stops writes: at most this share is acknowledged.
    pub fn stopped(&mut self, what: &str, from: Instant, largest: f64) {
        self.span(what, from, Duration::MAX, 0.0..=largest);
    }

    fn span(&mut self, what: &str, from: Instant, most: Duration, share: RangeInclusive<f64>) {
        let (what, to, (least, largest)) = (what.to_owned(), Instant::now(), share.into_inner());
        self.spans.push(Span { what, from, to, most, least, largest });
    }

    /// Notes a time that has no bound.
    pub fn tell(&mut self, what: &str, time: Duration) {
        self.told.push((what.to_owned(), time));
    }

    /// Notes a count that shows that a fault has bitten. It must be at least 1.
    pub fn bites(&mut self, what: &str, count: f64) {
        self.bitten.push((what.to_owned(), count));
    }

    /// Writes a record, and reads it until no instance lacks it.
    pub async fn reads_its_writes(&mut self, what: &str) {
        let addr = self.system.gateway.addr;
        let id = self.unaware.len() + 1;
        let body = format!(r#"{{"id":{id},"user_id":{WITNESS},"content":"x"}}"#);
        wait_for("a record is written", || async {
            let put = send(addr, request("PUT", "/api/feed/create_feed", &body)).await.ok()?;
            (put.status == 200).then_some(())
        })
        .await;
        let (written, path) = (Instant::now(), format!("/api/feed/get_feeds?user_id={WITNESS}&size=1"));
        let (mut reads, mut lacking) = (0, Duration::ZERO);
        while reads < READ_BACK && written.elapsed() < 4 * UNAWARE {
            let answer = get(addr, &path).await;
            let newest = || answer.json()["feeds"][0]["id"].as_u64();
            match answer.status.as_u16() {
                200 if newest() == Some(id as u64) => reads += 1,
                200 | 404 => (reads, lacking) = (0, written.elapsed()),
                // it was not answered, and not wrongly
                _ => {}
            }
            sleep(Duration::from_millis(20)).await;
        }
        self.unaware.push((what.to_owned(), lacking));
    }

    /// Ends the calls and judges them; `server` is the database that is written to.
    pub async fn finish(self, server: SocketAddr, findings: &mut Findings) {
        self.system.wait_for_writes().await;
        let (ledger, reads) = (self.writers.finish().await, self.reads.finish().await);
        for Span { what, from, to, most, least, largest } in &self.spans {
            let silence = ledger.longest_silence(*from, *to);
            if *most < Duration::MAX {
                findings.time(&format!("{what}: no write for"), silence, *most);
            }
            let share = ledger.acknowledged_share(*from, *to);
            if *largest < 1.0 {
                findings.share(&format!("{what}: share refused"), 1.0 - share, 1.0 - *largest);
            } else if *least > 0.0 {
                findings.timed_share(&format!("{what}: share acknowledged"), share, *least);
            } else {
                findings.tell(&format!("{what}: share acknowledged"), share, "");
            }
        }
        for (what, time) in &self.told {
            findings.tell(what, time.as_secs_f64(), "s");
        }
        for (what, count) in &self.bitten {
            findings.share(what, *count, 1.0);
        }
        for (what, time) in &self.unaware {
            findings.time(&format!("{what}: reads lacked a write for"), *time, UNAWARE);
        }
        findings.calls(&ledger.new);
        findings.count("answers to writes but 200, 503, 504", ledger.other_answers(), 0);
        let other = |outcome: &Outcome| match outcome {
            Outcome::Status(status) => !matches!(status.as_u16(), 200 | 503 | 504),
            _ => true,
        };
        let others = reads.calls.iter().filter(|call| other(&call.outcome)).count();
        findings.count("answers to reads but 200, 503, 504", others, 0);
        let answered = reads.calls.iter().filter(|call| call.answered()).count();
        findings.timed_share(
            "share of reads answered",
            answered as f64 / reads.calls.len().max(1) as f64,
            0.99,
        );
        findings.tell("reads answered from the cache, marked", reads.degraded() as f64, "");
        account(&ledger, server, self.system.gateway.addr, findings).await;
    }
}

/// Compares what was tried with what the database holds, read from it directly and through the gateway.
async fn account(ledger: &Ledger, server: SocketAddr, gateway: SocketAddr, findings: &mut Findings) {
    let found = read_directly(server).await;
    let account = Account::of(&ledger.writes(), &found);
    if !account.lost.is_empty() || !account.unexpected.is_empty() {
        eprintln!("{}", account.wrong());
    }
    findings.share("records acknowledged", account.acknowledged as f64, 20.0);
    findings.count("acknowledged writes lost", account.lost.len(), 0);
    findings.count("records that nobody wrote", account.unexpected.len(), 0);
    findings.tell("writes found whose outcome was unknown", account.recovered as f64, "");
    let through = read_through(gateway).await;
    let differ = found.iter().filter(|(key, version)| through.get(key) != Some(version)).count();
    findings.count(
        "records that the gateway reads otherwise",
        differ + through.len().abs_diff(found.len()),
        0,
    );
}
