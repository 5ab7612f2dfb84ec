//! The sides of the comparison: what they are, and how one is started.

use std::any::Any;
use std::net::SocketAddr;
use std::path::PathBuf;

use super::envoy::{self, Envoy};
use super::load::Kind;
use super::options::Peer;
use super::process::free_addr;
use super::stack::{Chain, Etcd, PATH, Setting, fill, serve};

/// What a side is made of.
#[derive(Clone, Debug)]
pub enum Made {
    /// A small server that answers HTTP, by its name.
    Server(&'static str),
    /// Calls to tonic's server.
    Calls(Kind),
    /// Our gateway and feed service, with a share of traced requests and settings that are not the defaults.
    Chain(Option<f64>, Vec<Setting>),
    /// The same of another program, with a store in which `DIR` is a new directory.
    Build(PathBuf, &'static str),
    Envoy,
    Peer(Peer),
}

/// One side.
#[derive(Clone, Debug)]
pub struct Side {
    pub name: String,
    pub about: String,
    pub made: Made,
    /// Whether only its cost is of interest, at a fixed rate: a chain with one layer off.
    pub layer: bool,
}

fn off(key: &'static str, value: &str) -> Setting {
    (key, value.to_owned())
}

/// What turns retries, breakers, hedges and the fallback off, as far as settings can.
fn layers() -> [(&'static str, &'static str, Vec<Setting>); 4] {
    [
        ("no-retry", "everything, but one attempt a call", vec![off("client.attempts", "1")]),
        (
            "no-breaker",
            "everything, but breakers that do not open",
            vec![off("client.breaker_failures", "1000"), off("client.breaker_success_percent", "0")],
        ),
        ("no-hedge", "everything, but no hedges", vec![off("client.hedge_after_percent", "0")]),
        ("no-fallback", "everything, but no last good answers", vec![off("client.fallback_kib", "0")]),
    ]
}

/// Returns every side in the order of the table.
pub fn all(peers: &[Peer]) -> Vec<Side> {
    let side = |name: &str, about: &str, made| Side {
        name: name.to_owned(),
        about: about.to_owned(),
        made,
        layer: false,
    };
    let traced = Some(0.01);
    let without: Vec<Setting> = layers().into_iter().flat_map(|(_, _, settings)| settings).collect();
    let mut sides = vec![
        side("hyper", "hyper alone, `hello`", Made::Server("hyper")),
        side("warp", "a filter of warp, `hello`", Made::Server("warp")),
        side("tonic", "tonic's channel, one connection, and server", Made::Calls(Kind::Tonic)),
        side("client", "our client, all layers, and tonic's server", Made::Calls(Kind::Client)),
        side(
            "layers-off",
            "our chain, the layers that settings can turn off are off",
            Made::Chain(None, without),
        ),
        side("bare", "our chain as it comes, no traces", Made::Chain(None, vec![])),
        side(
            "everything",
            "our chain, 1 % of requests traced, slow ones logged",
            Made::Chain(traced, vec![]),
        ),
        side("traces-all", "our chain, every request traced", Made::Chain(Some(1.0), vec![])),
    ];
    if envoy::program().is_none() {
        println!("Envoy is not there, its side is left out: ENVOY names the program");
    } else {
        sides.push(side("envoy", "Envoy as transcoder before our feed service", Made::Envoy));
    }
    sides.extend(peers.iter().map(|peer| side(&peer.name, "a peer", Made::Peer(peer.clone()))));
    let mut layer = |name: &str, about, settings| {
        sides.push(Side { layer: true, ..side(name, about, Made::Chain(traced, settings)) });
    };
    for (name, about, settings) in layers() {
        layer(name, about, settings);
    }
    layer("access-log", "everything, and a log line for every request", vec![off("log.level", "debug")]);
    sides
}

/// A side that runs. Its processes end with it.
pub struct Running {
    /// The process that answers HTTP, if there is one.
    pub gateway: Option<u32>,
    pub services: Vec<u32>,
    pub kind: Kind,
    pub addr: SocketAddr,
    /// What ends with it.
    guards: Vec<Box<dyn Any>>,
}

impl Running {
    /// Returns the processes whose time is metered.
    pub fn processes(&self) -> Vec<u32> {
        self.gateway.iter().chain(&self.services).copied().collect()
    }

    pub fn url(&self) -> String {
        format!("http://{}{PATH}", self.addr)
    }
}

impl Side {
    /// Starts it and waits until it gives whole answers.
    pub fn start(&self, program: &std::path::Path, etcd: &Etcd) -> Running {
        let kind = Kind::Http;
        match &self.made {
            Made::Server(name) => {
                let addr = free_addr();
                let server = serve(name, addr);
                let gateway = Some(server.id());
                Running { gateway, services: vec![], kind, addr, guards: vec![Box::new(server)] }
            }
            Made::Calls(kind) => {
                let addr = free_addr();
                let server = serve("tonic", addr);
                let services = vec![server.id()];
                Running { gateway: None, services, kind: *kind, addr, guards: vec![Box::new(server)] }
            }
            Made::Chain(traces, settings) => chain(Chain::start(program, etcd, *traces, settings)),
            Made::Build(program, store) => {
                // memory ends with its process; a file would have to
                let dir = tempfile::tempdir().expect("a directory");
                let store = store.replace("DIR", &dir.path().display().to_string());
                let mut running = chain(Chain::start(program, etcd, None, &[("store.url", store)]));
                running.guards.push(Box::new(dir));
                running
            }
            Made::Envoy => {
                let envoy = Envoy::start(&envoy::program().expect("Envoy"), program, etcd);
                let (gateway, services) = (Some(envoy.proxy.id()), vec![envoy.feed.id()]);
                Running { gateway, services, kind, addr: envoy.addr, guards: vec![Box::new(envoy)] }
            }
            Made::Peer(peer) => {
                fill(peer.addr);
                let (gateway, services) = (Some(peer.processes[0]), peer.processes[1..].to_vec());
                Running { gateway, services, kind, addr: peer.addr, guards: vec![] }
            }
        }
    }
}

fn chain(chain: Chain) -> Running {
    Running {
        gateway: Some(chain.gateway.id()),
        services: vec![chain.feed.id()],
        kind: Kind::Http,
        addr: chain.addr,
        guards: vec![Box::new(chain)],
    }
}
