//! The comparison: sides in turn, round by round.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use serde::Serialize;

use super::kit::ab::median;
use super::kit::cpu::Others;
use super::load::{self, Amount, Kind, Load, Measured};
use super::options::Options;
use super::process::{Clock, memory};
use super::sides::{self, Made, Running, Side};
use super::stack::{Etcd, PATH};
use super::{goals, report, wrk};

/// Least share of what was offered that must be answered for a measurement at a fixed rate to count.
const ANSWERED: f64 = 0.99;
/// Longest time that half of the calls may be sent late, microseconds: what comes in bursts costs less.
const LATE: f64 = 500.0;
/// Share of the peak of the peer `go` at which tails are compared.
const TAIL: f64 = 0.7;
/// Rate at which the memory of a gateway is read, and seconds before that.
const MEMORY_RATE: f64 = 2000.0;
const MEMORY_SECONDS: f64 = 8.0;
/// Of a side before it is measured.
const WARM_UP: u32 = 1;

/// A number of a side, one for each round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Measure {
    /// Requests a second of a closed loop.
    Peak,
    /// Latencies of a closed loop, ms.
    PeakP50,
    PeakP99,
    /// Processor time of a request at the fixed rate, microseconds: of the gateway (of a client's side its caller), of the
    /// services, of all.
    GatewayCpu,
    ServiceCpu,
    AllCpu,
    /// Latencies at the fixed rate, from when a request was due: the mean, the median and p99, microseconds.
    Mean,
    Median,
    P99,
    /// How late calls were sent there, half of them and 99 of 100, microseconds.
    LateMedian,
    LateP99,
    /// p99 at a share of the peak of `go`, microseconds.
    Tail,
    /// Resident memory of the gateway, MB.
    Memory,
}

/// What was found of each side, by measure; `None` is a round that does not count.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Results {
    pub rounds: usize,
    /// Share of the cores that others took.
    pub others: f64,
    values: BTreeMap<String, BTreeMap<String, Vec<Option<f64>>>>,
    /// What did not count, and why.
    pub remarks: Vec<String>,
}

impl Results {
    /// Returns a number, if it counts.
    pub fn value(&self, side: &str, measure: Measure, round: usize) -> Option<f64> {
        *self.values.get(side)?.get(&format!("{measure:?}"))?.get(round)?
    }

    /// Returns the median of the rounds that count.
    pub fn median(&self, side: &str, measure: Measure) -> Option<f64> {
        let values = self.values.get(side)?.get(&format!("{measure:?}"))?;
        let mut values: Vec<f64> = values.iter().flatten().copied().collect();
        (!values.is_empty()).then(|| median(&mut values))
    }

    /// Returns the least and the greatest of the rounds that count.
    pub fn spread(&self, side: &str, measure: Measure) -> Option<(f64, f64)> {
        let values = self.values.get(side)?.get(&format!("{measure:?}"))?.iter().flatten();
        values.fold(None, |spread, value| {
            let (low, high) = spread.unwrap_or((*value, *value));
            Some((low.min(*value), high.max(*value)))
        })
    }

    fn note(&mut self, side: &str, measure: Measure, value: Option<f64>) {
        let side = self.values.entry(side.to_owned()).or_default();
        side.entry(format!("{measure:?}")).or_default().push(value);
    }
}

/// Where cargo has built our program.
pub fn program() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_microservice-app"))
}

/// Returns the build of our program that is measured.
pub fn measured(options: &Options) -> PathBuf {
    options.program.clone().unwrap_or_else(program)
}

pub fn run(options: &Options) -> ExitCode {
    let chosen = match choose(options) {
        Ok(chosen) => chosen,
        Err(wrong) => {
            eprintln!("tests/perf: {wrong}");
            return ExitCode::from(2);
        }
    };
    let (etcd, program) = (Etcd::start(), measured(options));
    let others = Others::watch();
    let peers: Vec<_> = options.peers.iter().flat_map(|peer| &peer.processes).copied().collect();
    let peer_clocks: Vec<_> = peers.iter().map(|process| Clock::start(*process)).collect();
    let begun = std::time::Instant::now();
    let mut results = Results { rounds: options.rounds, ..Results::default() };
    for round in 0..options.rounds {
        let mut order: Vec<_> = chosen.iter().collect();
        order.rotate_left(round % chosen.len());
        if round % 2 == 1 {
            order.reverse();
        }
        for side in order {
            measure(side, &side.start(&program, &etcd), options, &mut results);
        }
        println!("round {} of {} after {:.0} s", round + 1, options.rounds, begun.elapsed().as_secs_f64());
    }
    if options.builds.is_none() {
        tails(&chosen, options, &etcd, &mut results);
        memories(&chosen, options, &etcd, &mut results);
    }
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as f64;
    let of_peers: f64 = peer_clocks.iter().map(Clock::seconds).sum();
    results.others = (others.share() - of_peers / begun.elapsed().as_secs_f64() / cores).max(0.0);
    report::write(options, &chosen, &results, &goals::judge(&results))
}

