//! Faults of the registry: trouble there is no trouble for callers.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use etcd_client::{Client, CompactionOptions, PutOptions, Txn, TxnOp};
use futures_util::FutureExt as _;
use rustix::process::Signal;
use tokio::time::{Instant, sleep};

use super::{Findings, SECOND, rows};
use crate::kit::cluster::Cluster;
use crate::kit::cpu::Meter;
use crate::kit::etcd::Etcd;
use crate::kit::fake::Fake;
use crate::kit::guarantees::{self, Sample};
use crate::kit::http;
use crate::kit::load::{Load, Outcome, Record};
use crate::kit::relay::{Faults, Relay};
use crate::kit::system::{Role, TTL, alive};
use crate::kit::{quantile, wait_for};

/// Calls a second while a fault lasts.
const RATE: f64 = 200.0;
const LIST: &str = "/api/topic/list";

rows! { "registry"
    "F11" f11_etcd_is_killed etcd_killed 300 4 "etcd is killed, its data kept";
    "F12" f12_an_instance_dies_while_etcd_is_away dies_without_etcd 300 4 "an instance dies while etcd is away";
    "F13" f13_a_gateway_restarts_without_etcd restart_without_etcd 20 2 "the gateway restarts while etcd is away";
    "F14" f14_etcd_is_wiped etcd_wiped 60 4 "etcd comes back with nothing in it";
    "F15" f15_lease_revoked_and_key_deleted revoked_and_deleted 60 4 "leases are revoked and keys deleted by hand";
    "F16" f16_compaction_while_the_watch_is_cut compaction 30 4 "etcd compacts what a cut watch has missed";
    "F17" f17_the_watch_is_blackholed blackhole 30 5 "the watch is swallowed in silence";
    "F18" f18_etcd_is_frozen etcd_frozen 30 3 "etcd is frozen for twice the lease and more";
    "F19" f19_the_leader_is_lost leader_lost 30 4 "the leader of three members is killed, then cut off";
    "F20" f20_most_keys_vanish_at_once most_vanish 30 3 "90 % of the keys vanish at once";
    "F21" f21_foreign_values_are_ignored foreign_values 10 2 "foreign and corrupt values under the prefix";
    "F22" f22_an_address_is_taken_by_another_service recycled_address 10 2 "an address is taken by another service";
    "F27" f27_registration_storm storm 60 3 "1000 instances register in a second, then flap";
    "F28" f28_everything_starts_at_once cold_start 10 2 "everything starts at once";
    "P11" p11_from_sigterm_to_the_last_new_call last_call 60 4 "from SIGTERM to the last new call";
    "P12" p12_from_ready_to_the_first_call first_call 60 4 "from ready to the first call";
    "P16" p16_a_list_of_1000_instances_is_applied large_list 10 2 "a list of 1000 instances is applied";
}

/// A gateway and three instances of topic over one etcd, under load and observed.
struct World {
    etcd: Etcd,
    gateway: Role,
    topics: Vec<Role>,
}

impl World {
    async fn start() -> Self {
        let etcd = Etcd::start().await;
        let endpoint = etcd.addr.to_string();
        let gateway = Role::gateway(&endpoint);
        let topics = Role::services::<3>(&endpoint, "topic").into();
        let world = Self { etcd, gateway, topics };
        world.gateway.wait_for_certain("topic", 3).await;
        world
    }

    fn load(&self) -> Load {
        Load::get(self.gateway.addr, RATE, LIST)
    }

    /// Waits until the key of every instance is there; returns the time since `begun`.
    async fn keys_back(&self, begun: Instant) -> Duration {
        wait_for("every key is there", || async {
            let keys = self.etcd.list("/services/topic/").await;
            (keys.len() == self.topics.len()).then_some(())
        })
        .await;
        begun.elapsed()
    }

    /// Returns the revisions at which the keys were created.
    async fn created(&self) -> Vec<i64> {
        let options = etcd_client::GetOptions::new().with_prefix();
        let list = self.etcd.client().await.get("/services/topic/", Some(options)).await;
        list.expect("etcd answers").kvs().iter().map(etcd_client::KeyValue::create_revision).collect()
    }

