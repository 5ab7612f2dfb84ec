//! The primary of the database, lost in every way.

use std::sync::LazyLock;
use std::time::Duration;

use rustix::process::Signal;
use tokio::time::{Instant, sleep};

use super::super::{Findings, SECOND, long_rows, rows};
use super::{HARDLY, SERVER, Trial};
use crate::kit::ledger::{Account, read_directly};
use crate::kit::patroni::{LOOP_WAIT, MAJOR, Patroni, Replication, TTL};
use crate::kit::relay::Faults;

rows! { "store"
    "F64" f64_primary_killed_and_switched_over killed_and_switched_over 20 1 "the database's primary is killed, then switched over by hand";
}

long_rows! { "store"
    "F65" f65_primary_lost primary_lost 60 1 "the database's primary: host gone, Patroni killed, frozen, cut off; a frozen host is named first";
    "F68" f68_asynchronous_replication asynchronous 20 10 "replication is asynchronous and the primary is lost: the account shows lost writes";
    "F70" f70_quorum quorum 60 1 "commits wait for the quicker of two standbys: one of them is frozen, the primary is lost";
}

/// Longest time without an acknowledged write if the host of the primary, or its Patroni, is gone.
static HOST: LazyLock<Duration> = LazyLock::new(|| *TTL + LOOP_WAIT + 5 * SECOND);
/// How long commits wait for a standby before the primary is lost.
const HELD: Duration = Duration::from_millis(150);

/// A way to lose the primary.
#[derive(Clone, Copy)]
enum Loss {
    PostgresKilled,
    SwitchedOver,
    HostGone,
    PostgresFrozen,
    CutOff,
    PatroniKilled,
}

impl Loss {
    /// Returns its name, and the longest time without an acknowledged write.
    fn bound(self) -> (&'static str, Duration) {
        match self {
            Self::PostgresKilled => ("PostgreSQL killed", SERVER),
            Self::SwitchedOver => ("switched over by hand", SERVER),
            Self::HostGone => ("host gone", *HOST),
            Self::PostgresFrozen => ("PostgreSQL frozen", *HOST),
            Self::CutOff => ("cut off", *HOST),
            Self::PatroniKilled => ("Patroni killed alone", *HOST),
        }
    }

    async fn strike(self, patroni: &mut Patroni, primary: usize, standby: usize) {
        match self {
            Self::PostgresKilled => {
                hold_commits(patroni, primary).await;
                patroni.nodes[primary].kill_server();
            }
            Self::SwitchedOver => patroni.switchover(primary, standby).await,
            Self::HostGone => {
                hold_commits(patroni, primary).await;
                patroni.nodes[primary].kill();
            }
            Self::PostgresFrozen => patroni.nodes[primary].signal_server(Signal::STOP),
            Self::CutOff => patroni.cut_off(primary),
            // its PostgreSQL goes on as a primary
            Self::PatroniKilled => patroni.nodes[primary].signal_patroni(Signal::KILL),
        }
    }
}

/// Makes commits wait for their standby. They are on the disk of the primary, and are lost with it: none of them may be
/// acknowledged.
async fn hold_commits(patroni: &Patroni, primary: usize) {
    patroni.nodes[primary].replication.set(Faults::cut());
    sleep(HELD).await;
}

/// The system over three nodes. The host that its URL names first is neither the primary nor its (first) synchronous standby.
pub async fn start() -> (Patroni, Trial) {
    start_with(Replication::Synchronous).await
}

/// The same with another replication that commits wait for.
async fn start_with(replication: Replication) -> (Patroni, Trial) {
    let patroni = Patroni::start(replication).await;
    let [primary, standby, third] = patroni.roles().await;
    let trial = Trial::start(&patroni.url([third, primary, standby])).await;
    (patroni, trial)
}

/// Loses the primary in each of these ways, again and again for a time; then judges.
async fn lose_primaries(time: Duration, mut patroni: Patroni, mut trial: Trial, losses: &[Loss]) -> Findings {
    let (mut findings, begun) = (Findings::default(), Instant::now());
    loop {
        for loss in losses {
            lose_primary(&mut patroni, &mut trial, *loss).await;
        }
        if begun.elapsed() >= time {
            break;
        }
    }
    let server = patroni.direct()[patroni.primary().await];
    trial.finish(server, &mut findings).await;
    findings
}

