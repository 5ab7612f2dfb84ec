//! Random mixes of the faults there are, overlapping, over the whole system as processes: one or three members of etcd,
//! one or two gateways, two instances of each service over one store file.
//!
//! A seed decides the schedule and is printed, so that it can be repeated: `tests/faults --seeds 17 chaos`. While the
//! faults last, calls may fail, but the guarantees hold: no acknowledged write is lost or undone (G5), no live instance
//! leaves a view (G2), no view goes back (G7), no connection is refused over a restart (G10), nobody waits beyond the limit
//! (G6), no process panics, and a planned stop ends with status 0. After the last fault everything is well again within
//! 8 s.

mod plan;
mod system;
mod traffic;

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::{Findings, SECOND, rows};
use crate::kit::guarantees::{self, Sample};
use crate::kit::load::{Load, Outcome, Record};
use plan::{Plan, SERVICES, Step};
use system::System;
use traffic::Traffic;

rows! { "chaos"
    "C1" c1_random_mixes_of_faults chaos 180 18 "random mixes of overlapping faults";
}

/// Seeds of a run that names none.
const SEEDS: [u64; 3] = [1, 2, 3];
/// How long after the last fault everything is well.
const WELL_WITHIN: Duration = Duration::from_secs(8);
/// Calls a second to each gateway, beside those of the writers and readers.
const RATE: f64 = 40.0;
/// Around the end of a fault of a gateway its calls are not judged: those that were on their way then.
const MARGIN: Duration = Duration::from_millis(1500);

async fn chaos(time: Duration) -> Findings {
    let mut findings = Findings::default();
    let seeds = std::env::var("CHAOS_SEEDS").ok().filter(|text| !text.is_empty());
    let (seeds, each) = match seeds {
        Some(text) => (self::seeds(&text).unwrap_or_else(|error| panic!("{error}")), 60 * SECOND),
        None => (SEEDS.to_vec(), time / 3),
    };
    let mut wrong = Vec::new();
    for seed in seeds {
        let plan = Plan::new(seed, each);
        let broken = run(&plan, &mut findings).await;
        if !broken.is_empty() {
            eprintln!("{plan:#?}");
            wrong.push(seed);
        }
        let verdict = if broken.is_empty() { "held".to_owned() } else { broken.join("; ") };
        println!("      seed {seed}: {} faults in {} s: {verdict}", plan.steps.len(), each.as_secs());
    }
    findings.count(&format!("seeds that broke a guarantee {wrong:?}"), wrong.len(), 0);
    findings
}

/// Returns the seeds that a text means: `17`, `1-50`, or several of them with commas.
fn seeds(text: &str) -> Result<Vec<u64>, String> {
    let wrong = || format!("{text:?} are no seeds: 17, 1-50 or 3,17");
    let mut all = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let first: u64 = first.trim().parse().map_err(|_| wrong())?;
        let last: u64 = last.trim().parse().map_err(|_| wrong())?;
        if first > last || last - first >= 1000 {
            return Err(wrong());
        }
        all.extend(first..=last);
    }
    Ok(all)
}

/// Plays one schedule; returns what broke.
async fn run(plan: &Plan, findings: &mut Findings) -> Vec<String> {
    let system = System::start(plan).await;
    let traffic = Traffic::new(system.gateways());
    let loads: Vec<_> = system.gateways().into_iter().map(load).map(Load::start).collect();
    let (start, end) = (Instant::now(), CancellationToken::new());
    let faults = async {
        futures_util::future::join_all(plan.steps.iter().map(|step: &Step| system.play(start, *step))).await;
        end.cancel();
    };
    tokio::join!(traffic.run(plan.seed, &end), faults);

    let over = Instant::now();
    let mut broken = Vec::new();
    while !(traffic.all_well().await && all_listed(&system).await) {
        if over.elapsed() > 3 * WELL_WITHIN {
            broken.push("not all is well 24 s after the last fault".to_owned());
            break;
        }
        sleep(SECOND / 20).await;
    }
    let seed = plan.seed;
    findings.time(&format!("seed {seed}: all well after"), over.elapsed(), WELL_WITHIN);
    for (number, load) in loads.into_iter().enumerate() {
        broken.extend(judge_calls(&system, number, &load.finish().await, findings).await);
    }
    let (writes, found, odd) = traffic.finish().await;
    let acknowledged = writes.iter().filter(|write| write.acknowledged).count();
    findings.tell(&format!("seed {seed}: writes"), writes.len() as f64, "");
    findings.share(&format!("seed {seed}: writes acknowledged"), acknowledged as f64, 10.0);
    findings.share(&format!("seed {seed}: reads answered"), traffic.reads() as f64, 10.0);
    broken.extend(guarantees::no_double_effect(&writes, &found).err());
    if !odd.is_empty() {
        broken.push(format!("G5 while it ran: {} times, {:?}", odd.len(), &odd[..odd.len().min(3)]));
    }
    for samples in system.finish().await {
        broken.extend(judge_view(plan, &system, &samples));
    }
    broken.append(&mut *system.broken.lock().await);
    broken
}