    /// Judges what every fault that kills no instance must hold.
    fn judge(&self, findings: &mut Findings, record: &Record, samples: &[Sample]) {
        findings.no_failures(record);
        findings.guarantee("G2", guarantees::no_premature_death(samples, &alive("topic", &self.topics)));
        findings.guarantee("G7", guarantees::monotone_view(samples));
    }
}

async fn etcd_killed(time: Duration) -> Findings {
    let (mut world, mut findings) = (World::start().await, Findings::default());
    let endpoint = world.etcd.addr.to_string();
    // one of each kind that nobody calls: what they use is the price of the outage alone
    let idle_gateway = Role::gateway(&endpoint);
    let [idle_feed] = Role::services(&endpoint, "feed");
    let (load, sampler) = (world.load().start(), world.gateway.sample());
    load.more(100).await;
    world.etcd.kill();
    let (gateway, feed) = (Meter::start(idle_gateway.process.id()), Meter::start(idle_feed.process.id()));
    sleep(time).await;
    findings.ratio("share of a core, an idle gateway", gateway.share(), 0.02);
    findings.ratio("share of a core, an idle service", feed.share(), 0.02);
    let age = world.gateway.metric("registry_view_age_seconds").await;
    findings.share("age that the view admits / outage", age / time.as_secs_f64(), 0.9);
    world.etcd.restart().await;
    let back = world.keys_back(Instant::now()).await;
    // the longest wait between two tries, and time for the try
    findings.time("keys back after etcd answers", back, Duration::from_millis(2500));
    world.gateway.wait_for_certain("topic", 3).await;
    world.judge(&mut findings, &load.finish().await, &sampler.finish().await);
    findings
}

async fn dies_without_etcd(time: Duration) -> Findings {
    let (mut world, mut findings) = (World::start().await, Findings::default());
    let load = world.load().start();
    load.more(100).await;
    world.etcd.kill();
    sleep(time / 2).await;
    let mut dead = world.topics.remove(0);
    dead.process.kill();
    sleep(time / 2).await;
    let record = load.finish().await;
    findings.tell("calls", record.calls.len() as f64, "");
    findings.tell("failed calls", record.failed().len() as f64, "");
    findings.share("share of good answers", record.ok_share(), 0.999);
    findings
}

async fn restart_without_etcd(time: Duration) -> Findings {
    let (mut world, mut findings) = (World::start().await, Findings::default());
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("view.json");
    let env = [("MSA__REGISTRY__SNAPSHOT_FILE", file.to_str().expect("UTF-8"))];
    let endpoint = world.etcd.addr.to_string();
    let mut first = Role::start(&endpoint, "apigateway", "127.0.0.1:0", &env);
    wait_for("the view is on disk", || async {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        world.topics.iter().all(|topic| text.contains(&topic.addr.to_string())).then_some(())
    })
    .await;
    world.etcd.kill();
    first.process.kill();
    let begun = Instant::now();
    let second = Role::start(&endpoint, "apigateway", "127.0.0.1:0", &env);
    findings.time("ready without etcd", begun.elapsed(), SECOND);
    let record = Load::get(second.addr, RATE, LIST).run(time).await;
    findings.no_failures(&record);
    let ready = http::get(second.admin, "/readyz").await;
    let warned = ready.status == 200 && ready.body.contains("warn: registry: ");
    findings.count("readiness without its warning", usize::from(!warned), 0);
    findings
}

async fn etcd_wiped(time: Duration) -> Findings {
    let (mut world, mut findings) = (World::start().await, Findings::default());
    // a wiped etcd keeps its cluster id: only its revisions tell
    let mut client = world.etcd.client().await;
    for round in 0..50 {
        client.put("/services/topic/counted", round.to_string(), None).await.expect("etcd answers");
    }
    wait_for("the view has come that far", || async {
        let revision = world.gateway.status().await["registry"]["revision"].as_i64();
        (revision > Some(50)).then_some(())
    })
    .await;
    let (load, sampler) = (world.load().start(), world.gateway.sample());
    load.more(100).await;
    sleep(time / 4).await;
    world.etcd.wipe().await;
    let begun = Instant::now();
    wait_for("the reset is announced", || async {
        world.gateway.metric_above("registry_view_resets_total", 0.0).await.then_some(())
    })
    .await;
    world.gateway.wait_for_certain("topic", 3).await;
    findings.time("view full and certain again", begun.elapsed(), 3 * SECOND);
    sleep(time / 2).await;
    let samples = sampler.finish().await;
    let epochs = samples.last().map_or(0, |last| last.epoch);
    findings.share("resets announced", epochs as f64, 1.0);
    world.judge(&mut findings, &load.finish().await, &samples);
    findings
}

