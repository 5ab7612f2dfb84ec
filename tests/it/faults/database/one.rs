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
use crate::kit::wait_for;

rows! { "store"
    "F67" f67_one_database_behind_a_relay one_database 40 6 "one database: delay, half-open, resets, limit of connections, idle timeout, SIGQUIT";
}

/// Connections that the database accepts.
const CONNECTIONS: usize = 20;
/// Time after which it ends an idle session.
const IDLE: Duration = Duration::from_millis(300);

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
        while from.elapsed() < self.step {
            self.relay.reset();
            sleep(Duration::from_millis(150)).await;
        }
        self.trial.resumed("connections reset", from, SERVER).await;
    }

    /// Somebody else takes every connection that the database has, then leaves.
    async fn limit_of_connections(&mut self) {
        let from = Instant::now();
        let mut others = Vec::new();
        self.relay.reset();
        while others.len() < 2 * CONNECTIONS
            && let Some(client) = self.other().await
        {
            others.push(client);
        }
        self.relay.reset();
        sleep(self.step).await;
        drop(others);
        let back = Instant::now();
        wait_for("connections are free again", || self.other()).await;
        self.trial.resumed("no connection free, then free again", back, SERVER).await;
        self.trial.resumed("limit of connections reached", from, self.step + SERVER).await;
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
