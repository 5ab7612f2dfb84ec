//! One database behind a relay.

use std::time::Duration;

use rustix::process::Signal;
use tokio::time::{Instant, sleep};

use super::super::{Findings, SECOND, rows};
use super::{HARDLY, SERVER, Trial};
use crate::kit::http::{request, send};
use crate::kit::lane::Lane;
use crate::kit::ledger::LIMIT;
use crate::kit::postgres::{self, Postgres};
use crate::kit::relay::{Direction, Faults, Relay};
use crate::kit::system::Role;
use crate::kit::wait_for;

rows! { "store"
    "F67" f67_one_database_behind_a_relay one_database 40 6 "one database: delay, half-open, resets, limit of connections, idle timeout, SIGQUIT";
}

/// Connections that the database accepts.
const CONNECTIONS: usize = 20;
/// Time after which it ends an idle session.
const IDLE: Duration = Duration::from_millis(300);

/// Answers that do not get through.
const HELD: Direction = Direction {
    delay: Duration::ZERO,
    jitter: Duration::ZERO,
    loss: 0.0,
    bandwidth: 0,
    cut: true,
    reset: 0.0,
};

/// Metrics of an instance of feed: writes of unknown outcome, those that wait, and tries to connect that failed.
const UNKNOWN: &str = "store_unknown_outcomes_total{store=\"feed\"}";
const QUEUED: &str = "store_writes_queued{store=\"feed\"}";
const FAILED: &str = "store_database_connects_total{connection=\"writes\",outcome=\"error\",store=\"feed\"}";
/// Writes that wait only if both instances have a transaction under way that does not end.
const WAITING: f64 = 8.0;

/// Returns true if the database has refused an instance because of its limit of connections.
async fn is_crowded_out(feed: &Role) -> bool {
    let status = feed.status().await;
    let connections = status["roles"][0]["database"]["connections"].as_array().cloned().unwrap_or_default();
    // SQLSTATE 53300: too many connections
    connections.iter().any(|connection| {
        connection["host"].is_null()
            && connection["last_error"].as_str().is_some_and(|why| why.contains("53300"))
    })
}

/// One database, the relay before it, and the system at work.
struct Bench {
    server: Postgres,
    relay: Relay,
    trial: Trial,
    /// Length of the steps that can be longer.
    step: Duration,
}

async fn one_database(time: Duration) -> Findings {
    let server = Postgres::start_with(&[&format!("max_connections = {CONNECTIONS}")]).await;
    // it goes on while this thread waits for the end of the server
    let lane = Lane::start();
    let relay = lane.run(Relay::start(server.addr, 61)).await;
    let trial = Trial::start(&Postgres::url_at(&[relay.addr])).await;
    let mut bench = Bench { server, relay, trial, step: time / 6 };
    bench.delay().await;
    bench.half_open().await;
    bench.resets().await;
    bench.limit_of_connections().await;
    let mut findings = Findings::default();
    bench.idle_sessions(&mut findings).await;
    bench.restart().await;
    bench.trial.finish(bench.server.addr, &mut findings).await;
    findings
}

impl Bench {
    async fn delay(&mut self) {
        let from = Instant::now();
        let delay = Direction { delay: LIMIT / 20, jitter: LIMIT / 40, ..Direction::default() };
        self.relay.set(Faults::both(delay));
        sleep(self.step).await;
        self.trial.undisturbed("delay of 50 ms each way", from, HARDLY, 0.99);
        self.relay.heal();
        // what is on its way arrives before the next fault
        sleep(LIMIT).await;
    }

    async fn half_open(&mut self) {
        let from = Instant::now();
        self.relay.half_open();
        self.trial.resumed("half-open connections", from, SERVER).await;
    }

    /// Ends every connection again and again while batches are under way.
    async fn resets(&mut self) {
        let from = Instant::now();
        let before = self.trial.system.sum(UNKNOWN).await;
        while from.elapsed() < self.step {
            self.hold_answers().await;
            self.reset_held().await;
            // without a connection there is no transaction to meet
            self.trial.system.wait_for_writes().await;
        }
        self.trial.resumed("connections reset", from, SERVER).await;
        let unknown = self.trial.system.sum(UNKNOWN).await - before;
        self.trial.bites("connections reset: writes of unknown outcome", unknown);
    }