async fn revoked_and_deleted(time: Duration) -> Findings {
    let (world, mut findings) = (World::start().await, Findings::default());
    let (load, sampler) = (world.load().start(), world.gateway.sample());
    let mut client = world.etcd.client().await;
    let (begun, mut worst, mut rounds) = (Instant::now(), Duration::ZERO, 0);
    while begun.elapsed() < time || rounds < 4 {
        let topic = &world.topics[rounds % world.topics.len()];
        let key = format!("/services/topic/{}", topic.addr);
        let found = client.get(key.as_str(), None).await.expect("etcd answers");
        let lease = found.kvs()[0].lease();
        if rounds % 2 == 0 {
            client.lease_revoke(lease).await.expect("etcd revokes");
        } else {
            client.delete(key.as_str(), None).await.expect("etcd deletes");
        }
        let lost = Instant::now();
        world.keys_back(lost).await;
        worst = worst.max(lost.elapsed());
        rounds += 1;
        load.more(20).await;
    }
    findings.tell("leases revoked and keys deleted", rounds as f64, "");
    findings.time("longest time without the key", worst, SECOND);
    world.judge(&mut findings, &load.finish().await, &sampler.finish().await);
    findings
}

async fn compaction(time: Duration) -> Findings {
    let (etcd, mut findings) = (Etcd::start().await, Findings::default());
    let relay = Relay::start(etcd.addr, 16).await;
    let gateway = Role::gateway(&relay.addr.to_string());
    let topics = Role::services::<3>(&etcd.addr.to_string(), "topic").into();
    let mut world = World { etcd, gateway, topics };
    world.gateway.wait_for_certain("topic", 3).await;
    let (load, sampler) = (world.load().start(), world.gateway.sample());
    load.more(100).await;
    // the connection is lost and no new one comes about, while the registry goes on
    relay.set(Faults { refuse: true, ..Faults::default() });
    relay.reset();
    let [late] = Role::services(&world.etcd.addr.to_string(), "topic");
    world.topics.push(late);
    let mut client = world.etcd.client().await;
    let mut revision = 0;
    for round in 0..100 {
        let put = client.put("/elsewhere", round.to_string(), None).await.expect("etcd answers");
        revision = put.header().map_or(0, etcd_client::ResponseHeader::revision);
    }
    let physical = CompactionOptions::new().with_physical();
    client.compact(revision, Some(physical)).await.expect("etcd compacts");
    sleep(time).await;
    relay.heal();
    world.gateway.wait_for_certain("topic", 4).await;
    // lists: one at its start, one now; another would be a watch that failed on a compacted revision
    load.more(400).await;
    let lists = world.gateway.process.count_logs(|line| line["message"] == "registry listed");
    findings.count("lists after the first", lists - 1, 1);
    let samples = sampler.finish().await;
    let record = load.finish().await;
    findings.no_failures(&record);
    findings.guarantee("G2", guarantees::no_premature_death(&samples, &alive("topic", &world.topics[..3])));
    findings.guarantee("G7", guarantees::monotone_view(&samples));
    let differences = world.gateway.metric("registry_view_differences_total").await;
    findings.count("differences between list and events", differences as usize, 0);
    findings
}