/// Breaks the primary and waits until another one is written to; then heals the old one.
async fn lose_primary(patroni: &mut Patroni, trial: &mut Trial, loss: Loss) {
    let [lost, standby, _] = patroni.roles().await;
    let ((what, most), from) = (loss.bound(), Instant::now());
    loss.strike(patroni, lost, standby).await;
    patroni.primary_beside(lost).await;
    trial.tell(&format!("{what}: until there was a primary"), from.elapsed());
    trial.resumed(what, from, most).await;
    if from.elapsed() > most {
        for node in &patroni.nodes {
            eprintln!("{what}: writes did not resume in time; log of {}:\n{}", node.name, node.log());
        }
    }
    trial.reads_its_writes(what).await;
    if matches!(loss, Loss::PostgresFrozen) {
        // as its watchdog would have done: a Patroni before 3.0.3 that could not look at its PostgreSQL for a while takes the
        // leader's key from its successor when it goes on, and what was acknowledged meanwhile is lost (patroni/patroni#2689)
        patroni.nodes[lost].reset().await;
    }
    patroni.heal().await;
    patroni.wait_until_healed().await;
}

async fn killed_and_switched_over(time: Duration) -> Findings {
    let (patroni, trial) = start().await;
    lose_primaries(time, patroni, trial, &[Loss::PostgresKilled, Loss::SwitchedOver]).await
}

async fn primary_lost(time: Duration) -> Findings {
    let (mut patroni, mut trial) = start().await;
    // the host that is named first is frozen when every connection has to be opened again
    let [primary, _, third] = patroni.roles().await;
    patroni.nodes[third].signal_server(Signal::STOP);
    let from = Instant::now();
    patroni.nodes[primary].clients.reset();
    trial.resumed("first host frozen, connections reset", from, SERVER).await;
    patroni.heal().await;
    patroni.wait_until_healed().await;
    let losses = [Loss::HostGone, Loss::PatroniKilled, Loss::PostgresFrozen, Loss::CutOff];
    lose_primaries(time, patroni, trial, &losses).await
}

/// A commit waits for either standby; none of them may hold it up alone.
async fn quorum(time: Duration) -> Findings {
    if *MAJOR < 4 {
        return Findings::skipped(
            "it needs Patroni 4 or later (PATRONI names another than that of the path)",
        );
    }
    let (mut patroni, mut trial) = start_with(Replication::Quorum).await;
    let [_, one, other] = patroni.roles().await;
    for standby in [one, other] {
        patroni.nodes[standby].signal_server(Signal::STOP);
        let from = Instant::now();
        sleep(3 * SECOND).await;
        trial.undisturbed("one of two standbys frozen", from, HARDLY, 0.99);
        patroni.heal().await;
        patroni.wait_until_healed().await;
    }
    // Not cut off: that takes from the other two their way to each other, and they need each other's vote. Nor Patroni killed
    // alone: the old primary goes on, and needs no more than the standby that is not promoted, until that one hears of the new
    // primary. Here it hears of it so soon that seven such losses cost no write; with its way to etcd 250 ms slower in each
    // direction, three cost 28. A watchdog is against that, and these nodes have none.
    let losses = [Loss::PostgresKilled, Loss::SwitchedOver, Loss::HostGone, Loss::PostgresFrozen];
    lose_primaries(time, patroni, trial, &losses).await
}

/// The account has to be able to show a loss: what a replica has not got yet is lost with the primary.
async fn asynchronous(time: Duration) -> Findings {
    let mut patroni = Patroni::start(Replication::Asynchronous).await;
    let trial = Trial::start(&patroni.url([0, 1, 2])).await;
    let mut findings = Findings::default();
    let lost = patroni.primary().await;
    patroni.nodes[lost].replication.set(Faults::cut());
    sleep(SECOND.max(time / 10)).await;
    patroni.nodes[lost].kill();
    let primary = patroni.primary_beside(lost).await;
    trial.system.wait_for_writes().await;
    let ledger = trial.writers.finish().await;
    drop(trial.reads);
    let account = Account::of(&ledger.writes(), &read_directly(patroni.direct()[primary]).await);
    patroni.heal().await;
    findings.tell("records acknowledged", account.acknowledged as f64, "");
    findings.share("acknowledged writes lost, as is to be seen", account.lost.len() as f64, 1.0);
    findings.count("records that nobody wrote", account.unexpected.len(), 0);
    findings
}
