//! What watching costs: collectors and a standard error in trouble, scrapers, and the spans themselves.

use std::cell::Cell;
use std::net::SocketAddr;
use std::time::Duration;

use rustix::process::Signal;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Bound, Findings, SECOND, rounds, rows};
use crate::kit::collector::{Collector, Manner};
use crate::kit::cpu::Meter;
use crate::kit::etcd::Etcd;
use crate::kit::http::{self, Connection};
use crate::kit::load::Load;
use crate::kit::stderr::{Trouble, Troubled};
use crate::kit::system::Role;
use crate::kit::{ab, free_addr, guarantees, wait_for};

rows! { "telemetry"
    "F29" f29_the_collector_is_in_trouble collector_in_trouble 120 4 "the collector is dead, slow, answers 500";
    "F30" f30_a_hundred_scrapers scrapers 120 3 "100 scrapers, each once a second";
    "F50" f50_standard_error_is_in_trouble stderr_in_trouble 80 8 "standard error is blocked, slow, closed, on a full disk";
    "P5" p5_what_tracing_costs tracing 60 3 "requests/s with 1 % and with 100 % of them traced";
}

const LIST: &str = "/api/topic/list";
/// Callers that ask again as soon as they are answered.
const CALLERS: usize = 16;
/// Most spans that wait, so that a short form fills it.
const QUEUE: usize = 1000;
/// What the queue, the batch in hand and its JSON may add to a process, bytes.
const MEMORY: u64 = 32 << 20;

/// A gateway and a topic service over etcd, with their own part of it.
struct System {
    gateway: Role,
    topic: Role,
}

impl System {
    async fn start(etcd: &Etcd, name: &str, collector: &str, ratio: &str, queue: usize) -> Self {
        let (prefix, queue) = (format!("/{name}/"), queue.to_string());
        let mut env = vec![
            ("MSA__REGISTRY__PREFIX", prefix.as_str()),
            ("MSA__TRACE__SAMPLE_RATIO", ratio),
            ("MSA__TRACE__QUEUE", &queue),
        ];
        if !collector.is_empty() {
            env.push(("MSA__TRACE__ZIPKIN_ADDR", collector));
        }
        let start = |role| Role::start(&etcd.addr.to_string(), role, "127.0.0.1:0", &env);
        let system = Self { topic: start("topic"), gateway: start("apigateway") };
        system.gateway.wait_for_certain("topic", 1).await;
        system
    }

    fn roles(&self) -> [&Role; 2] {
        [&self.gateway, &self.topic]
    }

    /// Calls as fast as it answers; returns calls, and failed ones among them.
    async fn calls(&self, time: Duration) -> (usize, usize) {
        calls(self.gateway.addr, time).await
    }

    /// Returns the sum of a metric over both processes.
    async fn metric(&self, begin: &str) -> f64 {
        self.gateway.metric(begin).await + self.topic.metric(begin).await
    }
}

/// Calls a gateway as fast as it answers; returns calls, and failed ones among them.
async fn calls(addr: SocketAddr, time: Duration) -> (usize, usize) {
    let until = Instant::now() + time;
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        callers.spawn(async move {
            let (mut calls, mut failed) = (0, 0);
            let mut connection = Connection::open(addr).await.expect("it listens");
            while Instant::now() < until {
                let answer = connection.get(LIST).await;
                calls += 1;
                if !answer.is_ok_and(|answer| answer.status == 200) {
                    failed += 1;
                    connection = Connection::open(addr).await.expect("it listens");
                }
            }
            (calls, failed)
        });
    }
    let each = callers.join_all().await.into_iter();
    each.fold((0, 0), |(calls, failed), caller| (calls + caller.0, failed + caller.1))
}

/// Makes calls for a time; returns the processor time of each, seconds, and how many failed.
async fn cost(system: &System, time: Duration) -> (f64, usize) {
    let meters = system.roles().map(|role| Meter::start(role.process.id()));
    let begun = Instant::now();
    let (calls, failed) = system.calls(time).await;
    let share: f64 = meters.iter().map(Meter::share).sum();
    (share * begun.elapsed().as_secs_f64() / calls.max(1) as f64, failed)
}

