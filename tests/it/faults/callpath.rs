//! Faults of instances and of the way to them: what the client library must hide, and what it must not.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, TcpListener};
use std::sync::Mutex;
use std::time::Duration;

use futures_util::FutureExt as _;
use http::Request;
use http_body_util::Full;
use rustix::process::Signal;
use tokio::time::{Instant, sleep};

use super::{Findings, SECOND, rows};
use crate::kit::cpu::Meter;
use crate::kit::etcd::Etcd;
use crate::kit::fake::{Behaviour, Fake};
use crate::kit::guarantees::{self, Amplification, Write};
use crate::kit::http::request;
use crate::kit::load::{Load, Outcome, Record, Running};
use crate::kit::relay::{Direction, Faults, Relay};
use crate::kit::system::Role;
use crate::kit::{ab, quantile, wait_for};

/// Calls a second while a fault lasts.
pub(super) const RATE: f64 = 200.0;
pub(super) const LIST: &str = "/api/topic/list";
const VIEW: &str = "/api/topic/view?topic_id=1";

rows! { "callpath"
    "F1" f1_an_instance_crashes crash 60 4 "one of three instances crashes, again and again";
    "F2" f2_rolling_restart rolling_restart 300 9 "services and gateway restart in turn";
    "F3" f3_an_instance_freezes frozen 30 4 "one of three instances freezes";
    "F4" f4_one_of_eleven_is_slow one_slow 60 4 "one of eleven instances takes 2 s";
    "F5" f5_an_instance_answers_half_wrong half_wrong 60 4 "one of three instances fails half of its calls at once";
    "F6" f6_one_method_is_bad one_method 30 4 "one method of one instance fails";
    "F7" f7_every_instance_is_bad all_bad 30 4 "every instance fails every call";
    "F8" f8_every_instance_is_too_slow all_slow 30 4 "every instance answers long after the deadline";
    "F9" f9_overload overload 60 6 "ten times what the instances can do";
    "F10" f10_a_burst_after_silence burst_after_silence 600 3 "instances change while nobody calls, then a burst";
    "F23" f23_a_bad_network bad_network 60 6 "delay, jitter and loss on the way to the instances";
    "F24" f24_half_open_connections half_open 30 9 "connections end and the client is not told";
    "F25" f25_resets_in_the_midst_of_answers resets 30 3 "connections are reset in the midst of answers";
    "F26" f26_a_one_way_partition one_way 30 4 "what the gateway sends to one of three does not arrive";
    "F40" f40_answers_are_lost_after_the_effect lost_answers 30 3 "writes take effect and their answers are lost";
    "F45" f45_an_optional_dependency_is_gone optional_dependency 30 3 "profile's feed service is dead, then a black hole";
    "P4" p4_the_client_against_a_raw_channel against_raw_channel 30 2 "the whole client against a raw channel";
}

/// A gateway over etcd and so many fakes that are registered as topic, each behind a relay.
pub(super) struct Bench {
    etcd: Etcd,
    pub(super) gateway: Role,
    pub(super) fakes: Vec<Fake>,
    pub(super) relays: Vec<Relay>,
}

impl Bench {
    pub(super) async fn start(count: usize) -> Self {
        Self::start_with(count, usize::MAX >> 3, &[]).await
    }

    pub(super) async fn start_with(count: usize, workers: usize, env: &[(&str, &str)]) -> Self {
        let etcd = Etcd::start().await;
        let gateway = Role::start(&etcd.addr.to_string(), "apigateway", "127.0.0.1:0", env);
        let mut bench = Self { etcd, gateway, fakes: Vec::new(), relays: Vec::new() };
        for n in 0..count {
            let fake = Fake::start_with(Behaviour::default(), workers).await;
            let relay = Relay::start(fake.addr, n as u64).await;
            bench.register(relay.addr).await;
            bench.fakes.push(fake);
            bench.relays.push(relay);
        }
        bench.gateway.wait_for_certain("topic", count).await;
        bench
    }

    async fn register(&self, addr: SocketAddr) {
        let key = format!("/services/topic/{addr}");
        self.etcd.client().await.put(key, addr.to_string(), None).await.expect("etcd answers");
    }

    pub(super) fn load(&self, path: &'static str) -> Load {
        Load::get(self.gateway.addr, RATE, path)
    }

    /// Returns what was asked of the client and how often it tried. What is in flight was asked, too.
    async fn amplification(&self, load: &Running) -> Amplification {
        let attempts = self.gateway.metric(ATTEMPTS).await;
        let requests = load.sent() as f64;
        Amplification { at: Instant::now(), requests, attempts }
    }

