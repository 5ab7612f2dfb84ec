//! Good answers against what is asked for, from a tenth of what a service can do to ten times that. The service is a slow
//! one of tonic's (1000 answers a second), so that the load of all cores is not what limits.

use super::super::plot::Panel;
use super::super::process::free_addr;
use super::super::stack::{Etcd, prefix, serve};
use super::instances::register;
use super::{Gateway, SECONDS, ask, setting};

/// What the service can do, a second, see `serve slow`.
const KNEE: f64 = 1000.0;
const LOADS: [f64; 9] = [0.1, 0.3, 0.6, 0.9, 1.2, 2.0, 3.0, 5.0, 10.0];

pub fn run() -> Vec<Panel> {
    let (etcd, prefix, service) = (Etcd::start(), prefix(), free_addr());
    let _slow = serve("slow", service);
    register(&etcd, &prefix, &service.to_string());
    // an earlier answer would not tell whether the service had answered
    let gateway = Gateway::start(&etcd, &prefix, &[setting("client.fallback_kib", &0)]);
    let (mut good, mut p99, mut share) = (Vec::new(), Vec::new(), Vec::new());
    for load in LOADS {
        let measured = ask(gateway.addr, load * KNEE, &[gateway.process.id()]);
        let outcome = &measured.outcome;
        let goodput = outcome.answered as f64 / SECONDS;
        println!(
            "  {load} times the knee: {goodput:.0} good answers a second, p99 of these {:.1} ms, {} failed, last: {}",
            outcome.p99 / 1e3,
            outcome.failed,
            outcome.error
        );
        good.push((load, goodput));
        p99.push((load, outcome.p99 / 1e3));
        share.push((load, measured.cpu[0] / SECONDS * 100.0));
    }
    vec![
        Panel::new(
            "Good answers a second",
            "asked for, times what the service can do",
            vec![("answers", good)],
        ),
        Panel::new("p99 of good answers, ms", "asked for, times what the service can do", vec![("p99", p99)]),
        Panel::new(
            "Gateway, % of a core",
            "asked for, times what the service can do",
            vec![("gateway", share)],
        ),
    ]
}
