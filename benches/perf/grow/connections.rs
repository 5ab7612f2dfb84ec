//! Cost against idle connections: HTTP/1.1 at the gateway, HTTP/2 at the service.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use super::super::headline::program;
use super::super::plot::Panel;
use super::super::process::{free_addr, memory, this};
use super::super::stack::{Etcd, Role, fill, prefix};
use super::{Gateway, RATE, ask, setting};

const COUNTS: [usize; 4] = [10, 100, 1000, 10_000];

/// So many idle connections, closed when dropped.
struct Idle(Child);

impl Idle {
    fn open(kind: &str, addr: SocketAddr, count: usize) -> Self {
        let mut command: Command = this();
        command.args(["idle", kind, &addr.to_string(), &count.to_string()]);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("this program");
        let mut line = String::new();
        let mut output = BufReader::new(child.stdout.take().expect("a pipe"));
        output.read_line(&mut line).expect("a line");
        let idle = Self(child);
        assert_eq!(line, "open\n", "{count} connections to {addr} cannot be opened");
        idle
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn run() -> Vec<Panel> {
    let (mut cpu, mut megabytes) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    for count in COUNTS {
        let (etcd, prefix, service, program) = (Etcd::start(), prefix(), free_addr(), program());
        let settings = [
            setting("http.max_connections", &20_000),
            setting("http.header_timeout_ms", &600_000),
            setting("grpc.max_connections", &20_000),
        ];
        let feed = Role {
            program: &program,
            name: "feed",
            addr: service,
            admin: free_addr(),
            etcd: etcd.addr,
            prefix: &prefix,
            settings: &settings,
        };
        let feed = feed.start();
        let gateway = Gateway::start(&etcd, &prefix, &settings);
        fill(gateway.addr);
        let _idle = [Idle::open("http", gateway.addr, count), Idle::open("h2", service, count)];
        let ids = [gateway.process.id(), feed.id()];
        // before the load, whose bursts leave memory behind
        let held = ids.map(memory);
        let measured = ask(gateway.addr, RATE, &ids);
        let each = [0, 1].map(|side| measured.cpu[side] / measured.outcome.answered as f64 * 1e6);
        println!(
            "  {count} idle connections at each: gateway {:.1} us a request, {:.1} MB, feed {:.1} us, {:.1} MB, {} failed",
            each[0], held[0], each[1], held[1], measured.outcome.failed
        );
        for side in [0, 1] {
            cpu[side].push((count as f64, each[side]));
            megabytes[side].push((count as f64, held[side]));
        }
    }
    let lines =
        |[gateway, feed]: [Vec<(f64, f64)>; 2]| vec![("gateway, HTTP/1.1", gateway), ("feed, HTTP/2", feed)];
    vec![
        Panel::new("CPU us a request at 2000/s", "idle connections", lines(cpu)),
        Panel::new("Memory MB", "idle connections", lines(megabytes)),
    ]
}