    /// Holds the answers of the database back, and waits until an instance has a transaction under way: others wait behind
    /// it, and none can end.
    async fn hold_answers(&self) {
        self.relay.set(Faults { down: HELD, ..Faults::default() });
        let begun = Instant::now();
        // an instance that has still no connection makes writes wait as well, but not for long
        while self.trial.system.sum(QUEUED).await < WAITING && begun.elapsed() < SECOND {
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// Resets every connection before an answer that is held gets through.
    async fn reset_held(&self) {
        self.relay.set(Faults { down: HELD, refuse: true, ..Faults::default() });
        self.relay.reset();
        wait_for("every connection is reset", || async { (self.relay.open() == 0).then_some(()) }).await;
        self.relay.heal();
    }

    /// Somebody else takes every connection that the database has, then leaves.
    async fn limit_of_connections(&mut self) {
        let from = Instant::now();
        // the system would take back what it has lost before somebody else gets it
        self.relay.set(Faults { refuse: true, ..Faults::default() });
        self.relay.reset();
        let others = self.take_every_connection().await;
        self.relay.heal();
        let before = self.trial.system.sum(FAILED).await;
        for feed in &self.trial.system.feeds {
            wait_for("no connection is free for it", || async { is_crowded_out(feed).await.then_some(()) })
                .await;
        }
        let refused = f64::from(u8::from(self.trial.system.refuses_a_write().await));
        sleep(self.step).await;
        let failed = self.trial.system.sum(FAILED).await - before;
        self.trial.bites("no connection free: failed tries to connect", failed);
        self.trial.bites("no connection free: 503", refused);
        drop(others);
        let back = Instant::now();
        wait_for("connections are free again", || self.other()).await;
        self.trial.resumed("no connection free, then free again", back, SERVER).await;
        self.trial.resumed("limit of connections reached", from, self.step + SERVER).await;
    }

    /// Connects until the database has refused it for a while: sessions that are lost end a little later.
    async fn take_every_connection(&self) -> Vec<tokio_postgres::Client> {
        let (mut others, mut refused) = (Vec::new(), 0);
        while refused < 20 {
            match self.other().await {
                Some(client) => {
                    others.push(client);
                    refused = 0;
                }
                None => refused += 1,
            }
            assert!(others.len() <= CONNECTIONS, "the database accepts more than its limit");
            sleep(Duration::from_millis(10)).await;
        }
        others
    }

    /// Somebody else who connects as the system does.
    async fn other(&self) -> Option<tokio_postgres::Client> {
        postgres::connect(self.server.addr, "app", "msa").await
    }

    /// The database ends sessions that are idle for a moment; those of the topic service are, between its writes.
    async fn idle_sessions(&mut self, findings: &mut Findings) {
        let from = Instant::now();
        let admin = self.server.admin().await;
        admin
            .batch_execute(&format!("ALTER ROLE app SET idle_session_timeout = '{}ms'", IDLE.as_millis()))
            .await
            .expect("a setting");
        self.relay.reset();
        self.trial.system.wait_for_writes().await;
        let (mut written, times) = (0, (self.step.as_millis() / (2 * IDLE).as_millis()).max(3));
        for _ in 0..times {
            sleep(2 * IDLE).await;
            let body = r#"{"topic_id":1,"subject":"s","content":"c"}"#;
            let put = send(self.trial.system.gateway.addr, request("PUT", "/api/topic/put_topic", body));
            let status = put.await.expect("an answer").status;
            written += usize::from(status == 200);
        }
        admin.batch_execute("ALTER ROLE app RESET idle_session_timeout").await.expect("a setting");
        self.relay.reset();
        findings.share("share of writes after an idle time", written as f64 / times as f64, 1.0);
        self.trial.resumed("idle sessions ended", from, SERVER).await;
    }

    /// An immediate shutdown, which recovers as after a crash, and a start.
    async fn restart(&mut self) {
        let from = Instant::now();
        self.server.stop(Signal::QUIT);
        sleep(SECOND / 2).await;
        self.server.restart().await;
        self.trial.resumed("SIGQUIT and a start", from, SERVER).await;
    }
}