fn load(gateway: std::net::SocketAddr) -> Load {
    Load::of(gateway, RATE, |number| {
        let paths =
            ["/api/topic/list", "/api/profile/get_profile?user_id=200", "/api/feed/get_feeds?user_id=100"];
        crate::kit::http::request("GET", paths[usize::try_from(number % 3).expect("below 3")], "")
    })
}

/// Returns true if every gateway lists every instance as certain and connected.
async fn all_listed(system: &System) -> bool {
    for admin in system.admins().await {
        let status = crate::kit::http::get(admin, "/status").await.json();
        for service in SERVICES {
            let listed = status["registry"]["services"][service].as_array().cloned().unwrap_or_default();
            let called = status["clients"][0][service].as_array().cloned().unwrap_or_default();
            let certain = listed.iter().filter(|instance| instance["limbo"] == false).count();
            let up = called.iter().filter(|endpoint| endpoint["state"] == "up").count();
            if (certain, up) != (plan::INSTANCES, plan::INSTANCES) {
                return false;
            }
        }
    }
    true
}

/// Judges the calls to one gateway while it ran; returns what broke. How long they took counts on a quiet machine only.
async fn judge_calls(
    system: &System,
    number: usize,
    record: &Record,
    findings: &mut Findings,
) -> Vec<String> {
    let away = system.away.lock().await;
    let ran = |from: Instant, to: Instant| {
        let mut windows = away.iter().filter(|(gateway, ..)| *gateway == number);
        windows.all(|(_, begun, ended)| to < *begun || from > *ended + MARGIN)
    };
    let calls = record.calls.iter().filter(|call| ran(call.due, call.ended)).cloned().collect();
    let judged = Record { calls, unsent: record.unsent, limit: record.limit };
    findings.timed_guarantee("G6", guarantees::bounded_wait(&judged));
    let mut broken = Vec::new();
    let lost = judged.calls.iter().filter(|call| !matches!(call.outcome, Outcome::Status(_)));
    let lost: Vec<_> = lost.map(|call| format!("{:?}", call.outcome)).collect();
    if !lost.is_empty() {
        broken.push(format!(
            "calls without an answer of a gateway that ran: {} {:?}",
            lost.len(),
            lost.first()
        ));
    }
    let refused = record.calls.iter().filter(|call| matches!(call.outcome, Outcome::Refused(_))).count();
    if refused > 0 {
        broken.push(format!("G10 refused: {refused} times"));
    }
    broken
}

/// Judges what one gateway process showed of its view.
fn judge_view(plan: &Plan, system: &System, samples: &[Sample]) -> Vec<String> {
    let alive = plan.untouched().into_iter();
    let alive = alive.map(|instance| (SERVICES[instance.0].to_owned(), system.addr(instance).to_string()));
    let alive: std::collections::BTreeSet<_> = alive.collect();
    // a process that has just started may know nothing
    let known = samples.iter().position(|sample| alive.is_subset(&sample.instances));
    let known = &samples[known.unwrap_or(samples.len())..];
    let mut broken = Vec::new();
    if !alive.is_empty() && !known.is_empty() {
        broken.extend(guarantees::no_premature_death(known, &alive).err());
    }
    if samples.len() > 1 {
        broken.extend(guarantees::monotone_view(samples).err());
    }
    broken
}

#[test]
fn seeds_are_read() {
    assert_eq!(seeds("17"), Ok(vec![17]));
    assert_eq!(seeds("1-3,9"), Ok(vec![1, 2, 3, 9]));
    for wrong in ["", "x", "3-1", "1-5000", "1,,2", "-1"] {
        assert!(seeds(wrong).is_err(), "{wrong}");
    }
}