async fn blackhole(time: Duration) -> Findings {
    let (etcd, mut findings) = (Etcd::start().await, Findings::default());
    let ways = [Relay::start(etcd.addr, 17).await, Relay::start(etcd.addr, 18).await];
    // one that has no other way, and one that has
    let mut alone = Role::gateway(&ways[0].addr.to_string());
    let gateway = Role::gateway(&format!("{},{}", ways[0].addr, ways[1].addr));
    let topics = Role::services::<3>(&etcd.addr.to_string(), "topic").into();
    let mut world = World { etcd, gateway, topics };
    world.gateway.wait_for_certain("topic", 3).await;
    alone.wait_for_certain("topic", 3).await;
    let (load, sampler) = (world.load().start(), world.gateway.sample());
    load.more(100).await;
    // in turn, for its connection may be over either
    for (n, way) in ways.iter().enumerate() {
        way.set(Faults::cut());
        let begun = Instant::now();
        if n == 0 {
            let lost = "lost the registry, keeping the last view";
            wait_for("the silence is noticed", || {
                let lines = alone.process.count_logs(|line| line["message"] == lost);
                std::future::ready((lines > 0).then_some(()))
            })
            .await;
            findings.time("silence noticed", begun.elapsed(), Duration::from_millis(3200));
        }
        let [late] = Role::services(&world.etcd.addr.to_string(), "topic");
        let (known, addr) = (Instant::now(), late.addr.to_string());
        world.topics.push(late);
        let what = "a newcomer is known over the other way";
        let listed = |listed: &[serde_json::Value]| listed.iter().any(|instance| instance["addr"] == addr);
        world.gateway.wait_for_instances("topic", what, listed).await;
        findings.time("age of the view that has another way", known.elapsed(), 5 * SECOND);
        sleep((time / 2).saturating_sub(begun.elapsed())).await;
        way.heal();
    }
    let (samples, record) = (sampler.finish().await, load.finish().await);
    findings.no_failures(&record);
    findings.guarantee("G2", guarantees::no_premature_death(&samples, &alive("topic", &world.topics[..3])));
    findings.guarantee("G7", guarantees::monotone_view(&samples));
    findings
}

async fn etcd_frozen(time: Duration) -> Findings {
    let (world, mut findings) = (World::start().await, Findings::default());
    let (load, sampler) = (world.load().start(), world.gateway.sample());
    load.more(100).await;
    let before = world.created().await;
    world.etcd.signal(Signal::STOP);
    sleep(time.max(2 * TTL)).await;
    world.etcd.signal(Signal::CONT);
    let back = Instant::now();
    wait_for("every key went and was put again", || async {
        let now = world.created().await;
        (now.len() == 3 && now.iter().all(|revision| !before.contains(revision))).then_some(())
    })
    .await;
    world.gateway.wait_for_certain("topic", 3).await;
    findings.time("every key back and certain", back.elapsed(), 5 * SECOND);
    load.more(200).await;
    world.judge(&mut findings, &load.finish().await, &sampler.finish().await);
    findings
}

async fn leader_lost(time: Duration) -> Findings {
    let (mut cluster, mut findings) = (Cluster::start().await, Findings::default());
    let endpoints = cluster.endpoints();
    let gateway = Role::gateway(&endpoints);
    let topics = Role::services::<3>(&endpoints, "topic");
    gateway.wait_for_certain("topic", 3).await;
    let (load, sampler) = (Load::get(gateway.addr, RATE, LIST).start(), gateway.sample());
    load.more(100).await;
    for fault in ["killed", "cut off", "frozen"] {
        let leader = cluster.leader().await;
        match fault {
            "killed" => cluster.members[leader].kill(),
            "cut off" => cluster.partition(leader),
            _ => cluster.members[leader].signal(Signal::STOP),
        }
        let begun = Instant::now();
        let next = cluster.leader_beside(leader).await;
        let elected = begun.elapsed();
        let client = cluster.client_of(next).await;
        wait_until_renewed(&client, &topics).await;
        let gap = begun.elapsed().saturating_sub(elected);
        findings.time(&format!("leader {fault}: registered again after the election"), gap, SECOND);
        findings.tell("election", elected.as_secs_f64(), "s");
        sleep(time / 4).await;
        match fault {
            "killed" => cluster.members[leader].restart().await,
            "cut off" => cluster.heal(),
            _ => cluster.members[leader].signal(Signal::CONT),
        }
        gateway.wait_for_certain("topic", 3).await;
    }
    let (samples, record) = (sampler.finish().await, load.finish().await);
    findings.no_failures(&record);
    findings.guarantee("G2", guarantees::no_premature_death(&samples, &alive("topic", &topics)));
    findings.guarantee("G7", guarantees::monotone_view(&samples));
    findings
}

/// Waits until every instance says that it is registered, and the cluster has its key.
async fn wait_until_renewed(client: &Client, topics: &[Role]) {
    for topic in topics {
        let key = format!("/services/topic/{}", topic.addr);
        wait_for("the instance is registered", || async {
            let mut client = client.clone();
            let found = async { client.get(key.as_str(), None).await.ok() };
            // a member that has just lost its leader may keep a request: what is measured does not wait for that
            let found = tokio::time::timeout(SECOND / 10, found).await.ok().flatten()?;
            let lease = found.kvs().first()?.lease();
            let state = topic.status().await["roles"][0]["registration"] == "up";
            (lease != 0 && state).then_some(())
        })
        .await;
    }
}

