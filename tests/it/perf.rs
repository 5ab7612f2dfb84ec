//! Two builds of the program against each other: requests a second, and processor time a request. `tests/perf`
//! runs it.

mod durability;

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::kit::ab::{Comparison, median};
use crate::kit::cpu::{Meter, Others};
use crate::kit::etcd::Etcd;
use crate::kit::http::{Connection, put, request, send};
use crate::kit::{etcd, free_addr, wait_for};

/// Connections of the driver, each with one request at a time.
const CALLERS: usize = 32;
/// Feeds in an answer, and the length of each one's content: an answer has about 3.7 kB.
const FEEDS: usize = 20;
const CONTENT: usize = 55;
const PATH: &str = "/api/feed/get_feeds?user_id=7&size=20";

/// A program. Killed when dropped.
struct Program(Child);

impl Program {
    fn start(program: &str, args: &[&str]) -> Self {
        let mut command = Command::new(program);
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("MSA__")) {
            command.env_remove(name);
        }
        let child = etcd::quiet(command).args(args).spawn();
        Self(child.unwrap_or_else(|error| panic!("{program}: {error}")))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A gateway and a feed service of one build over an etcd, with the feeds of one user.
struct Build {
    gateway: Program,
    feed: Program,
    addr: SocketAddr,
    _etcd: Etcd,
}

impl Build {
    /// Starts it, fills it and waits until a whole answer comes.
    async fn start(program: &str, store: &str) -> Self {
        let etcd = Etcd::start().await;
        let (addr, registry) = (free_addr(), etcd.addr.to_string());
        let [listen, feed, admin, feed_admin] =
            [addr, free_addr(), free_addr(), free_addr()].map(|addr| addr.to_string());
        let common = ["--etcd-addr", registry.as_str(), "--log-level", "warn"];
        let args = ["feed", "--addr", &feed, "--debug-addr", &feed_admin, "--store", store];
        let feed = Program::start(program, &[&args[..], &common].concat());
        let args = ["apigateway", "--http-addr", &listen, "--debug-addr", &admin];
        let gateway = Program::start(program, &[&args[..], &common].concat());
        // answers, not lines of the log: those of an older build may be others
        wait_for("feed is called", || async {
            let answer = send(addr, request("GET", PATH, "")).await.ok()?;
            [200, 404].contains(&answer.status.as_u16()).then_some(())
        })
        .await;
        for id in 1..=FEEDS {
            let body = format!(r#"{{"id":{id},"user_id":7,"content":"{}"}}"#, "x".repeat(CONTENT));
            assert_eq!(put(addr, "/api/feed/create_feed", &body).await.status, 200);
        }
        let answer = send(addr, request("GET", PATH, "")).await.expect("an answer");
        assert!((2500..4500).contains(&answer.body.len()), "{} bytes", answer.body.len());
        Self { gateway, feed, addr, _etcd: etcd }
    }

    /// Asks as fast as it answers, and measures; panics if a call fails.
    async fn measure(&self, time: Duration) -> Sample {
        self.ask(time / 5).await;
        let meters = [&self.gateway, &self.feed].map(|program| Meter::start(program.0.id()));
        let begun = Instant::now();
        let calls = f64::from(self.ask(time).await);
        let took = begun.elapsed().as_secs_f64();
        let [gateway, feed] = meters.map(|meter| meter.seconds() / calls * 1e6);
        Sample { rate: calls / took, gateway, feed }
    }

    async fn ask(&self, time: Duration) -> u32 {
        let (until, addr) = (Instant::now() + time, self.addr);
        let mut callers = JoinSet::new();
        for _ in 0..CALLERS {
            callers.spawn(async move {
                let mut connection = Connection::open(addr).await.expect("it listens");
                let mut calls = 0;
                while Instant::now() < until {
                    let answer = connection.get(PATH).await.expect("an answer");
                    assert_eq!((answer.status.as_u16(), answer.degraded()), (200, ""));
                    calls += 1;
                }
                calls
            });
        }
        callers.join_all().await.into_iter().sum()
    }
}

/// What one build did in one round.
#[derive(Clone, Copy, Debug)]
struct Sample {
    /// Requests a second.
    rate: f64,
    /// Processor time a request, microseconds.
    gateway: f64,
    feed: f64,
}

/// One number of a sample and its name.
type Column = (&'static str, fn(&Sample) -> f64);

const COLUMNS: [Column; 3] = [
    ("requests/s", |sample| sample.rate),
    ("gateway, CPU us/request", |sample| sample.gateway),
    ("feed, CPU us/request", |sample| sample.feed),
];

/// `tests/perf` sets `PERF_BEFORE`, `PERF_AFTER` (programs), `PERF_ROUNDS`, `PERF_SECONDS` (of one measurement) and
/// `PERF_STORE`.
#[tokio::test]
#[ignore = "compares two builds; run by tests/perf"]
async fn compare() {
    let var =
        |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run tests/perf"));
    let programs = [var("PERF_BEFORE"), var("PERF_AFTER")];
    let rounds: usize = var("PERF_ROUNDS").parse().expect("a number of rounds");
    let time = Duration::from_secs_f64(var("PERF_SECONDS").parse().expect("a number of seconds"));
    let store = var("PERF_STORE");
    assert!(rounds > 0, "no rounds");

    for (name, program) in ["before", "after"].iter().zip(&programs) {
        let output = Command::new(program).arg("--version").stdin(Stdio::null()).output();
        let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
        println!("{name:<7} {} ({program})", String::from_utf8_lossy(&output.stdout).trim());
    }
    println!("{rounds} rounds of 2 x {} s, {CALLERS} connections, store {store}\n", time.as_secs_f64());
    let (others, mut samples) = (Others::watch(), [Vec::new(), Vec::new()]);
    for round in 0..rounds {
        // both in every round, the order turned round every time
        let order = if round % 2 == 0 { [0, 1] } else { [1, 0] };
        for side in order {
            // memory ends with its process; a file would have to
            let dir = tempfile::tempdir().expect("a directory");
            let store = store.replace("DIR", &dir.path().display().to_string());
            let build = Build::start(&programs[side], &store).await;
            samples[side].push(build.measure(time).await);
        }
        let [before, after] = [0, 1].map(|side| samples[side][round]);
        println!(
            "round {:>2}: {:>7.0} -> {:>7.0} requests/s, gateway {:>6.1} -> {:>6.1} us, feed {:>6.1} -> {:>6.1} us",
            round + 1,
            before.rate,
            after.rate,
            before.gateway,
            after.gateway,
            before.feed,
            after.feed
        );
    }
    let others = others.share();
    println!("\n{:<26} {:>9} {:>9} {:>7}  95 % interval", "median", "before", "after", "ratio");
    for (name, number) in COLUMNS {
        let numbers = [0, 1].map(|side| samples[side].iter().map(number).collect::<Vec<_>>());
        let ratios = numbers[0].iter().zip(&numbers[1]).map(|(before, after)| after / before).collect();
        let compared = Comparison::of(ratios, others);
        let [before, after] = numbers.map(|mut numbers| median(&mut numbers));
        let Comparison { median, low, high, .. } = compared;
        println!("{name:<26} {before:>9.1} {after:>9.1} {median:>7.3}  {low:.3} to {high:.3}");
    }
    let void = if others > 0.2 { ": a void comparison, take it again on a quiet machine" } else { "" };
    println!("\nother processes took {:.0} % of the cores{void}", others * 100.0);
}
