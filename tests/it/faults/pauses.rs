//! The program itself does not run for a while: a stopped process, a suspended or overloaded host. What it finds when it
//! goes on must not be taken for a fault of others.

use std::time::Duration;

use rustix::process::Signal;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::callpath::{Bench, LIST};
use super::{Findings, SECOND, rows};
use crate::kit::fake::Behaviour;
use crate::kit::http::get;
use crate::kit::wait_for;

rows! { "callpath"
    "F55" f55_the_gateway_is_stopped gateway_stopped 30 7 "the gateway is stopped for 1 to 3 s under 40 callers";
}

/// Callers at a time.
const CALLERS: usize = 40;

async fn gateway_stopped(time: Duration) -> Findings {
    let (bench, mut findings) = (Bench::start(3).await, Findings::default());
    bench.fakes.iter().for_each(|fake| {
        fake.behave(Behaviour { delay: SECOND / 5, ..Behaviour::default() });
    });
    assert_eq!(get(bench.gateway.addr, LIST).await.status, 200);
    let (begun, mut answers) = (Instant::now(), Vec::new());
    for pause in [10, 22, 30].into_iter().cycle() {
        let before: usize = bench.calls().iter().sum();
        let mut callers = JoinSet::new();
        for _ in 0..CALLERS {
            callers.spawn(get(bench.gateway.addr, LIST));
        }
        // every call is at an instance, and none is answered yet
        wait_for("every call is on its way", || async {
            (bench.calls().iter().sum::<usize>() >= before + CALLERS).then_some(())
        })
        .await;
        bench.gateway.process.signal(Signal::STOP);
        sleep(pause * SECOND / 10).await;
        bench.gateway.process.signal(Signal::CONT);
        answers.extend(callers.join_all().await);
        if begun.elapsed() >= time {
            break;
        }
    }
    findings.share("calls", answers.len() as f64, CALLERS as f64);
    findings.count("failed", answers.iter().filter(|answer| answer.status != 200).count(), 0);
    findings.count("stale", answers.iter().filter(|answer| !answer.degraded().is_empty()).count(), 0);
    let series = "client_breaker_transitions_total{method=\"ListTopics\",service=\"topic\",to=\"open\"}";
    let opened = bench.gateway.metric(series).await;
    findings.count("breakers opened", opened as usize, 0);
    findings
}