async fn most_vanish(time: Duration) -> Findings {
    let (etcd, mut findings) = (Etcd::start().await, Findings::default());
    let gateway = Role::gateway(&etcd.addr.to_string());
    let mut fakes = Vec::new();
    let mut client = etcd.client().await;
    for _ in 0..10 {
        let fake = Fake::start().await;
        let key = format!("/services/topic/{}", fake.addr);
        client.put(key, fake.addr.to_string(), None).await.expect("etcd answers");
        fakes.push(fake);
    }
    gateway.wait_for_certain("topic", 10).await;
    let (load, sampler) = (Load::get(gateway.addr, RATE, LIST).start(), gateway.sample());
    load.more(100).await;
    let deletes: Vec<_> =
        fakes[..9].iter().map(|fake| TxnOp::delete(format!("/services/topic/{}", fake.addr), None)).collect();
    client.txn(Txn::new().and_then(deletes)).await.expect("etcd deletes");
    let vanished = Instant::now();
    gateway
        .wait_for_instances("topic", "nine are in doubt", |listed| {
            listed.iter().filter(|instance| instance["limbo"] == true).count() == 9
        })
        .await;
    sleep(time).await;
    let kept = gateway.status().await["registry"]["services"]["topic"].as_array().map_or(0, Vec::len);
    findings.share("instances kept of 10", kept as f64, 10.0);
    let before: Vec<_> = fakes.iter().map(Fake::calls).collect();
    load.more(400).await;
    let called = fakes.iter().zip(&before).filter(|(fake, before)| fake.calls() > **before).count();
    findings.share("of them called", called as f64, 10.0);
    // of four the probes fail, and in limbo that ends them: two are gone, two would still answer a call that
    // should not come
    let mut ended = BTreeMap::new();
    for (n, fake) in fakes[..4].iter().enumerate() {
        if n < 2 {
            fake.kill();
        } else {
            fake.retire().await;
        }
        ended.insert(fake.id.clone(), Instant::now());
    }
    let died = Instant::now();
    gateway.wait_for_instances("topic", "the dead have left", |listed| listed.len() == 6).await;
    findings.time("the dead leave the view", died.elapsed(), 1200 * SECOND / 1000);
    sleep(SECOND + SECOND / 2).await;
    load.more(200).await;
    let (samples, record) = (sampler.finish().await, load.finish().await);
    findings.no_failures(&record);
    findings.guarantee("G1", guarantees::no_ghost(&record, &ended, SECOND));
    let live = fakes[4..].iter().map(|fake| ("topic".to_owned(), fake.addr.to_string())).collect();
    let since: Vec<_> = samples.into_iter().filter(|sample| sample.at > vanished).collect();
    findings.guarantee("G2", guarantees::no_premature_death(&since, &live));
    findings.guarantee("G7", guarantees::monotone_view(&since));
    findings
}

async fn foreign_values(time: Duration) -> Findings {
    let (mut world, mut findings) = (World::start().await, Findings::default());
    let (load, sampler) = (world.load().start(), world.gateway.sample());
    let mut client = world.etcd.client().await;
    let junk: [(&str, &[u8]); 6] = [
        ("topic/127.0.0.1:1/more", b"127.0.0.1:1"),
        ("topic/nowhere", b"nowhere"),
        ("topic/127.0.0.1:2", b"{\"Op\":0"),
        ("topic/127.0.0.1:3", b"\xff\xfe\x00"),
        ("topic/127.0.0.1:4", b"{\"Op\":0,\"Addr\":\"127.0.0.1:5\",\"Metadata\":null}"),
        ("orphan", b"x"),
    ];
    let begun = Instant::now();
    let mut rounds = 0;
    while begun.elapsed() < time || rounds < 3 {
        for (key, value) in junk {
            client.put(format!("/services/{key}"), value, None).await.expect("etcd answers");
        }
        load.more(20).await;
        rounds += 1;
    }
    wait_for("they are counted", || async {
        (world.gateway.metric("registry_view_ignored_keys").await as usize == junk.len()).then_some(())
    })
    .await;
    let lines = world.gateway.process.count_logs(|line| line["message"] == "ignored a key in the registry");
    findings.tell("times that each was put", f64::from(rounds), "");
    findings.count("log lines for 6 foreign keys", lines, junk.len());
    findings.share("log lines, at least", lines as f64, 1.0);
    findings.share("keys that are counted as ignored", junk.len() as f64, 6.0);
    world.gateway.wait_for_certain("topic", 3).await;
    world.judge(&mut findings, &load.finish().await, &sampler.finish().await);
    findings
}

