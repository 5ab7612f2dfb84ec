//! Slow instances and callers in a hurry: good answers that are slow are not lost, and who gives little time harms
//! nobody else.

use std::time::Duration;

use tokio::time::Instant;

use super::callpath::{ATTEMPTS, Bench, LIST, RATE};
use super::{Findings, SECOND, rows};
use crate::kit::fake::Behaviour;
use crate::kit::load::{Load, Record};
use crate::kit::relay::Faults;

rows! { "callpath"
    "F46" f46_every_instance_is_slow_but_in_time all_slow 40 5 "every instance takes 0.3 s, which is well within the limit";
    "F47" f47_every_instance_is_slow_and_one_is_frozen slow_and_frozen 40 5 "the same, and one of three is frozen";
    "F48" f48_every_instance_is_slow_without_budgets slow_without_budgets 40 5 "the same as F46, then F47, without budgets for further attempts";
    "F49" f49_an_instance_freezes_beside_quick_ones frozen 40 5 "one of three quick instances freezes: the slowest answers";
    "F51" f51_callers_in_a_hurry hurry 30 4 "half of the callers give the only instance less time than it needs";
}

/// What a slow instance takes. Twice that is within the limit of a call.
const SLOW: Duration = Duration::from_millis(300);
/// `client.hedge_min_delay_ms`.
const MIN_DELAY: Duration = Duration::from_millis(10);

/// Attempts and requests of a bench's gateway since its start.
struct Counts {
    requests: f64,
    attempts: f64,
}

impl Counts {
    async fn read(bench: &Bench, requests: usize) -> Self {
        Self { requests: requests as f64, attempts: bench.gateway.metric(ATTEMPTS).await }
    }

    /// Returns how many attempts there were beyond one for each request since `before`, and how many requests.
    fn extra_since(&self, before: &Self) -> (f64, f64) {
        let requests = self.requests - before.requests;
        (self.attempts - before.attempts - requests, requests)
    }
}

/// What a bench did while its instances were slow.
struct Run {
    record: Record,
    begun: Instant,
    /// Further attempts, and requests: over the whole run, then over its second half.
    all: (f64, f64),
    second_half: (f64, f64),
    opened: f64,
}

/// Puts load on a bench, at first as it is. Then every instance is slow, and so many of them are frozen.
async fn run(bench: &Bench, time: Duration, frozen: usize) -> Run {
    let usual = bench.load(LIST).run((time / 2).min(10 * SECOND)).await;
    let sent = usual.calls.len();
    let first = Counts::read(bench, sent).await;
    let slow = Behaviour { delay: SLOW, ..Behaviour::default() };
    bench.fakes.iter().for_each(|fake| fake.behave(slow.clone()));
    bench.relays.iter().take(frozen).for_each(|relay| relay.set(Faults::cut()));
    let (begun, one) = (Instant::now(), bench.load(LIST).run(time / 2).await);
    let sent = sent + one.calls.len();
    let middle = Counts::read(bench, sent).await;
    let two = bench.load(LIST).run(time / 2).await;
    let last = Counts::read(bench, sent + two.calls.len()).await;
    let calls = [one.calls, two.calls].concat();
    Run {
        record: Record { calls, unsent: one.unsent + two.unsent, limit: two.limit },
        begun,
        all: last.extra_since(&first),
        second_half: last.extra_since(&middle),
        opened: opened(bench).await,
    }
}

/// Returns how often a breaker was opened.
async fn opened(bench: &Bench) -> f64 {
    bench
        .gateway
        .metric("client_breaker_transitions_total{method=\"ListTopics\",service=\"topic\",to=\"open\"}")
        .await
}

impl Run {
    fn judge_load(&self, findings: &mut Findings) {
        // two in 10 s are always allowed
        let windows = 1 + self.record.calls.len() / (10.0 * RATE) as usize;
        let most = |requests: f64| (requests / 20.0) as usize + 2 * windows;
        findings.count("further attempts", self.all.0 as usize, most(self.all.1));
        findings.count(
            "further attempts, second half",
            self.second_half.0 as usize,
            most(self.second_half.1),
        );
        findings.count("breakers that opened", self.opened as usize, 0);
    }
}

async fn all_slow(time: Duration) -> Findings {
    let (bench, mut findings) = (Bench::start(3).await, Findings::default());
    let run = run(&bench, time, 0).await;
    findings.no_failures(&run.record);
    run.judge_load(&mut findings);
    findings
}

