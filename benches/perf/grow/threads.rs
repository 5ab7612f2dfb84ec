//! Requests a second against threads, with few and with many connections. Nothing where `runtime.threads` is no setting.

use std::process::Command;

use super::super::headline::program;
use super::super::plot::Panel;
use super::super::process::Clock;
use super::super::stack::{Chain, Etcd, PATH};
use super::super::wrk;
use super::setting;

const CONNECTIONS: [u32; 4] = [4, 8, 16, 64];
const TIME: u32 = 3;

pub fn run() -> Vec<Panel> {
    let known = Command::new(program()).args(["settings", "--format", "json"]).output().expect("the program");
    if !String::from_utf8_lossy(&known.stdout).contains("\"runtime.threads\"") {
        println!("  runtime.threads is no setting of this program");
        return Vec::new();
    }
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let etcd = Etcd::start();
    let (mut rates, mut costs) = (Vec::new(), Vec::new());
    for threads in [1, cores] {
        let chain = Chain::start(&program(), &etcd, None, &[setting("runtime.threads", &threads)]);
        let url = format!("http://{}{PATH}", chain.addr);
        let (mut rate, mut cost) = (Vec::new(), Vec::new());
        for connections in CONNECTIONS {
            wrk::run(&url, connections, 1);
            let clock = Clock::start(chain.gateway.id());
            let peak = wrk::run(&url, connections, TIME);
            let each = clock.seconds() / (peak.rate * f64::from(TIME)) * 1e6;
            println!(
                "  {threads} threads, {connections} connections: {:.0} requests/s, gateway {each:.1} us a request, {} failed",
                peak.rate, peak.failed
            );
            rate.push((f64::from(connections), peak.rate));
            cost.push((f64::from(connections), each));
        }
        rates.push((threads, rate));
        costs.push((threads, cost));
    }
    let names = ["1 thread", "a thread a core"];
    let lines = |found: Vec<(usize, Vec<(f64, f64)>)>| {
        names.into_iter().zip(found.into_iter().map(|it| it.1)).collect()
    };
    vec![
        Panel::new("Requests a second, gateway and feed", "connections", lines(rates)),
        Panel::new("Gateway, CPU us a request", "connections", lines(costs)),
    ]
}