async fn recycled_address(time: Duration) -> Findings {
    let (world, mut findings) = (World::start().await, Findings::default());
    let [feed] = Role::services(&world.etcd.addr.to_string(), "feed");
    let load = world.load().start();
    let mut client = world.etcd.client().await;
    let key = format!("/services/topic/{}", feed.addr);
    client.put(key, feed.addr.to_string(), None).await.expect("etcd answers");
    wait_for("the other service is known as such", || async {
        let wrong = world.gateway.endpoint("topic", feed.addr).await?;
        (wrong["state"] == "wrong_service").then_some(())
    })
    .await;
    sleep(time).await;
    findings.no_failures(&load.finish().await);
    let counted = world.gateway.metric("client_endpoints{service=\"topic\",state=\"wrong_service\"}").await;
    findings.share("instances counted as another service", counted, 1.0);
    findings
}

async fn storm(time: Duration) -> Findings {
    const INSTANCES: usize = 1000;
    let (world, mut findings) = (World::start().await, Findings::default());
    let mut fakes = Vec::new();
    for _ in 0..INSTANCES {
        fakes.push(Fake::start().await);
    }
    let process = world.gateway.process.id();
    let quiet = time.min(10 * SECOND).max(2 * SECOND);
    let before = Meter::start(process);
    let calm = world.load().run(quiet).await;
    let calm_cpu = before.share();

    let (load, during, begun) = (world.load().start(), Meter::start(process), Instant::now());
    let mut client = world.etcd.client().await;
    let lease = client.lease_grant(600, None).await.expect("a lease").id();
    let key = |addr: SocketAddr| format!("/services/feed/{addr}");
    let puts = fakes.iter().map(|fake| {
        let mut client = client.clone();
        let options = PutOptions::new().with_lease(lease);
        async move { client.put(key(fake.addr), fake.addr.to_string(), Some(options)).await.map(|_| ()) }
    });
    let puts: Vec<_> = puts.collect();
    let registered: Result<Vec<()>, _> = futures_util::future::try_join_all(puts).await;
    registered.expect("etcd takes them");
    findings.tell("time to register 1000", begun.elapsed().as_secs_f64(), "s");
    let listed = || async {
        let status = world.gateway.status().await;
        status["registry"]["services"]["feed"].as_array().map_or(0, Vec::len)
    };
    wait_for("all are known", || async { (listed().await >= INSTANCES).then_some(()) }).await;
    // what a change costs is judged apart from what the beginning costs: they must not depend on how long the row lasts
    let elapsed = begun.elapsed().as_secs_f64();
    let burst = (during.seconds() - calm_cpu * elapsed) * 1000.0 / INSTANCES as f64;
    findings.ratio("processor time for each that registers, ms", burst, 0.5);
    // 10 % a second leave and come back
    let (during, begun, mut place) = (Meter::start(process), Instant::now(), 0);
    while begun.elapsed() < time {
        let fake = &fakes[place % INSTANCES];
        client.delete(key(fake.addr), None).await.expect("etcd deletes");
        let again = &fakes[(place + INSTANCES - 50) % INSTANCES];
        let options = PutOptions::new().with_lease(lease);
        client.put(key(again.addr), again.addr.to_string(), Some(options)).await.expect("etcd puts");
        place += 1;
        sleep(
            (begun + Duration::from_millis(10) * u32::try_from(place).unwrap_or(u32::MAX)) - Instant::now(),
        )
        .await;
    }
    let storm_cpu = during.share();
    let record = load.finish().await;
    findings.tell("instances that left and came back", place as f64, "");
    findings.tell("share of a core before the storm", calm_cpu, "");
    findings.ratio("share of a core that the flapping costs", storm_cpu - calm_cpu, 0.1);
    let p99 = |record: &Record| record.latency(0.99).as_secs_f64();
    findings.tell("p99 before", p99(&calm), "s");
    findings.tell("p99 in the storm", p99(&record), "s");
    findings.no_failures(&record);
    wait_for("those that stay are known", || async { (listed().await >= INSTANCES - 50).then_some(()) })
        .await;
    findings
}

