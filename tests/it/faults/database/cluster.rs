//! The primary of the database, lost in every way.

use std::time::Duration;

use rustix::process::Signal;
use tokio::time::{Instant, sleep};

use super::super::{Findings, SECOND, long_rows, rows};
use super::{SERVER, Trial};
use crate::kit::ledger::{Account, read_directly};
use crate::kit::patroni::{LOOP_WAIT, Options, Patroni, TTL};

rows! { "store"
    "F64" f64_primary_killed_and_switched_over killed_and_switched_over 20 1 "the database's primary is killed, then switched over by hand";
}

long_rows! { "store"
    "F65" f65_primary_lost primary_lost 60 1 "the host of the database's primary is gone, frozen, cut off; a frozen host is named first";
    "F68" f68_asynchronous_replication asynchronous 20 10 "replication is asynchronous and the primary is lost: the account shows lost writes";
}

/// Longest time without an acknowledged write if the host of the primary is gone.
const HOST: Duration = Duration::from_secs(TTL.as_secs() + LOOP_WAIT.as_secs() + 5);

/// The system over three nodes. The host that its URL names first is neither the primary nor the synchronous standby.
pub async fn start() -> (Patroni, Trial) {
    let patroni = Patroni::start().await;
    let [primary, standby, third] = patroni.roles().await;
    let trial = Trial::start(&patroni.url([third, primary, standby])).await;
    (patroni, trial)
}

/// Breaks the primary and waits until another one is written to; then heals the old one.
async fn lose_primary(
    patroni: &mut Patroni,
    trial: &mut Trial,
    what: &str,
    most: Duration,
    lose: impl AsyncFnOnce(&mut Patroni, usize),
) {
    let lost = patroni.primary().await;
    let from = Instant::now();
    lose(patroni, lost).await;
    patroni.primary_beside(lost).await;
    trial.resumed(what, from, most).await;
    patroni.heal().await;
    patroni.wait_until_healed().await;
}

async fn killed_and_switched_over(time: Duration) -> Findings {
    let (mut patroni, mut trial) = start().await;
    let (mut findings, begun) = (Findings::default(), Instant::now());
    loop {
        lose_primary(&mut patroni, &mut trial, "PostgreSQL killed", SERVER, async |patroni, lost| {
            patroni.nodes[lost].kill_server();
        })
        .await;
        let to = patroni.standby().await;
        lose_primary(&mut patroni, &mut trial, "switched over by hand", SERVER, async |patroni, lost| {
            patroni.switchover(lost, to).await;
        })
        .await;
        if begun.elapsed() >= time {
            break;
        }
    }
    let server = patroni.direct()[patroni.primary().await];
    trial.finish(server, &mut findings).await;
    findings
}

async fn primary_lost(time: Duration) -> Findings {
    let (mut patroni, mut trial) = start().await;
    let (mut findings, begun) = (Findings::default(), Instant::now());
    // the host that is named first is frozen when every connection has to be opened again
    let [primary, _, third] = patroni.roles().await;
    patroni.nodes[third].signal_server(Signal::STOP);
    let from = Instant::now();
    patroni.nodes[primary].clients.reset();
    trial.resumed("first host frozen, connections reset", from, SERVER).await;
    patroni.heal().await;
    patroni.wait_until_healed().await;
    loop {
        lose_primary(&mut patroni, &mut trial, "host gone", HOST, async |patroni, lost| {
            patroni.nodes[lost].kill();
        })
        .await;
        lose_primary(&mut patroni, &mut trial, "PostgreSQL frozen", HOST, async |patroni, lost| {
            patroni.nodes[lost].signal_server(Signal::STOP);
        })
        .await;
        lose_primary(&mut patroni, &mut trial, "cut off", HOST, async |patroni, lost| patroni.cut_off(lost))
            .await;
        if begun.elapsed() >= time {
            break;
        }
    }
    let server = patroni.direct()[patroni.primary().await];
    trial.finish(server, &mut findings).await;
    findings
}

/// The account has to be able to show a loss: what a replica has not got yet is lost with the primary.
async fn asynchronous(time: Duration) -> Findings {
    let options = Options { synchronous: false, strict: false };
    let mut patroni = Patroni::start_with(options).await;
    let trial = Trial::start(&patroni.url([0, 1, 2])).await;
    let mut findings = Findings::default();
    let lost = patroni.primary().await;
    patroni.nodes[lost].replication.set(crate::kit::relay::Faults::cut());
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
