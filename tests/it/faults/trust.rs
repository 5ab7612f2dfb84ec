//! The rows about certificates that are replaced while calls go on, and about what they cost.

use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{Bound, Findings, SECOND, rounds, rows};
use crate::kit::ab::{Comparison, compare};
use crate::kit::authority::Authority;
use crate::kit::cpu::Meter;
use crate::kit::http::{Connection, request, send};
use crate::kit::load::Load;
use crate::kit::mesh::{HOUR, Mesh, ROLES, client13, connect, uri};
use crate::kit::system::Role;
use crate::kit::{quantile, wait_for};

/// Calls a second.
const RATE: f64 = 100.0;
/// The reads: each service is called, and profile calls feed. Every fourth call is a write.
const READS: [&str; 3] =
    ["/api/profile/get_profile?user_id=7", "/api/topic/list", "/api/feed/get_feeds?user_id=7"];
/// Least rotations, in the full form and in the short one.
const ROTATIONS: [usize; 2] = [100, 3];
/// With every so many rotations the authority is another one.
const ROLLOVER: usize = 10;

rows! { "callpath"
    "P34" p34_the_cost_of_tls cost 60 4 "calls with certificates on both ends against plaintext, 64 at a time";
    "F41" f41_certificates rotations 180 6 "every certificate replaced again and again, and their authority; foreign and expired ones between";
}

/// Waits until every process has used a change of its files so often.
async fn used(roles: &[&Role], changes: usize) {
    for role in roles {
        wait_for("the change is used", || async {
            let used = role.metric("tls_reloads_total{purpose=\"grpc\",result=\"ok\"}").await;
            (used >= changes as f64).then_some(())
        })
        .await;
    }
}

/// Waits until every process has refused a change of its files at least so often, and says that it cannot use what is there.
async fn unusable(roles: &[&Role], times: f64) {
    for role in roles {
        wait_for("what cannot be used is refused", || async {
            let refused = role.metric("tls_reloads_total{purpose=\"grpc\",result=\"failed\"}").await;
            let stale = role.metric("tls_files_unusable{purpose=\"grpc\"}").await > 0.5;
            (refused >= times && stale).then_some(())
        })
        .await;
    }
}

/// Returns the certificate that a service shows now.
async fn shown(mesh: &Mesh, role: &Role) -> Vec<u8> {
    let stream = connect(role.addr, client13(mesh.path(), "apigateway")).await.expect("a connection");
    stream.get_ref().1.peer_certificates().expect("a certificate")[0].to_vec()
}

async fn rotations(time: Duration) -> Findings {
    let (mut findings, mut mesh) = (Findings::default(), Mesh::start().await);
    let feeds = [mesh.role("feed", "strict", &[]), mesh.role("feed", "strict", &[])];
    let profile = mesh.role("profile", "strict", &[]);
    let topic = mesh.role("topic", "strict", &[]);
    let gateway = mesh.role("apigateway", "strict", &[]);
    gateway.wait_for_certain("feed", 2).await;
    gateway.wait_for_certain("profile", 1).await;
    gateway.wait_for_certain("topic", 1).await;
    let profile_of = r#"{"user_id":7,"name":"Ada","company":"","title":""}"#;
    let put = move || request("PUT", "/api/profile/put_profile", profile_of);
    let answer = send(gateway.addr, put()).await.expect("an answer");
    assert_eq!(answer.status, 200, "{}", answer.body);
    // both instances of feed keep their records in memory, so a feed would be in one of them only
    let call = move |n| match READS.get(n as usize % 4) {
        Some(path) => request("GET", path, ""),
        None => put(),
    };
    let load = Load::of(gateway.addr, RATE, call).start();
    load.more(50).await;

    let roles = [&gateway, &feeds[0], &feeds[1], &profile, &topic];
    let (mut changes, mut rotated, mut rolled, mut refused) = (0, 0, 0, 0.0);
    let (begun, least) = (Instant::now(), if time >= 60 * SECOND { ROTATIONS[0] } else { ROTATIONS[1] });
    while begun.elapsed() < time || rotated < least {
        let before = shown(&mesh, &topic).await;
        if rotated % ROLLOVER == 2 {
            // what cannot be used lies there for a while: the certificates of others, then ones that have expired
            for (role, other) in ROLES.into_iter().zip(ROLES.into_iter().cycle().skip(1)) {
                mesh.authority.issue_identity(mesh.path(), role, &uri(other), HOUR, |_| {});
            }
            unusable(&roles, 2.0 * refused + 1.0).await;
            mesh.issue_all(&mesh.authority, Duration::ZERO);
            unusable(&roles, 2.0 * refused + 2.0).await;
            tokio::time::sleep(SECOND).await;
            assert_eq!(shown(&mesh, &topic).await, before, "the last good certificate is in use");
            refused += 1.0;
        }
        if rotated % ROLLOVER == 1 {
            // old and new are trusted, then the certificates are the new one's, then it is trusted alone
            let next = Authority::new(&format!("authority {rotated}"));
            mesh.trust(&[&mesh.authority, &next]);
            used(&roles, changes + 1).await;
            mesh.issue_all(&next, HOUR);
            used(&roles, changes + 2).await;
            // callers open their next connections within 2 s
            tokio::time::sleep(2 * SECOND + SECOND / 2).await;
            mesh.trust(&[&next]);
            used(&roles, changes + 3).await;
            (mesh.authority, changes, rolled) = (next, changes + 3, rolled + 1);
        } else {
            mesh.issue_all(&mesh.authority, HOUR);
            used(&roles, changes + 1).await;
            changes += 1;
        }
        rotated += 1;
        assert_ne!(shown(&mesh, &topic).await, before, "the new certificate is in use");
    }
    tokio::time::sleep(3 * SECOND).await;
    let record = load.finish().await;
    findings.calls(&record);
    findings.no_failures(&record);
    let replaced = gateway.metric("client_connections_total{event=\"replaced\"").await;
    let lost = gateway.metric("client_connections_total{event=\"lost\"").await;
    findings.add("rotations", rotated as f64, "", Bound::AtLeast(least as f64), false);
    findings.tell("changes of the authority", f64::from(rolled), "");
    findings.add("times with foreign and with expired certificates", refused, "", Bound::AtLeast(1.0), false);
    findings.add("connections replaced by the gateway", replaced, "", Bound::AtLeast(4.0), false);
    findings.tell("connections lost by the gateway", lost, "");
    findings
}

