//! Requests a second against connections, few and many, and the cost of a request at equal loads: with one thread, with a
//! thread for each core, and with tokio's work stealing, which is in no build of the program: its gateway runs in this one.

use std::net::SocketAddr;
use std::process::ExitCode;

use microservice_app::app::process::Process as Application;
use microservice_app::config::{ListenAddr, Role as Kind, Settings};
use tokio_util::sync::CancellationToken;

use super::super::headline::program;
use super::super::plot::Panel;
use super::super::process::{Clock, Process, free_addr, this};
use super::super::stack::{Etcd, PATH, Role, fill, prefix};
use super::super::wrk;
use super::{ask, setting};

const CONNECTIONS: [u32; 4] = [4, 8, 16, 64];
const TIME: u32 = 3;
/// Requests a second that every side can answer.
const LOADS: [f64; 3] = [1000.0, 4000.0, 8000.0];

/// What runs the tasks of a gateway.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Runtime {
    /// `runtime.threads`.
    Threads(usize),
    /// Worker threads that take tasks from each other.
    Stealing(usize),
}

/// A gateway before a feed service with so many threads.
struct Chain {
    gateway: Process,
    addr: SocketAddr,
    _feed: Process,
}

impl Chain {
    fn start(runtime: Runtime, etcd: &Etcd) -> Self {
        let (Runtime::Threads(threads) | Runtime::Stealing(threads)) = runtime;
        let (program, prefix, addr) = (program(), prefix(), free_addr());
        let settings = [setting("runtime.threads", &threads)];
        let role = |name, addr| {
            let (program, settings) = (&program, &settings);
            Role { program, name, addr, admin: free_addr(), etcd: etcd.addr, prefix: &prefix, settings }
                .start()
        };
        let feed = role("feed", free_addr());
        let gateway = match runtime {
            Runtime::Threads(_) => role("apigateway", addr),
            Runtime::Stealing(threads) => {
                let mut command = this();
                let [listener, admin, etcd] = [addr, free_addr(), etcd.addr].map(|addr| addr.to_string());
                command.args(["stealing", &listener, &admin, &etcd, &prefix, &threads.to_string()]);
                Process::start(&mut command)
            }
        };
        fill(addr);
        Self { gateway, addr, _feed: feed }
    }
}

/// The process: a gateway whose tasks go from thread to thread, `stealing ADDR ADMIN ETCD PREFIX THREADS`.
pub fn child(arguments: &[String]) -> ExitCode {
    let [addr, admin, etcd, prefix, threads] = arguments else {
        panic!("stealing ADDR ADMIN ETCD PREFIX THREADS")
    };
    let listen = |addr: &String| ListenAddr(addr.parse().expect("an address"));
    let mut settings = Settings::for_role(Kind::Apigateway);
    (settings.http.addr, settings.admin.addr) = (listen(addr), listen(admin));
    settings.registry.endpoints = vec![format!("http://{etcd}")];
    settings.registry.prefix.clone_from(prefix);
    let workers = threads.parse().expect("a number");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let mut process = Application::new(Kind::Apigateway, settings).expect("a process");
        process.add_gateway().expect("a gateway");
        // a task of a worker, as all others are
        let run = tokio::spawn(process.run(CancellationToken::new(), || {}));
        run.await.expect("no panic").expect("it runs until its parent ends it");
    });
    ExitCode::SUCCESS
}

pub fn run() -> Vec<Panel> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let sides = [
        ("1 thread", Runtime::Threads(1)),
        ("a thread a core", Runtime::Threads(cores)),
        ("work stealing", Runtime::Stealing(cores)),
    ];
    let etcd = Etcd::start();
    let (mut rates, mut costs, mut tails) = (Vec::new(), Vec::new(), Vec::new());
    for (name, runtime) in sides {
        let chain = Chain::start(runtime, &etcd);
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
