//! How the cost of a request and of a process grows: with instances, connections, records, threads, and with more load
//! than can be answered. Each is a plot in docs/images.

pub mod idle;
pub mod rows;

mod connections;
mod instances;
mod overload;
mod threads;

use std::path::Path;
use std::process::ExitCode;

use serde_json::{Map, Value, json};

use super::kit::cpu::Others;
use super::load::{self, Amount, Kind, Load, Measured};
use super::plot::{self, Panel};
use super::process::{Process, free_addr};
use super::stack::{Etcd, PATH, Role, Setting};

/// Requests a second at which a request's cost is measured, and seconds of that.
const RATE: f64 = 2000.0;
const SECONDS: f64 = 4.0;

/// What is plotted, by its name.
type Grow = fn() -> Vec<Panel>;
const ALL: [(&str, Grow); 5] = [
    ("instances", instances::run),
    ("connections", connections::run),
    ("rows", rows::run),
    ("overload", overload::run),
    ("threads", threads::run),
];

pub fn run(names: &[String]) -> ExitCode {
    if let Some(name) = names.iter().find(|name| ALL.iter().all(|(known, _)| known != *name)) {
        eprintln!("tests/perf grow: there is no {name}; there are {:?}", ALL.map(|(name, _)| name));
        return ExitCode::from(2);
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let file = root.join("target/perf/grow.json");
    let mut found: Map<String, Value> = std::fs::read_to_string(&file)
        .ok()
        .and_then(|text| serde_json::from_str(&text).ok())
        .unwrap_or_default();
    for (name, grow) in ALL.iter().filter(|(name, _)| names.is_empty() || names.iter().any(|it| it == name)) {
        println!("{name}");
        let others = Others::watch();
        let panels = grow();
        if panels.is_empty() {
            continue;
        }
        let others = others.share();
        let void = if others > 0.2 { ": void, measure again on a quiet machine" } else { "" };
        println!("  others took {:.0} % of the cores{void}", others * 100.0);
        plot::write(&root.join(format!("docs/images/grow-{name}.svg")), &panels);
        found.insert((*name).to_owned(), json!({ "others": others, "panels": panels }));
        std::fs::create_dir_all(file.parent().expect("a directory")).expect("a directory");
        std::fs::write(&file, serde_json::to_string_pretty(&found).expect("JSON")).expect("a file");
    }
    ExitCode::SUCCESS
}

/// Asks a gateway at the rate of all plots, and meters processes.
fn ask(addr: std::net::SocketAddr, rate: f64, processes: &[u32]) -> Measured {
    let (path, amount) = (PATH.to_owned(), Amount::Rate(rate));
    load::measure(&Load { kind: Kind::Http, addr, path, amount, warm_up: 1.0, seconds: SECONDS }, processes)
}

/// A gateway over an etcd, and where it listens for requests and for operators.
struct Gateway {
    process: Process,
    addr: std::net::SocketAddr,
    admin: std::net::SocketAddr,
}

impl Gateway {
    fn start(etcd: &Etcd, prefix: &str, settings: &[Setting]) -> Self {
        let (addr, admin, program) = (free_addr(), free_addr(), super::headline::program());
        let role =
            Role { program: &program, name: "apigateway", addr, admin, etcd: etcd.addr, prefix, settings };
        Self { process: role.start(), addr, admin }
    }
}

fn setting(key: &'static str, value: &dyn ToString) -> Setting {
    (key, value.to_string())
}
