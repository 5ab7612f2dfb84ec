//! Faults of the registry in which it takes live instances for dead, a few at a time.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use rustix::process::Signal;
use tokio::time::{Instant, sleep};

use super::{Findings, SECOND, rows};
use crate::kit::etcd::Etcd;
use crate::kit::guarantees;
use crate::kit::load::Load;
use crate::kit::system::{Role, alive};

const LIST: &str = "/api/topic/list";
/// How long etcd is frozen each time, ms: about as long as it keeps the leases of these instances, which is 2 s,
/// the least that it grants.
const FROZEN: std::ops::Range<u64> = 1700..2000;
/// How long it is awake between, ms: long enough to end leases, too short to renew all of them.
const AWAKE: std::ops::Range<u64> = 100..300;

rows! { "registry"
    "F57" f57_etcd_wakes_for_moments wakes_for_moments 60 10 "etcd is frozen for a lease again and again, and awake for moments";
}

async fn wakes_for_moments(time: Duration) -> Findings {
    const SEED: u64 = 57;
    let (etcd, mut findings) = (Etcd::start().await, Findings::default());
    let endpoint = etcd.addr.to_string();
    let gateway = Role::gateway(&endpoint);
    let topics = Role::services::<5>(&endpoint, "topic");
    gateway.wait_for_certain("topic", topics.len()).await;
    let (load, sampler) = (Load::get(gateway.addr, 200.0, LIST).start(), gateway.sample());
    let mut random = StdRng::seed_from_u64(SEED);
    let (begun, mut awoken) = (Instant::now(), 0);
    while begun.elapsed() < time {
        etcd.signal(Signal::STOP);
        sleep(Duration::from_millis(random.random_range(FROZEN))).await;
        etcd.signal(Signal::CONT);
        sleep(Duration::from_millis(random.random_range(AWAKE))).await;
        awoken += 1;
    }
    let back = Instant::now();
    gateway.wait_for_certain("topic", topics.len()).await;
    findings.time("every instance is certain again", back.elapsed(), 5 * SECOND);
    let (samples, record) = (sampler.finish().await, load.finish().await);
    findings.tell("times that etcd was awake", f64::from(awoken), "");
    findings.no_failures(&record);
    findings.guarantee("G2", guarantees::no_premature_death(&samples, &alive("topic", &topics)));
    findings.guarantee("G7", guarantees::monotone_view(&samples));
    findings
}