async fn cold_start(time: Duration) -> Findings {
    let (mut etcd, mut findings) = (Etcd::start().await, Findings::default());
    let endpoint = etcd.addr.to_string();
    etcd.kill();
    let (mut gateway, role) = Role::launch(&endpoint, "apigateway", "127.0.0.1:0", &[]);
    let mut launched: Vec<_> = ["feed", "profile", "topic"]
        .into_iter()
        .flat_map(|service| [(); 3].map(|()| Role::launch(&endpoint, service, "127.0.0.1:0", &[])))
        .collect();
    let (addr, admin) = gateway.wait_for_role(role);
    let load = Load::get(addr, RATE, LIST).start();
    let health = tokio::spawn(ask_health(addr, admin));
    etcd.restart().await;
    let topics: Vec<_> = launched.iter_mut().map(|(process, role)| process.wait_for_role(role)).collect();
    let last = Instant::now();
    let gateway = Role { process: gateway, addr, admin };
    for service in ["feed", "profile", "topic"] {
        gateway.wait_for_certain(service, 3).await;
    }
    findings.time("everything is called after the last is up", last.elapsed(), 2500 * SECOND / 1000);
    load.more(100).await;
    // what is judged begins 3 s after the last is up
    sleep(time.max((last + 4 * SECOND).saturating_duration_since(Instant::now()))).await;
    let record = load.finish().await;
    findings.tell("instances", topics.len() as f64, "");
    findings.tell("calls", record.calls.len() as f64, "");
    findings.count("failures other than 503", record.failed_but_503(), 0);
    findings.count("503 without Retry-After", record.without_retry_after(), 0);
    let settled = record.between(last + 3 * SECOND, last + 3600 * SECOND);
    findings.share("calls once it is up", settled.calls.len() as f64, 1.0);
    findings.count("failures once it is up", settled.failed().len(), 0);
    // and while it drains
    gateway.process.signal(Signal::TERM);
    let asked = health.await.expect("it ends with the gateway");
    findings.tell("times that readiness was asked", asked.len() as f64, "");
    findings.guarantee("G8", guarantees::honest_health(&asked));
    findings
}

/// Asks a gateway again and again whether it is ready, and makes a call that needs nothing but the gateway:
/// to a route that does not exist. Ends with it.
async fn ask_health(addr: SocketAddr, admin: SocketAddr) -> Vec<(bool, Outcome)> {
    let mut asked = Vec::new();
    loop {
        let Ok(ready) = http::send(admin, http::request("GET", "/readyz", "")).await else {
            return asked;
        };
        let ended = match http::send(addr, http::request("GET", "/nowhere", "")).await {
            Ok(answer) => Outcome::Status(answer.status),
            Err(error) => Outcome::Broken(error.to_string()),
        };
        // it may have begun to stop between the two
        let again = http::send(admin, http::request("GET", "/readyz", "")).await;
        let ready = ready.status == 200 && again.is_ok_and(|again| again.status == 200);
        asked.push((ready, ended));
        sleep(SECOND / 100).await;
    }
}

async fn last_call(time: Duration) -> Findings {
    let (mut world, mut findings) = (World::start().await, Findings::default());
    let endpoint = world.etcd.addr.to_string();
    let load = Load::get(world.gateway.addr, 2.0 * RATE, LIST).start();
    let begun = Instant::now();
    let mut stopped = BTreeMap::new();
    while begun.elapsed() < time || stopped.len() < 4 {
        let mut leaves = world.topics.remove(0);
        let id = world.gateway.id_of("topic", leaves.addr).await;
        load.answer_of(&id).await;
        leaves.process.signal(Signal::TERM);
        stopped.insert(id, Instant::now());
        tokio::task::spawn_blocking(move || leaves.process.wait(crate::kit::SOON)).await.expect("it ends");
        world.topics.extend(Role::services::<1>(&endpoint, "topic"));
        world.gateway.wait_for_certain("topic", 3).await;
        load.more(40).await;
    }
    let record = load.finish().await;
    let mut last: Vec<_> = stopped
        .iter()
        .filter_map(|(id, at)| {
            let calls = record.calls.iter().filter(|call| call.instance == *id);
            calls.map(|call| call.sent.saturating_duration_since(*at)).max()
        })
        .collect();
    findings.tell("instances stopped", stopped.len() as f64, "");
    findings.count("of them never called", stopped.len() - last.len(), 0);
    assert!(!last.is_empty(), "no call says which instance answered");
    findings.time("last new call after SIGTERM, p50", quantile(&mut last, 0.5), 50 * SECOND / 1000);
    findings.time("last new call after SIGTERM, p99", quantile(&mut last, 0.99), 50 * SECOND / 1000);
    let met = world.gateway.metric("grpc_client_attempt_duration_seconds_count{code=\"UNAVAILABLE\"").await;
    findings.tell("attempts that met an instance that had stopped", met, "");
    findings.guarantee("G3", guarantees::no_stop_loss(&record));
    findings.no_failures(&record);
    findings
}

