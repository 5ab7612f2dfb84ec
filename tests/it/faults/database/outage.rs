//! The registry of the database's nodes is away, alone and with a replica that is dead or slow.

use std::sync::LazyLock;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::super::{Findings, SECOND, long_rows};
use super::cluster::start;
use super::{HARDLY, Trial};
use crate::kit::patroni::{LOOP_WAIT, Patroni, TTL};
use crate::kit::relay::{Direction, Faults};

long_rows! { "store"
    "F66" f66_registry_of_the_database_away registry_away 60 1 "the database's etcd is away: alone, without a leader, with a dead and with a slow replica";
    "F69" f69_slow_replica slow_replica 15 3 "what the database replicates is 0.3 s on its way";
}

/// How long etcd is away: longer than the leader's key lives without it.
static AWAY: LazyLock<Duration> = LazyLock::new(|| *TTL + 2 * LOOP_WAIT + SECOND);
/// For how long writes are watched once the primary has stepped down, and the largest share of them that may be acknowledged.
const DOWN: Duration = Duration::from_secs(1);
const STILL: f64 = 0.0;
/// Longest time from the return of etcd to the next acknowledged write.
static BACK: LazyLock<Duration> = LazyLock::new(|| *TTL + LOOP_WAIT + 5 * SECOND);

async fn registry_away(time: Duration) -> Findings {
    let (mut patroni, mut trial) = start().await;
    let (mut findings, begun) = (Findings::default(), Instant::now());
    loop {
        let from = Instant::now();
        patroni.stop_etcd(0..3);
        sleep(*AWAY).await;
        trial.undisturbed("etcd alone away", from, HARDLY, 0.99);
        back(&mut patroni, &mut trial, "etcd alone away, and back").await;

        patroni.stop_etcd(0..2);
        sleep(*AWAY).await;
        back(&mut patroni, &mut trial, "etcd without a leader, and back").await;

        let [_, _, third] = patroni.roles().await;
        patroni.nodes[third].kill();
        patroni.stop_etcd(0..3);
        steps_down(&mut trial, "etcd away and a replica dead").await;
        back(&mut patroni, &mut trial, "etcd away and a replica dead, and back").await;

        let [_, _, third] = patroni.roles().await;
        patroni.delay_answers(third, 3 * SECOND);
        patroni.stop_etcd(0..3);
        steps_down(&mut trial, "etcd away and a replica slow").await;
        back(&mut patroni, &mut trial, "etcd away and a replica slow, and back").await;
        if begun.elapsed() >= time {
            break;
        }
    }
    let server = patroni.direct()[patroni.primary().await];
    trial.finish(server, &mut findings).await;
    findings
}

/// Waits while etcd is away and the primary cannot ask every member: once the leader's key has run out it can only be read,
/// so that a replica which was promoted meanwhile is the only one that is written to.
async fn steps_down(trial: &mut Trial, what: &str) {
    sleep(*TTL + 2 * LOOP_WAIT).await;
    let from = Instant::now();
    let refused = f64::from(u8::from(trial.system.refuses_a_write().await));
    trial.bites(&format!("{what}: 503"), refused);
    sleep(DOWN).await;
    trial.stopped(what, from, STILL);
}

/// Brings etcd back, then what else was broken.
async fn back(patroni: &mut Patroni, trial: &mut Trial, what: &str) {
    let from = Instant::now();
    patroni.restart_etcd().await;
    trial.resumed(what, from, *BACK).await;
    patroni.heal().await;
    patroni.wait_until_healed().await;
}

async fn slow_replica(time: Duration) -> Findings {
    let (patroni, mut trial) = start().await;
    let mut findings = Findings::default();
    let primary = patroni.primary().await;
    let delay = Direction { delay: SECOND * 3 / 10, ..Direction::default() };
    let from = Instant::now();
    patroni.nodes[primary].replication.set(Faults { down: delay, ..Faults::default() });
    sleep(time.max(2 * SECOND)).await;
    trial.undisturbed("replication takes 0.3 s", from, HARDLY, 0.9);
    patroni.nodes[primary].replication.heal();
    trial.finish(patroni.direct()[primary], &mut findings).await;
    findings
}
