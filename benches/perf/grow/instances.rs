//! Cost against instances of a service. One process serves under many addresses of the loopback network, so that the
//! gateway's side of so many instances is there, and the services' is not.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use microservice_app::registry::Instance;
use microservice_app::registry::value::{encode, key};

use super::super::headline::program;
use super::super::http::send;
use super::super::plot::Panel;
use super::super::process::{Clock, free_addr, memory, wait_for};
use super::super::stack::{Etcd, Role, fill, prefix};
use super::{Gateway, RATE, ask, setting};

const COUNTS: [usize; 5] = [1, 3, 30, 300, 1000];
/// Seconds without a request in which an idle gateway's time is measured.
const IDLE: u64 = 3;

pub fn run() -> Vec<Panel> {
    let (mut cpu, mut megabytes, mut idle) = (Vec::new(), Vec::new(), Vec::new());
    for count in COUNTS {
        let (etcd, prefix, service) = (Etcd::start(), prefix(), free_addr());
        let port = service.port();
        let settings = [setting("grpc.advertise_addr", &service), setting("grpc.max_connections", &20_000)];
        let program = program();
        let feed = Role {
            program: &program,
            name: "feed",
            addr: ([0, 0, 0, 0], port).into(),
            admin: free_addr(),
            etcd: etcd.addr,
            prefix: &prefix,
            settings: &settings,
        };
        let _feed = feed.start();
        let gateway = Gateway::start(&etcd, &prefix, &[]);
        fill(gateway.addr);
        let before = std::time::Instant::now();
        for number in 1..count {
            register(&etcd, &prefix, &format!("127.1.{}.{}:{port}", number / 250, number % 250 + 1));
        }
        wait_for("every instance is connected", || {
            let page = send(gateway.admin, "GET", "/metrics", "").ok()?.1;
            (connected(&page) >= count as f64).then_some(())
        });
        let took = before.elapsed().as_secs_f64();
        let id = gateway.process.id();
        let clock = Clock::start(id);
        std::thread::sleep(std::time::Duration::from_secs(IDLE));
        let resting = clock.seconds() / IDLE as f64 * 1e3;
        // before the load, whose bursts leave memory behind
        let held = memory(id);
        let measured = ask(gateway.addr, RATE, &[id]);
        let each = measured.cpu[0] / measured.outcome.answered as f64 * 1e6;
        println!(
            "  {count} instances: {each:.1} us a request, {held:.1} MB, idle {resting:.2} ms a second, registered and connected in {took:.1} s, {} failed",
            measured.outcome.failed
        );
        cpu.push((count as f64, each));
        megabytes.push((count as f64, held));
        idle.push((count as f64, resting));
    }
    vec![
        Panel::new("Gateway, CPU us a request at 2000/s", "instances", vec![("gateway", cpu)]),
        Panel::new("Gateway, memory MB", "instances", vec![("gateway", megabytes)]),
        Panel::new("Gateway without requests, CPU ms a second", "instances", vec![("gateway", idle)]),
    ]
}

/// Writes the entry of an instance of feed.
pub fn register(etcd: &Etcd, prefix: &str, addr: &str) {
    let instance = Instance::bare("feed", addr);
    let [key, value] =
        [key(prefix, "feed", addr), encode(&instance)].map(|text| BASE64_STANDARD.encode(text));
    let body = format!(r#"{{"key":"{key}","value":"{value}"}}"#);
    let answer = send(etcd.addr, "POST", "/v3/kv/put", &body).expect("etcd answers");
    assert_eq!(answer.0, 200, "{}", answer.1);
}

/// Returns how many instances of feed can be called, as a page of metrics tells.
fn connected(page: &str) -> f64 {
    let lines =
        page.lines().filter(|line| line.starts_with("client_endpoints{") && line.contains("\"feed\""));
    let ready = lines.filter(|line| line.contains("state=\"up\""));
    ready.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}