    /// Returns how many calls reached each fake.
    pub(super) fn calls(&self) -> Vec<usize> {
        self.fakes.iter().map(Fake::calls).collect()
    }
}

/// Returns the share of the calls since `before` that reached one instance.
fn share(bench: &Bench, before: &[usize], instance: usize) -> f64 {
    let now = bench.calls();
    let each: Vec<_> = now.iter().zip(before).map(|(now, before)| now - before).collect();
    let all: usize = each.iter().sum();
    assert!(all > 0, "no instance was called");
    each[instance] as f64 / all as f64
}

fn failing(code: tonic::Code, failing: f64) -> Behaviour {
    Behaviour { failing, code, ..Behaviour::default() }
}

/// Half reads, half writes, told apart by the number.
fn mixed(number: u64) -> Request<Full<bytes::Bytes>> {
    if number.is_multiple_of(2) {
        request("GET", LIST, "")
    } else {
        let body = format!(r#"{{"topic_id":{},"subject":"s","content":"c"}}"#, number % 100 + 1);
        request("PUT", "/api/topic/put_topic", &body)
    }
}

/// Returns how many calls an instance has handled by its own count.
async fn handled(topic: &Role) -> f64 {
    topic.metric("grpc_server_handling_seconds_count{").await
}

async fn crash(time: Duration) -> Findings {
    let (etcd, mut findings) = (Etcd::start().await, Findings::default());
    let endpoint = etcd.addr.to_string();
    let gateway = Role::gateway(&endpoint);
    let mut topics: Vec<_> = Role::services::<3>(&endpoint, "topic").into();
    gateway.wait_for_certain("topic", 3).await;
    let load = Load::of(gateway.addr, RATE, mixed).start();
    load.more(100).await;
    let (begun, mut crashes, mut shares) = (Instant::now(), 0, Vec::new());
    while begun.elapsed() < time || crashes < 3 {
        let mut dead = topics.remove(0);
        dead.process.kill();
        crashes += 1;
        load.more(40).await;
        let back = Role::start(&endpoint, "topic", &dead.addr.to_string(), &[]);
        gateway.wait_for_certain("topic", 3).await;
        // a newcomer starts slowly; within 5 s it has its fair share. One slow answer costs an instance a
        // second's calls, so it takes a few of them to see the share.
        if crashes % 10 == 1 {
            sleep(2 * SECOND).await;
            let (from, sent) = (handled(&back).await, load.sent());
            load.more(600).await;
            shares.push((handled(&back).await - from) / ((load.sent() - sent) as f64 / 3.0));
        }
        topics.push(back);
    }
    let record = load.finish().await;
    let failed = |method: u64| record.failed().iter().filter(|call| call.number % 2 == method).count();
    findings.tell("crashes", f64::from(crashes), "");
    findings.count("failed reads", failed(0), 0);
    // what was in flight on it: at this rate less than one a crash
    findings.count("failed writes", failed(1), crashes as usize);
    let least = shares.iter().copied().fold(f64::INFINITY, f64::min);
    findings.timed_share("least part of its fair share after its return", least, 0.8);
    findings.calls(&record);
    findings
}

async fn rolling_restart(time: Duration) -> Findings {
    let (etcd, mut findings) = (Etcd::start().await, Findings::default());
    let endpoint = etcd.addr.to_string();
    let socket = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let directory = tempfile::tempdir().expect("a directory");
    let view = directory.path().join("view.json");
    let env = [
        ("MSA__REGISTRY__TTL_S", "1"),
        ("MSA__REGISTRY__KEEPALIVE_MS", "300"),
        ("MSA__REGISTRY__SNAPSHOT_FILE", view.to_str().expect("UTF-8")),
    ];
    let mut gateway = Role::gateway_on(&socket, &endpoint, &env);
    let mut topics: Vec<_> = Role::services::<3>(&endpoint, "topic").into();
    gateway.wait_for_certain("topic", 3).await;
    let base = Load::of(gateway.addr, RATE, mixed).run((time / 4).min(10 * SECOND)).await;
    let wanted = ((time.as_secs_f64() / 300.0 * 1000.0) as usize).clamp(30, 1000);
    let load = Load::of(gateway.addr, RATE, mixed).start();
    for restart in 0..wanted {
        if restart % 4 == 3 {
            gateway = tokio::task::spawn_blocking(move || {
                gateway.process.stop(crate::kit::SOON);
            })
            .map(|_| Role::gateway_on(&socket, &endpoint, &env))
            .await;
        } else {
            let mut leaves = topics.remove(0);
            tokio::task::spawn_blocking(move || leaves.process.stop(crate::kit::SOON))
                .await
                .expect("it ends");
            topics.extend(Role::services::<1>(&endpoint, "topic"));
        }
        gateway.wait_for_certain("topic", 3).await;
    }
    let record = load.finish().await;
    findings.tell("restarts", wanted as f64, "");
    findings.no_failures(&record);
    findings.guarantee("G3", guarantees::no_stop_loss(&record));
    findings
        .guarantee("G10", guarantees::restart_equals_continue(&record, &BTreeSet::new(), &BTreeSet::new()));
    let ratio = record.latency(0.99).as_secs_f64() / base.latency(0.99).as_secs_f64();
    findings.tell("p99 / p99 before", ratio, "");
    findings
}

/// Attempts, and those of them that timed out, since an instance must have been ejected.
struct Attempts {
    all: f64,
    timed_out: f64,
}

pub(super) const ATTEMPTS: &str = "grpc_client_attempt_duration_seconds_count{code=";
const TIMED_OUT: &str = "grpc_client_attempt_duration_seconds_count{code=\"DEADLINE_EXCEEDED\"";

/// Waits until the attempts of the first second of a fault have ended, and counts from then on.
async fn attempts_after(gateway: &Role, begun: Instant) -> Attempts {
    tokio::time::sleep_until(begun + SECOND + SECOND * 4 / 10).await;
    Attempts { all: gateway.metric(ATTEMPTS).await, timed_out: gateway.metric(TIMED_OUT).await }
}

impl Attempts {
    /// Judges whether the instance that answers nothing was left alone but for a probe now and then.
    async fn judge(self, gateway: &Role, findings: &mut Findings) {
        let (all, timed_out) = (gateway.metric(ATTEMPTS).await, gateway.metric(TIMED_OUT).await);
        let share = (timed_out - self.timed_out) / (all - self.all);
        findings.ratio("share of attempts that it gets after 1 s", share, 0.01);
    }
}

async fn frozen(time: Duration) -> Findings {
    let (etcd, mut findings) = (Etcd::start().await, Findings::default());
    let endpoint = etcd.addr.to_string();
    let gateway = Role::gateway(&endpoint);
    // a lease that outlives the fault: the registry does not help
    let env = [("MSA__REGISTRY__TTL_S", "120")];
    let topics = [(); 3].map(|()| Role::start(&endpoint, "topic", "127.0.0.1:0", &env));
    gateway.wait_for_certain("topic", 3).await;
    let base = Load::get(gateway.addr, RATE, LIST).run((time / 2).min(10 * SECOND)).await;
    let load = Load::get(gateway.addr, RATE, LIST).start();
    let begun = Instant::now();
    topics[0].process.signal(Signal::STOP);
    let after = attempts_after(&gateway, begun).await;
    sleep(time.saturating_sub(begun.elapsed())).await;
    after.judge(&gateway, &mut findings).await;
    let record = load.finish().await;
    topics[0].process.signal(Signal::CONT);
    findings.calls(&record);
    findings.share("share of good answers", record.ok_share(), 0.999);
    let after = record.between(begun + SECOND, begun + 3600 * SECOND);
    let ratio = after.latency(0.99).as_secs_f64() / base.latency(0.99).as_secs_f64();
    findings.ratio("p99 after 1 s / p99 before", ratio, 2.0);
    Load::get(gateway.addr, RATE, LIST).run(SECOND / 2).await;
    wait_for("it is called again", || async {
        let before = handled(&topics[0]).await;
        Load::get(gateway.addr, RATE, LIST).run(SECOND / 4).await;
        (handled(&topics[0]).await > before).then_some(())
    })
    .await;
    findings
}

async fn one_slow(time: Duration) -> Findings {
    let (bench, mut findings) = (Bench::start(11).await, Findings::default());
    bench.fakes[0].behave(Behaviour { delay: 2 * SECOND, ..Behaviour::default() });
    let before = bench.calls();
    let record = bench.load(LIST).run(time).await;
    findings.calls(&record);
    findings.share("share answered within 1 s", record.ok_share(), 0.999);
    findings.tell("degraded answers", record.degraded() as f64, "");
    findings.tell("share of calls to the slow one", share(&bench, &before, 0), "");
    findings
}

async fn half_wrong(time: Duration) -> Findings {
    let (bench, mut findings) = (Bench::start(3).await, Findings::default());
    let load = bench.load(LIST).start();
    load.more(200).await;
    // an error of the kind that is never retried
    bench.fakes[0].behave(failing(tonic::Code::Internal, 0.5));
    sleep(SECOND).await;
    let (from, before) = (Instant::now(), bench.calls());
    sleep(time).await;
    let bad = share(&bench, &before, 0);
    let record = load.finish().await.between(from, from + 3600 * SECOND);
    findings.calls(&record);
    findings.share("share of good answers after 1 s", record.ok_share(), 0.99);
    findings.count("calls to the bad one after 1 s, per cent", (bad * 100.0) as usize, 4);
    findings
}

async fn one_method(time: Duration) -> Findings {
    let (bench, mut findings) = (Bench::start(3).await, Findings::default());
    let bad = Behaviour { only: Some("GetTopic"), ..failing(tonic::Code::Internal, 1.0) };
    bench.fakes[0].behave(bad);
    let both = |number| request("GET", if number % 2 == 0 { LIST } else { VIEW }, "");
    let load = Load::of(bench.gateway.addr, RATE, both).start();
    sleep(2 * SECOND).await;
    let (from, seen) = (Instant::now(), bench.fakes.iter().map(|fake| fake.seen().len()).collect::<Vec<_>>());
    sleep(time).await;
    let mut counts = BTreeMap::<_, Vec<usize>>::new();
    for (fake, before) in bench.fakes.iter().zip(seen) {
        let seen = fake.seen().split_off(before);
        for method in ["ListTopics", "GetTopic"] {
            let count = seen.iter().filter(|call| call.method == method).count();
            counts.entry(method).or_default().push(count);
        }
    }
    let part = |method| {
        let all: usize = counts[method].iter().sum();
        assert!(all > 0, "{method} was not called");
        counts[method][0] as f64 * 3.0 / all as f64
    };
    let record = load.finish().await.between(from, from + 3600 * SECOND);
    findings.calls(&record);
    findings.share("its part of a fair share, the good method", part("ListTopics"), 0.6);
    findings.count(
        "its part of a fair share, the bad one, per cent",
        (part("GetTopic") * 100.0) as usize,
        15,
    );
    let lists =
        Record { calls: record.calls.iter().filter(|c| c.number % 2 == 0).cloned().collect(), ..record };
    findings.share("calls of the good method", lists.calls.len() as f64, 1.0);
    findings.count("failed calls of the good method", lists.failed().len(), 0);
    findings
}

async fn all_bad(time: Duration) -> Findings {
    let (bench, mut findings) = (Bench::start(3).await, Findings::default());
    bench.fakes.iter().for_each(|fake| fake.behave(failing(tonic::Code::Unavailable, 1.0)));
    let load = bench.load(LIST).start();
    let (first, begun) = (bench.amplification(&load).await, Instant::now());
    let mut samples = vec![first];
    while begun.elapsed() < time {
        sleep(SECOND / 2).await;
        samples.push(bench.amplification(&load).await);
    }
    let last = samples[samples.len() - 1];
    let (requests, attempts) = (last.requests - first.requests, last.attempts - first.attempts);
    // as G4 has it for any 10 s: the reserve of 100 is full when the fault begins, and full again 10 s after it was spent
    let windows = ((last.at - first.at).as_secs_f64() / 10.0).ceil();
    findings.tell("requests", requests, "");
    findings.count("attempts", attempts as usize, (1.2 * requests + 100.0 * windows).ceil() as usize);
    findings.share("attempts, for somebody must be asked", attempts, 1.0);
    let again = bench.fakes.iter().flat_map(Fake::seen).filter(|call| call.previous_attempts > 0).count();
    findings.tell("of them told that they are retries", again as f64, "");
    findings.guarantee("G4", guarantees::bounded_amplification(&samples));
    bench.fakes.iter().for_each(|fake| fake.behave(Behaviour::default()));
    let healed = Instant::now();
    sleep(5 * SECOND).await;
    let record = load.finish().await;
    let during = record.between(begun, healed);
    findings.calls(&during);
    findings.count("failures other than 503", during.failed_but_503(), 0);
    let recovered = record.between(healed + 4 * SECOND, healed + 6 * SECOND);
    findings.share("share of good answers 5 s after it ended", recovered.ok_share(), 0.99);
    findings
}

async fn all_slow(time: Duration) -> Findings {
    let (bench, mut findings) = (Bench::start(3).await, Findings::default());
    bench.load(LIST).run(SECOND / 2).await;
    let memory = bench.gateway.process.resident();
    bench.fakes.iter().for_each(|fake| fake.behave(Behaviour { delay: 5 * SECOND, ..Behaviour::default() }));
    let load = Load::get(bench.gateway.addr, RATE, VIEW).start();
    sleep(time).await;
    let record = load.finish().await;
    findings.timed_guarantee("G6", guarantees::bounded_wait(&record));
    findings.tell("calls", record.calls.len() as f64, "");
    let known =
        [http::StatusCode::GATEWAY_TIMEOUT, http::StatusCode::SERVICE_UNAVAILABLE].map(Outcome::Status);
    let other = record.calls.iter().filter(|call| !known.contains(&call.outcome)).count();
    findings.count("answers other than 504 and 503", other, 0);
    let growth = bench.gateway.process.resident().saturating_sub(memory) as f64 / 1e6;
    findings.add("growth of the gateway's memory", growth, "MB", super::Bound::AtMost(16.0), false);
    // nobody waits for these any more: their handlers must have been told
    wait_for("every handler has ended", || async {
        bench.fakes.iter().all(|fake| fake.seen().iter().all(|call| call.ended.is_some())).then_some(())
    })
    .await;
    let seen: Vec<_> =
        bench.fakes.iter().flat_map(Fake::seen).filter(|call| call.method == "GetTopic").collect();
    let mut took: Vec<_> = seen.iter().filter_map(|call| Some(call.ended? - call.began)).collect();
    findings.time("longest handler, of a 1 s call", quantile(&mut took, 1.0), SECOND + SECOND / 20);
    findings.count("handlers that ran to their end", seen.iter().filter(|call| call.answered).count(), 0);
    findings
}

async fn overload(time: Duration) -> Findings {
    // twice the workers in progress keeps them busy and the queue short
    let env = [("MSA__HTTP__MAX_IN_FLIGHT", "8")];
    let (bench, mut findings) = (Bench::start_with(1, 4, &env).await, Findings::default());
    bench.fakes[0].behave(Behaviour { delay: SECOND / 100, ..Behaviour::default() });
    let phase = (time / 3).min(20 * SECOND);
    let at = |rate: f64| Load::get(bench.gateway.addr, rate, VIEW).run(phase);
    let good =
        |record: &Record| record.calls.iter().filter(|call| call.ok()).count() as f64 / phase.as_secs_f64();
    let peak = at(380.0).await;
    findings.tell("goodput at the peak, calls/s", good(&peak), "");
    for times in [2.0, 5.0, 10.0] {
        let own = Meter::start(std::process::id());
        let record = at(400.0 * times).await;
        findings.tell(&format!("{times} x: share of a core, driver and test service"), own.share(), "");
        findings.timed_share(&format!("{times} x: goodput / peak"), good(&record) / good(&peak), 0.9);
        let ratio = record.latency(0.99).as_secs_f64() / peak.latency(0.99).as_secs_f64();
        findings.ratio(&format!("{times} x: p99 of the accepted / at the peak"), ratio, 3.0);
        findings.count(&format!("{times} x: failures other than 503"), record.failed_but_503(), 0);
        findings.count("503 without Retry-After", record.without_retry_after(), 0);
    }
    sleep(2 * SECOND).await;
    let after = Load::get(bench.gateway.addr, 200.0, VIEW).run(SECOND).await;
    let what = "share of good answers 2 s later, at half the peak";
    findings.timed_share(what, after.ok_share(), 0.99);
    findings
}

async fn burst_after_silence(time: Duration) -> Findings {
    let (mut bench, mut findings) = (Bench::start(3).await, Findings::default());
    let base = bench.load(LIST).run(2 * SECOND).await;
    // all three move while nobody calls
    let mut client = bench.etcd.client().await;
    for place in 0..3 {
        let fake = Fake::start().await;
        bench.register(fake.addr).await;
        let old = bench.relays[place].addr;
        bench.fakes[place].kill();
        bench.fakes[place] = fake;
        client.delete(format!("/services/topic/{old}"), None).await.expect("etcd deletes");
    }
    bench.gateway.wait_for_certain("topic", 3).await;
    sleep(time).await;
    let record = Load::get(bench.gateway.addr, 3.0 * RATE, LIST).run(SECOND).await;
    findings.no_failures(&record);
    let lost = bench.gateway.metric("grpc_client_attempt_duration_seconds_count{code=\"UNAVAILABLE\"").await;
    findings.count("attempts at stale addresses", lost as usize, 0);
    let ratio = record.latency(0.99).as_secs_f64() / base.latency(0.99).as_secs_f64();
    findings.ratio("p99 of the first second / before", ratio, 3.0);
    findings
}

async fn bad_network(time: Duration) -> Findings {
    let (bench, mut findings) = (Bench::start(3).await, Findings::default());
    let far = Direction { delay: SECOND * 75 / 1000 / 2, jitter: SECOND / 40, ..Direction::default() };
    let phase = time / 3;
    for (loss, least) in [(0.0, 0.999), (0.01, 0.99), (0.05, 0.95)] {
        let faults = Faults::both(Direction { loss, ..far });
        bench.relays.iter().for_each(|relay| relay.set(faults));
        let record = bench.load(VIEW).run(phase).await;
        let what = format!("75 +- 50 ms, loss {} %: within the deadline", loss * 100.0);
        findings.share(&what, record.ok_share(), least);
        findings.tell("p99", record.latency(0.99).as_secs_f64(), "s");
    }
    let load = bench.load(VIEW).start();
    bench
        .relays
        .iter()
        .for_each(|relay| relay.set(Faults::both(Direction { loss: 0.5, ..Direction::default() })));
    sleep(SECOND).await;
    bench.relays.iter().for_each(Relay::heal);
    let healed = Instant::now();
    sleep(4 * SECOND).await;
    let back = load.finish().await.between(healed + 2 * SECOND, healed + 4 * SECOND);
    findings.share("loss 50 % for 1 s: good answers 2 s later", back.ok_share(), 0.999);
    findings
}

async fn half_open(time: Duration) -> Findings {
    let (bench, mut findings) = (Bench::start(3).await, Findings::default());
    let load = bench.load(VIEW).start();
    load.more(100).await;
    let before = bench.relays[0].opened();
    bench.relays[0].half_open();
    let begun = Instant::now();
    wait_for("it is replaced", || async { (bench.relays[0].opened() > before).then_some(()) }).await;
    findings.time("replaced after", begun.elapsed(), 7 * SECOND);
    let before = bench.fakes[0].calls();
    wait_for("it is called", || async { (bench.fakes[0].calls() > before + 5).then_some(()) }).await;
    findings.tell("called again after", begun.elapsed().as_secs_f64(), "s");
    sleep(time.saturating_sub(begun.elapsed())).await;
    findings.no_failures(&load.finish().await);
    findings
}

async fn resets(time: Duration) -> Findings {
    let (bench, mut findings) = (Bench::start(3).await, Findings::default());
    let faults = Faults { down: Direction { reset: 0.01, ..Direction::default() }, ..Faults::default() };
    bench.relays.iter().for_each(|relay| relay.set(faults));
    let wrong = std::sync::Arc::new(Mutex::new(0_usize));
    let load = Load::of(bench.gateway.addr, RATE, mixed).start();
    let counted = wrong.clone();
    let gateway = bench.gateway.addr;
    // whole answers, byte for byte
    let checks = tokio::spawn(async move {
        loop {
            let answer = crate::kit::http::get(gateway, VIEW).await;
            if answer.status == 200 && answer.json()["content"] != "content" {
                *counted.lock().expect("no panic under it") += 1;
            }
            sleep(SECOND / 100).await;
        }
    });
    sleep(time).await;
    checks.abort();
    let record = load.finish().await;
    let lost = bench.gateway.metric("grpc_client_attempt_duration_seconds_count{code=\"UNAVAILABLE\"").await;
    findings.tell("attempts that met a reset", lost, "");
    findings.share("attempts that met a reset", lost, 1.0);
    findings.no_failures(&record);
    findings.count("wrong answers", *wrong.lock().expect("no panic under it"), 0);
    findings
}

async fn one_way(time: Duration) -> Findings {
    let (bench, mut findings) = (Bench::start(3).await, Findings::default());
    let base = bench.load(VIEW).run((time / 2).min(10 * SECOND)).await;
    let load = bench.load(VIEW).start();
    load.more(100).await;
    let begun = Instant::now();
    bench.relays[0].set(Faults { up: Direction { cut: true, ..Direction::default() }, ..Faults::default() });
    let after = attempts_after(&bench.gateway, begun).await;
    sleep(time.saturating_sub(begun.elapsed())).await;
    after.judge(&bench.gateway, &mut findings).await;
    let record = load.finish().await;
    findings.calls(&record);
    findings.share("share of good answers", record.ok_share(), 0.999);
    let after = record.between(begun + SECOND, begun + 3600 * SECOND);
    let ratio = after.latency(0.99).as_secs_f64() / base.latency(0.99).as_secs_f64();
    findings.ratio("p99 after 1 s / p99 before", ratio, 2.0);
    findings
}

async fn lost_answers(time: Duration) -> Findings {
    let (etcd, mut findings) = (Etcd::start().await, Findings::default());
    let endpoint = etcd.addr.to_string();
    let gateway = Role::gateway(&endpoint);
    // the real store behind two relays: one instance, known under two addresses
    let elsewhere = Etcd::start().await;
    let [feed] = Role::services(&elsewhere.addr.to_string(), "feed");
    let relays = [Relay::start(feed.addr, 40).await, Relay::start(feed.addr, 41).await];
    let mut client = etcd.client().await;
    for relay in &relays {
        let key = format!("/services/feed/{}", relay.addr);
        client.put(key, relay.addr.to_string(), None).await.expect("etcd answers");
    }
    gateway.wait_for_certain("feed", 2).await;
    for relay in &relays {
        relay.set(Faults { down: Direction { reset: 0.02, ..Direction::default() }, ..Faults::default() });
    }
    let (begun, mut writes, mut bodies) = (Instant::now(), Vec::new(), BTreeSet::new());
    let mut version = 0;
    while begun.elapsed() < time || version < 300 {
        version += 1;
        let key = i64::try_from(version % 10).unwrap_or(0) + 1;
        let body = format!(r#"{{"id":{key},"user_id":1,"content":"{version}"}}"#);
        let put = request("PUT", "/api/feed/create_feed", &body);
        let answer = crate::kit::http::send(gateway.addr, put).await.expect("the gateway answers");
        if answer.status == 200 {
            bodies.insert(answer.body);
        }
        let acknowledged = answer.status == 200;
        writes.push(Write { key, version, acknowledged });
        // who is refused comes back later; else one moment without a connection counts as often as it is asked
        sleep(SECOND / if acknowledged { 500 } else { 10 }).await;
    }
    relays.iter().for_each(Relay::heal);
    let found = crate::kit::wait_for("the feeds are read", || async {
        let answer = crate::kit::http::get(gateway.addr, "/api/feed/get_feeds?user_id=1&size=100").await;
        (answer.status == 200 && answer.degraded().is_empty()).then(|| answer.json())
    })
    .await;
    let feeds = found["feeds"].as_array().expect("a list of feeds").clone();
    let found: BTreeMap<_, _> = feeds
        .iter()
        .map(|feed| {
            (
                feed["id"].as_i64().expect("an id"),
                feed["content"].as_str().and_then(|text| text.parse().ok()).expect("a version"),
            )
        })
        .collect();
    let lost = gateway.metric("grpc_client_attempt_duration_seconds_count{code=\"UNAVAILABLE\"").await;
    findings.share("answers that were lost", lost, 1.0);
    findings.tell("writes", version as f64, "");
    // both connections may be down at once: such a write is refused, and has no effect or one
    let refused = writes.iter().filter(|write| !write.acknowledged).count();
    findings.tell("writes that failed", refused as f64, "");
    findings.share("share of writes acknowledged", 1.0 - refused as f64 / version as f64, 0.9);
    findings.count("different bodies of the same answer", bodies.len(), 1);
    findings.count("records for ten keys", feeds.len(), 10);
    findings.guarantee("G5", guarantees::no_double_effect(&writes, &found));
    findings
}

async fn optional_dependency(time: Duration) -> Findings {
    let (etcd, mut findings) = (Etcd::start().await, Findings::default());
    let (endpoint, elsewhere) = (etcd.addr.to_string(), Etcd::start().await);
    let gateway = Role::gateway(&endpoint);
    let [profile] = Role::services(&endpoint, "profile");
    let [mut feed] = Role::services(&elsewhere.addr.to_string(), "feed");
    let relay = Relay::start(feed.addr, 45).await;
    let key = format!("/services/feed/{}", relay.addr);
    etcd.client().await.put(key, relay.addr.to_string(), None).await.expect("etcd answers");
    gateway.wait_for_certain("feed", 1).await;
    gateway.wait_for_certain("profile", 1).await;
    profile.wait_for_certain("feed", 1).await;
    for (path, body) in [
        ("/api/profile/put_profile", r#"{"user_id":1,"name":"n","company":"c","title":"t"}"#),
        ("/api/feed/create_feed", r#"{"id":1,"user_id":1,"content":"x"}"#),
    ] {
        assert_eq!(crate::kit::http::put(gateway.addr, path, body).await.status, 200);
    }
    let path = "/api/profile/get_profile?user_id=1";
    let phase = time / 3;
    let base = Load::get(gateway.addr, RATE, path).run(phase).await;
    findings.count("degraded before", base.degraded(), 0);
    for fault in ["black hole", "dead"] {
        if fault == "dead" {
            relay.heal();
            feed.process.kill();
        } else {
            relay.set(Faults::cut());
        }
        // the first calls find out
        let load = Load::get(gateway.addr, RATE, path).start();
        sleep(2 * SECOND).await;
        let known = Instant::now();
        sleep(phase).await;
        let record = load.finish().await.between(known, known + 3600 * SECOND);
        let failed = record.calls.iter().filter(|call| !call.answered()).count();
        findings.count(&format!("{fault}: failed calls"), failed, 0);
        let marked = record.degraded() as f64 / record.calls.len() as f64;
        findings.share(&format!("{fault}: share of answers that say so"), marked, 0.999);
        let ratio = record.latency(0.99).as_secs_f64() / base.latency(0.99).as_secs_f64();
        findings.ratio(&format!("{fault}: p99 after 2 s / before"), ratio, 1.25);
    }
    findings
}

async fn against_raw_channel(time: Duration) -> Findings {
    use microservice_app::api::proto::topic::topic_client::TopicClient;
    use microservice_app::api::proto::topic::{ListTopicsRequest, ListTopicsResponse};
    use microservice_app::api::rpc::Rpc;
    use microservice_app::{client, config, context, registry};
    use registry::Registry as _;
    /// Calls in flight.
    const CALLERS: usize = 64;

    let (etcd, mut findings) = (Etcd::start().await, Findings::default());
    let [topic] = Role::services(&etcd.addr.to_string(), "topic");
    let asked = ListTopicsRequest { after: 0, size: 20 };

    let local = registry::Local::default();
    let _registered = local.register(registry::Instance::bare("topic", &topic.addr.to_string()));
    let client_with = |connections| {
        let settings = config::Client { connections, ..config::Client::default() };
        let counted = client::metrics::Metrics::register(&prometheus::Registry::new()).expect("metrics");
        let connector = client::Connector::default();
        client::Client::new(&["topic"], &settings, "/services/", &local.view(), &counted, &connector)
    };
    let raw = tonic::transport::Endpoint::from_shared(format!("http://{}", topic.addr)).expect("an address");
    let raw = TopicClient::new(raw.tcp_nodelay(true).connect().await.expect("it listens"));

    let rounds = 10;
    let round = (time / (8 * rounds)).max(SECOND / 10);
    let rate = async |ours: Option<&client::Client>| {
        let until = Instant::now() + round;
        let callers = (0..CALLERS).map(|_| {
            let (mut raw, mut calls) = (raw.clone(), 0);
            async move {
                while Instant::now() < until {
                    if let Some(ours) = ours {
                        let context = context::Context::new(Instant::now() + 2 * SECOND);
                        let answer: Result<client::Reply<ListTopicsResponse>, _> =
                            ours.call(Rpc::ListTopics, &asked, &context).await;
                        answer.expect("an answer");
                    } else {
                        let mut request = tonic::Request::new(asked);
                        request.set_timeout(2 * SECOND);
                        raw.list_topics(request).await.expect("an answer");
                    }
                    calls += 1;
                }
                calls
            }
        });
        let calls: u32 = futures_util::future::join_all(callers).await.into_iter().sum();
        f64::from(calls) / round.as_secs_f64()
    };
    let [one, two, four] = [1, 2, 4].map(client_with);
    let shipped = client_with(config::Client::default().connections);
    for ours in [&one, &two, &four, &shipped] {
        rate(Some(ours)).await; // connect
    }
    let raw_rate = async || rate(None).await;
    let compared = ab::compare(rounds as usize, raw_rate, async || rate(Some(&shipped)).await).await;
    let alone = ab::compare(rounds as usize, raw_rate, async || rate(Some(&one)).await).await;
    findings.compared("requests/s, ours with one connection / raw", &alone);
    for (what, more) in [("2", &two), ("4", &four)] {
        let pooled =
            ab::compare(rounds as usize, async || rate(Some(&one)).await, async || rate(Some(more)).await)
                .await;
        findings.compared(&format!("requests/s, {what} connections / one"), &pooled);
    }
    findings.compared_at_least("requests/s, ours / raw", &compared, 0.95);
    findings
}
