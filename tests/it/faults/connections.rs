//! Connections that end while the instance behind them lives on: what a restarted proxy, a firewall or a server that
//! limits the age of its connections does. It must not look like an outage.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::callpath::{Bench, LIST};
use super::{Findings, SECOND, rows};

rows! { "callpath"
    "F54" f54_connections_to_live_instances_end closed 30 4 "connections to live instances are closed: of the only one, of all three";
}

async fn closed(time: Duration) -> Findings {
    let mut findings = Findings::default();
    for instances in [1, 3] {
        let bench = Bench::start(instances).await;
        let load = bench.load(LIST).start();
        load.more(100).await;
        let (begun, mut closed) = (Instant::now(), 0);
        while begun.elapsed() < time / 2 || closed < 2 {
            bench.relays.iter().for_each(crate::kit::relay::Relay::close);
            closed += 1;
            sleep(SECOND).await;
        }
        let record = load.finish().await;
        let lost = bench.gateway.metric("client_connections_total{event=\"lost\",service=\"topic\"}").await;
        findings.share(&format!("connections lost, {instances} of {instances} at a time"), lost, 2.0);
        findings.no_failures(&record);
        findings.timed_share(
            "share of answers within 0.1 s",
            record.calls.iter().filter(|call| call.latency() < SECOND / 10).count() as f64
                / record.calls.len() as f64,
            0.99,
        );
    }
    findings
}