fn choose(options: &Options) -> Result<Vec<Side>, String> {
    if let Some([before, after]) = &options.builds {
        let url = if options.sqlite { "sqlite:DIR/feed.db" } else { "memory:" };
        let side = |name: &str, program: &PathBuf| {
            let made = Made::Build(program.clone(), url);
            Side { name: name.to_owned(), about: report::version(program), made, layer: false }
        };
        return Ok(vec![side("before", before), side("after", after)]);
    }
    let all = sides::all(&options.peers);
    if let Some(name) = options.names.iter().find(|name| all.iter().all(|side| side.name != **name)) {
        let names: Vec<_> = all.iter().map(|side| side.name.as_str()).collect();
        return Err(format!("there is no side {name}; there are {}", names.join(", ")));
    }
    let wanted = |side: &Side| {
        if options.names.is_empty() {
            !(options.short && side.layer)
        } else {
            options.names.contains(&side.name)
        }
    };
    Ok(all.into_iter().filter(wanted).collect())
}

/// Measures a side at its peak, and at the fixed rate.
fn measure(side: &Side, running: &Running, options: &Options, results: &mut Results) {
    let processes = running.processes();
    let warm_up = f64::from(WARM_UP);
    if !side.layer {
        let (rate, p50, p99, failed) = if running.kind == Kind::Http {
            wrk::run(&running.url(), wrk::CONNECTIONS, WARM_UP);
            let peak = wrk::run(&running.url(), wrk::CONNECTIONS, options.seconds);
            (peak.rate, peak.p50, peak.p99, peak.failed)
        } else {
            let amount = Amount::Calls(wrk::CONNECTIONS);
            let measured = load(running, amount, warm_up, f64::from(options.seconds), &processes);
            let outcome = &measured.outcome;
            let rate = outcome.answered as f64 / measured.seconds;
            (rate, outcome.p50 / 1e3, outcome.p99 / 1e3, outcome.failed)
        };
        if failed > 0 {
            results.remarks.push(format!("{}: {failed} requests failed at the peak", side.name));
        }
        for (measure, value) in [(Measure::Peak, rate), (Measure::PeakP50, p50), (Measure::PeakP99, p99)] {
            results.note(&side.name, measure, (failed == 0).then_some(value));
        }
    }
    let measured = load(running, Amount::Rate(options.rate), warm_up, f64::from(options.seconds), &processes);
    let counts = counts(&measured, &side.name, options.rate, results);
    let outcome = &measured.outcome;
    let each = |seconds: f64| seconds / outcome.answered as f64 * 1e6;
    let (all, load) = (&measured.cpu[..processes.len()], measured.cpu[processes.len()]);
    let gateway = if running.gateway.is_some() { all[0] } else { load };
    let services = all[usize::from(running.gateway.is_some())..].iter().fold(0.0, |sum, one| sum + one);
    for (measure, value) in [
        (Measure::GatewayCpu, each(gateway)),
        (Measure::ServiceCpu, each(services)),
        (Measure::AllCpu, each(gateway + services)),
        (Measure::Mean, outcome.mean),
        (Measure::Median, outcome.p50),
        (Measure::P99, outcome.p99),
        (Measure::LateMedian, outcome.late_p50),
        (Measure::LateP99, outcome.late_p99),
    ] {
        results.note(&side.name, measure, counts.then_some(value));
    }
}

fn load(running: &Running, amount: Amount, warm_up: f64, seconds: f64, processes: &[u32]) -> Measured {
    let load =
        Load { kind: running.kind, addr: running.addr, path: PATH.to_owned(), amount, warm_up, seconds };
    load::measure(&load, processes)
}

/// Returns whether a measurement at a fixed rate counts, and notes why not.
fn counts(measured: &Measured, side: &str, rate: f64, results: &mut Results) -> bool {
    let outcome = &measured.outcome;
    let share = outcome.answered as f64 / outcome.offered.max(1) as f64;
    let counts = share >= ANSWERED && outcome.failed == 0 && outcome.late_p50 < LATE;
    if !counts {
        results.remarks.push(format!(
            "{side} at {rate:.0}/s does not count: {:.1} % answered, {} failed {}, sent late by {:.0} us (median)",
            share * 100.0,
            outcome.failed,
            outcome.error,
            outcome.late_p50
        ));
    }
    counts
}

/// Compares the tails of our chain and of the peer `go` at a share of its peak.
fn tails(chosen: &[Side], options: &Options, etcd: &Etcd, results: &mut Results) {
    let Some(peak) = results.median("go", Measure::Peak) else { return };
    let (program, rate) = (measured(options), (peak * TAIL).round());
    let sides: Vec<_> =
        chosen.iter().filter(|side| ["bare", "everything", "go"].contains(&side.name.as_str())).collect();
    for round in 0..options.rounds {
        for step in 0..sides.len() {
            let side = sides[(round + step) % sides.len()];
            let running = side.start(&program, etcd);
            let measured = load(&running, Amount::Rate(rate), 1.0, f64::from(options.seconds), &[]);
            let counts = counts(&measured, &side.name, rate, results);
            results.note(&side.name, Measure::Tail, counts.then_some(measured.outcome.p99));
        }
    }
}

/// Reads the memory of gateways under a little load; in a short run only of the one that has a goal.
fn memories(chosen: &[Side], options: &Options, etcd: &Etcd, results: &mut Results) {
    let wanted = |side: &&Side| {
        let gateway = matches!(side.made, Made::Chain(..) | Made::Envoy | Made::Peer(_));
        gateway && !side.layer && (!options.short || side.name == "everything")
    };
    for side in chosen.iter().filter(wanted) {
        let running = side.start(&measured(options), etcd);
        load(&running, Amount::Rate(MEMORY_RATE), 0.0, MEMORY_SECONDS, &[]);
        results.note(&side.name, Measure::Memory, running.gateway.map(memory));
    }
}