async fn first_call(time: Duration) -> Findings {
    let (mut world, mut findings) = (World::start().await, Findings::default());
    let endpoint = world.etcd.addr.to_string();
    let load = Load::get(world.gateway.addr, 2.0 * RATE, LIST).start();
    let begun = Instant::now();
    let mut ready = BTreeMap::new();
    while begun.elapsed() < time || ready.len() < 4 {
        let [comes] = Role::services(&endpoint, "topic");
        let at = Instant::now();
        world.gateway.wait_for_certain("topic", 4).await;
        let id = world.gateway.id_of("topic", comes.addr).await;
        load.answer_of(&id).await;
        ready.insert(id, at);
        let mut leaves = std::mem::replace(&mut world.topics[0], comes);
        tokio::task::spawn_blocking(move || leaves.process.stop(crate::kit::SOON)).await.expect("it ends");
        world.gateway.wait_for_certain("topic", 3).await;
    }
    let record = load.finish().await;
    let mut first: Vec<_> = ready
        .iter()
        .filter_map(|(id, at)| {
            let call = record.calls.iter().find(|call| call.instance == *id)?;
            Some(call.sent.saturating_duration_since(*at))
        })
        .collect();
    findings.tell("instances started", ready.len() as f64, "");
    findings.count("of them never called", ready.len() - first.len(), 0);
    findings.time("first call after ready, p50", quantile(&mut first, 0.5), 100 * SECOND / 1000);
    findings.time("first call after ready, p99", quantile(&mut first, 0.99), 100 * SECOND / 1000);
    findings.no_failures(&record);
    findings
}

async fn large_list(time: Duration) -> Findings {
    use microservice_app::config;
    use microservice_app::registry::{Etcd as Registry, Registry as _, dial_tcp};
    let (etcd, mut findings) = (Etcd::start().await, Findings::default());
    let mut client = etcd.client().await;
    for n in 0..1000 {
        let addr = format!("10.0.{}.{}:8082", n / 250, n % 250);
        let value = format!(
            r#"{{"Op":0,"Addr":"{addr}","Metadata":null,"instance":{{"id":"{n:016x}","version":"0.1.0","zone":null,"weight":100,"state":"up","admin":"10.0.0.1:6062","started_at":1795369975}}}}"#
        );
        client.put(format!("/services/feed/{addr}"), value, None).await.expect("etcd answers");
    }
    let (begun, mut times) = (Instant::now(), Vec::new());
    while begun.elapsed() < time || times.len() < 5 {
        let settings = config::Registry { endpoints: vec![etcd.addr.to_string()], ..Default::default() };
        let (dial, probe) =
            (dial_tcp(settings.timeout), std::sync::Arc::new(|_| std::future::pending().boxed()));
        let registry = Registry::new(settings, probe, dial).expect("plain access");
        let asked = Instant::now();
        let mut view = registry.view();
        while view.get().instances("feed").map_or(0, |instances| instances.len()) < 1000 {
            view.changed().await.expect("the registry is followed");
        }
        times.push(asked.elapsed());
    }
    findings.tell("lists", times.len() as f64, "");
    // connecting and asking included
    findings.time("from nothing to a view of 1000, p50", quantile(&mut times, 0.5), 50 * SECOND / 1000);
    findings.time("from nothing to a view of 1000, p99", quantile(&mut times, 0.99), 50 * SECOND / 1000);
    findings
}
