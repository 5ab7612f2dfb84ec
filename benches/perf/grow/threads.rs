//! Requests a second against connections, few and many, and the cost of a request at equal loads: with one thread, and with
//! a thread for each core.

use super::super::headline::program;
use super::super::plot::Panel;
use super::super::process::Clock;
use super::super::stack::{Chain, Etcd, PATH};
use super::super::wrk;
use super::{ask, setting};

const CONNECTIONS: [u32; 4] = [4, 8, 16, 64];
const TIME: u32 = 3;
/// Requests a second that every side can answer.
const LOADS: [f64; 3] = [1000.0, 4000.0, 8000.0];

pub fn run() -> Vec<Panel> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let etcd = Etcd::start();
    let (mut rates, mut costs, mut tails) = (Vec::new(), Vec::new(), Vec::new());
    for (name, threads) in [("1 thread", 1), ("a thread a core", cores)] {
        let chain = Chain::start(&program(), &etcd, None, &[setting("runtime.threads", &threads)]);
        let url = format!("http://{}{PATH}", chain.addr);
        let (mut rate, mut cost, mut tail) = (Vec::new(), Vec::new(), Vec::new());
        for connections in CONNECTIONS {
            wrk::run(&url, connections, 1);
            let clock = Clock::start(chain.gateway.id());
            let peak = wrk::run(&url, connections, TIME);
            let each = clock.seconds() / (peak.rate * f64::from(TIME)) * 1e6;
            println!(
                "  {name}, {connections} connections: {:.0} requests/s, gateway {each:.1} us a request, {} failed",
                peak.rate, peak.failed
            );
            rate.push((f64::from(connections), peak.rate));
        }
        for load in LOADS {
            let measured = ask(chain.addr, load, &[chain.gateway.id()]);
            let each = measured.cpu[0] / measured.outcome.answered as f64 * 1e6;
            println!(
                "  {name}, {load} requests/s: gateway {each:.1} us a request, p99 {:.0} us",
                measured.outcome.p99
            );
            cost.push((load, each));
            tail.push((load, measured.outcome.p99));
        }
        rates.push((name, rate));
        costs.push((name, cost));
        tails.push((name, tail));
    }
    vec![
        Panel::new("Requests a second, gateway and feed", "connections", rates),
        Panel::new("Gateway, CPU us a request", "requests a second", costs),
        Panel::new("p99, us", "requests a second", tails),
    ]
}