async fn slow_and_frozen(time: Duration) -> Findings {
    let (bench, mut findings) = (Bench::start(3).await, Findings::default());
    let run = run(&bench, time, 1).await;
    findings.calls(&run.record);
    // what went to the frozen one before it was known to be, and beyond what the budget for hedges could save
    findings.share("share of good answers", run.record.ok_share(), 0.95);
    let known = run.record.between(run.begun + 2 * SECOND, run.begun + 3600 * SECOND);
    findings.count("failed calls after 2 s", known.failed().len(), 0);
    run.judge_load(&mut findings);
    findings
}

async fn slow_without_budgets(time: Duration) -> Findings {
    let none = [
        ("MSA__CLIENT__RETRY_BUDGET_PERCENT", "0"),
        ("MSA__CLIENT__RETRY_BUDGET_PER_SECOND", "0"),
        ("MSA__CLIENT__HEDGE_BUDGET_PERCENT", "0"),
    ];
    let bench = Bench::start_with(3, usize::MAX >> 3, &none).await;
    let mut findings = Findings::default();
    let slow = run(&bench, time / 2, 0).await;
    findings.no_failures(&slow.record);
    findings.count("further attempts", slow.all.0 as usize, 0);
    findings.count("breakers that opened", slow.opened as usize, 0);
    bench.relays[0].set(Faults::cut());
    let frozen = Instant::now();
    let record = bench.load(LIST).run(time / 2).await;
    findings.tell("one frozen: share of good answers", record.ok_share(), "");
    let known = record.between(frozen + 2 * SECOND, frozen + 3600 * SECOND);
    findings.share("one frozen: share of good answers after 2 s", known.ok_share(), 0.99);
    findings
}

/// The bound is the same for a row of any length: what is judged are the calls of the first seconds after each freeze, in
/// which the instance is found out. Only the number of freezes grows with the length.
async fn frozen(time: Duration) -> Findings {
    const FOUND_OUT: Duration = Duration::from_secs(2);
    const CALM: Duration = Duration::from_secs(3);
    let (bench, mut findings) = (Bench::start(3).await, Findings::default());
    let load = || Load::get(bench.gateway.addr, 2.0 * RATE, LIST);
    // what a start costs is no usual answer
    load().run(SECOND).await;
    // so many that the hedged calls of one freeze are far below a hundredth, and move the delay little
    let usual = load().run(7 * SECOND).await;
    // the delay is the 99th percentile, rounded up by an eighth at most
    let delay = usual.latency(0.99).mul_f64(1.125).max(MIN_DELAY);
    let most = delay + usual.latency(0.999);
    let (mut all, mut first, mut waited, mut late) = (usual.clone(), 0, 0, 0);
    for freeze in 0..(time.as_secs() / (FOUND_OUT + CALM).as_secs()).max(1) {
        let relay = &bench.relays[usize::try_from(freeze).expect("a few") % bench.relays.len()];
        relay.set(Faults::cut());
        let calls = load().run(FOUND_OUT).await.calls;
        first += calls.len();
        waited += calls.iter().filter(|call| call.latency() > delay).count();
        late += calls.iter().filter(|call| call.latency() > most).count();
        relay.heal();
        let calm = load().run(CALM).await;
        all.unsent += calm.unsent;
        all.calls.extend(calls.into_iter().chain(calm.calls));
    }
    findings.calls(&all);
    findings.share("share of good answers", all.ok_share(), 0.999);
    findings.tell("the delay and a usual answer", most.as_secs_f64(), "s");
    findings.tell("calls just after a freeze", first as f64, "");
    findings.share("  of them slower than the delay", waited as f64, 1.0);
    findings.ratio("  share slower than the delay and a usual answer", late as f64 / first as f64, 0.002);
    findings.count("breakers that opened", opened(&bench).await as usize, 0);
    findings
}

async fn hurry(time: Duration) -> Findings {
    let (bench, mut findings) = (Bench::start(1).await, Findings::default());
    bench.fakes[0].behave(Behaviour { delay: SLOW, ..Behaviour::default() });
    let hurried = Load::get(bench.gateway.addr, RATE / 2.0, LIST).within(Duration::from_millis(110)).start();
    let patient = Load::get(bench.gateway.addr, RATE / 2.0, LIST).run(time).await;
    let hurried = hurried.finish().await;
    findings.no_failures(&patient);
    let good = hurried.calls.iter().filter(|call| call.ok()).count();
    findings.count("good answers to those in a hurry", good, 0);
    findings.count("breakers that opened", opened(&bench).await as usize, 0);
    findings
}