async fn collector_in_trouble(time: Duration) -> Findings {
    let (etcd, mut findings) = (Etcd::start().await, Findings::default());
    let healthy = Collector::start(Manner::Discard);
    let slow = Collector::start(Manner::Slow(5 * SECOND));
    let refusing = Collector::start(Manner::Refuse);
    let dead = format!("http://{}/api/v2/spans", free_addr());
    let base = System::start(&etcd, "healthy", &healthy.url(), "1", QUEUE).await;
    base.calls(SECOND / 2).await;
    let rounds = rounds(time, 3 * 2);
    let phase = time / (3 * 2 * rounds);
    for (trouble, url) in [("dead", &dead), ("slow", &slow.url()), ("500", &refusing.url())] {
        let what = |text: &str| format!("{trouble}: {text}");
        let system = System::start(&etcd, trouble, url, "1", QUEUE).await;
        let (_, mut failed) = cost(&system, SECOND / 2).await;
        let before = system.roles().map(|role| role.process.resident());
        let (mut most, mut grown) = (0.0_f64, 0);
        let compared = ab::compare(
            rounds as usize,
            async || cost(&base, phase).await.0,
            async || {
                let (each, lost) = cost(&system, phase).await;
                failed += lost;
                for (role, before) in system.roles().into_iter().zip(before) {
                    most = most.max(role.metric("trace_spans_queued").await);
                    grown = grown.max(role.process.resident().saturating_sub(before));
                }
                each
            },
        );
        let compared = compared.await;
        findings.compared_at_most(&what("CPU a call / with a healthy one"), &compared, 1.05);
        findings.count(&what("failed calls"), failed, 0);
        findings.count(&what("spans in the queue of a process"), most as usize, QUEUE);
        findings.count(&what("growth of a process, MB"), (grown >> 20) as usize, (MEMORY >> 20) as usize);
        // G9, over calls that come when they are due
        let record = Load::get(system.gateway.addr, 200.0, LIST).run(phase.max(SECOND / 2)).await;
        findings.guarantee(&what("G9"), guarantees::telemetry_is_free_to_fail(&record));

        // nothing is lost without being counted: the gateway makes two spans of a call, the service one
        let served =
            "http_server_request_duration_seconds_count{code=\"200\",method=\"GET\",route=\"/api/topic";
        let made = 3.0 * system.gateway.metric(served).await;
        let told = async || {
            let (sent, dropped) =
                (system.metric("trace_spans_exported_total"), system.metric("trace_spans_dropped_total"));
            (sent.await, dropped.await, system.metric("trace_spans_queued").await)
        };
        let (sent, dropped, queued) = told().await;
        findings.tell(&what("spans made"), made, "");
        findings.tell(&what("sent"), sent, "");
        findings.share(&what("dropped and counted"), dropped, 1.0);
        // what is in hand is in neither count: at most a batch in each process
        let missing = made - sent - dropped - queued;
        findings.add(&what("spans unaccounted for"), missing.abs(), "", Bound::AtMost(1000.0), false);
    }
    findings
}

async fn stderr_in_trouble(time: Duration) -> Findings {
    /// What a slow reader takes, bytes a second: a tenth of what the load writes.
    const SLOW: usize = 10_000;
    let mut findings = Findings::default();
    for (name, trouble) in [
        ("blocked", Trouble::Blocked),
        ("slow", Trouble::Blocked),
        ("closed", Trouble::Closed),
        ("full disk", Trouble::Full),
    ] {
        let what = |text: &str| format!("{name}: {text}");
        let mut up = Troubled::up(trouble);
        if name == "slow" {
            up.read_slowly(SLOW);
        }
        let gateway = up.ready().await;
        calls(gateway, SECOND / 4).await;
        let before = up.resident();
        // the fault begins when lines are lost: the queue is full, or nothing can be written
        let mut lost = 0.0;
        for _ in 0..60 {
            calls(gateway, SECOND / 2).await;
            lost = up.metric("log_lines_dropped_total").await;
            if lost > 0.0 {
                break;
            }
        }
        findings.share(&what("lines lost and counted"), lost, 1.0);
        let record = Load::get(gateway, 200.0, LIST).run(time / 4).await;
        // on a busy machine a call takes its second; a process that waits for standard error answers none at all
        findings.timed_guarantee(&what("G9"), guarantees::telemetry_is_free_to_fail(&record));
        let (made, failed) = calls(gateway, SECOND / 4).await;
        findings.share(&what("good calls while lines are lost"), (made - failed) as f64, 1.0);
        findings.tell(&what("p99, s"), record.latency(0.99).as_secs_f64(), "");
        let grown = up.resident().saturating_sub(before);
        findings.count(&what("growth of the process, MB"), (grown >> 20) as usize, (MEMORY >> 20) as usize);
        let alive = up.admin("/livez").await.is_ok_and(|answer| answer.body == "ok\n");
        findings.count(&what("/livez unanswered"), usize::from(!alive), 0);
        let begun = Instant::now();
        up.signal(Signal::TERM);
        let status = up.wait(10 * SECOND);
        findings.count(&what("stops with another status than 0"), usize::from(!status.success()), 0);
        findings.time(&what("from SIGTERM to the end"), begun.elapsed(), 2 * SECOND);
    }
    findings
}