/// Callers at the same time, each with a connection of its own.
const CALLERS: usize = 64;
const LIST: &str = "/api/topic/list";

/// A gateway and the service that it calls.
struct Pair {
    gateway: Role,
    topic: Role,
}

impl Pair {
    async fn start(mesh: &Mesh, mode: &str) -> Self {
        let prefix = format!("/{mode}/");
        let env = [("MSA__REGISTRY__PREFIX", prefix.as_str())];
        let (topic, gateway) = (mesh.role("topic", mode, &env), mesh.role("apigateway", mode, &env));
        gateway.wait_for_certain("topic", 1).await;
        Self { gateway, topic }
    }

    /// Asks as fast as it answers. Returns the processor time of both processes for a request, and the 99th percentile of
    /// the latency, seconds.
    async fn measure(&self, time: Duration) -> [f64; 2] {
        let meters = [&self.gateway, &self.topic].map(|role| Meter::start(role.process.id()));
        let (until, addr) = (Instant::now() + time, self.gateway.addr);
        let mut callers = JoinSet::new();
        for _ in 0..CALLERS {
            callers.spawn(async move {
                let mut connection = Connection::open(addr).await.expect("it listens");
                let mut times = Vec::new();
                while Instant::now() < until {
                    let begun = Instant::now();
                    assert_eq!(connection.get(LIST).await.expect("an answer").status, 200);
                    times.push(begun.elapsed());
                }
                times
            });
        }
        let mut times: Vec<_> = callers.join_all().await.into_iter().flatten().collect();
        let cpu: f64 = meters.iter().map(Meter::seconds).sum();
        [cpu / times.len() as f64, quantile(&mut times, 0.99).as_secs_f64()]
    }
}

async fn cost(time: Duration) -> Findings {
    let (mut findings, mesh) = (Findings::default(), Mesh::start().await);
    let (plain, tls) = (Pair::start(&mesh, "off").await, Pair::start(&mesh, "strict").await);
    let rounds = rounds(time, 2);
    let each = time / (2 * rounds);
    for pair in [&plain, &tls] {
        pair.measure(each).await;
    }
    let (mut plain_p99, mut tls_p99) = (Vec::new(), Vec::new());
    let cpu = compare(
        rounds as usize,
        async || {
            let [cpu, p99] = plain.measure(each).await;
            plain_p99.push(p99);
            cpu
        },
        async || {
            let [cpu, p99] = tls.measure(each).await;
            tls_p99.push(p99);
            cpu
        },
    )
    .await;
    let ratios = tls_p99.iter().zip(&plain_p99).map(|(tls, plain)| tls / plain).collect();
    let p99 = Comparison::of(ratios, cpu.others);
    // a process without TLS has no such series
    let opened =
        tls.gateway.metric("tls_connections_total{purpose=\"grpc\",side=\"client\",transport=\"tls\"}").await;
    findings.share("connections with TLS", opened, 1.0);
    findings.compared_at_most("processor time of a request, TLS over plaintext", &cpu, 1.25);
    findings.p99_compared_at_most("p99, TLS over plaintext", &p99, 1.2);
    findings
}