/// Lets so many ask for the metrics once a second each, until `stop`; returns how often they did, and how often
/// there was no page.
async fn scrape(admin: SocketAddr, scrapers: usize, stop: CancellationToken) -> (i32, usize) {
    let mut tasks = JoinSet::new();
    for n in 0..scrapers {
        let until = stop.clone();
        tasks.spawn(async move {
            let (mut scraped, mut failed) = (0, 0);
            let mut due = Instant::now() + SECOND * n as u32 / scrapers as u32;
            let mut connection = Connection::open(admin).await.expect("it listens");
            while until.run_until_cancelled(tokio::time::sleep_until(due)).await.is_some() {
                due += SECOND;
                let answer = connection.get("/metrics").await;
                scraped += 1;
                failed += usize::from(!answer.is_ok_and(|answer| answer.body.contains("\nbuild_info{")));
            }
            (scraped, failed)
        });
    }
    let each = tasks.join_all().await.into_iter();
    each.fold((0, 0), |(scraped, failed), one| (scraped + one.0, failed + one.1))
}

async fn scrapers(time: Duration) -> Findings {
    /// So many, each once a second.
    const SCRAPERS: usize = 100;
    /// Calls a second. A phase of the full form has 1500, so that 15 are beyond its p99.
    const RATE: f64 = 500.0;
    let (etcd, mut findings) = (Etcd::start().await, Findings::default());
    let system = System::start(&etcd, "scraped", "", "0", QUEUE).await;
    let rounds = if time >= 40 * SECOND { 20 } else { rounds(time, 2) };
    let phase = time / (2 * rounds);
    let (mut failed, mut scraped, mut unanswered) = (0, 0, 0);
    let load = async || Load::get(system.gateway.addr, RATE, LIST).run(phase).await;
    let quiet = async || load().await.latency(0.99).as_secs_f64();
    let storm = async || {
        let (stop, admin) = (CancellationToken::new(), system.gateway.admin);
        let until = stop.clone();
        // on a thread of its own: what a page costs its reader is not what is measured
        let scraping = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(scrape(admin, SCRAPERS, until))
        });
        let record = load().await;
        stop.cancel();
        let (done, lost) = scraping.join().expect("the scrapers end");
        scraped += done;
        unanswered += lost;
        failed += record.failed().len();
        record.latency(0.99).as_secs_f64()
    };
    let compared = ab::compare(rounds as usize, quiet, storm).await;
    findings.p99_compared_below("p99 with the scrapers / without", &compared, 1.25);
    findings.count("failed calls", failed, 0);
    findings.share("scrapes", f64::from(scraped), 1.0);
    findings.count("scrapes without an answer", unanswered, 0);
    let page = http::get(system.gateway.admin, "/metrics").await.body;
    findings.tell("lines of a scrape", page.lines().count() as f64, "");
    findings
}

async fn tracing(time: Duration) -> Findings {
    let (etcd, mut findings) = (Etcd::start().await, Findings::default());
    let sink = Collector::start(Manner::Discard);
    let queue = 8192;
    let off = System::start(&etcd, "off", "", "0", queue).await;
    let rounds = rounds(time, 2 * 2);
    let phase = time / (2 * 2 * rounds);
    for (ratio, least) in [("0.01", 0.95), ("1", 0.65)] {
        let what = |text: &str| format!("traced {ratio}: {text}");
        let on = System::start(&etcd, &format!("r{ratio}"), &sink.url(), ratio, queue).await;
        for system in [&off, &on] {
            system.calls(SECOND / 4).await;
        }
        let failed = Cell::new(0);
        let rate = async |system: &System| {
            let (calls, lost) = system.calls(phase).await;
            failed.set(failed.get() + lost);
            calls as f64 / phase.as_secs_f64()
        };
        let compared =
            ab::compare(rounds as usize, async || rate(&off).await, async || rate(&on).await).await;
        findings.compared_at_least(&what("requests/s / without"), &compared, least);
        findings.count(&what("failed calls"), failed.get(), 0);
        let sent = wait_for("every span is sent", || async {
            let queued = on.metric("trace_spans_queued").await;
            (queued < 0.5).then_some(on.metric("trace_spans_exported_total").await)
        })
        .await;
        let dropped = on.metric("trace_spans_dropped_total").await;
        findings.tell(&what("spans sent"), sent, "");
        findings.ratio(&what("share of spans dropped"), dropped / (sent + dropped).max(1.0), 0.01);
    }
    findings
}
