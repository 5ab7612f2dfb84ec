//! The whole system as processes, and how a fault is done to it and undone.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::Signal;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep_until, timeout};

use super::plan::{INSTANCES, Kind, Plan, SERVICES, Step, Target};
use crate::kit::cluster::{Cluster, Member};
use crate::kit::etcd::Etcd;
use crate::kit::free_addr;
use crate::kit::guarantees::Sample;
use crate::kit::system::{Role, Sampler};

/// Longest time for a planned stop: the grace and a little more.
const STOP_LIMIT: Duration = Duration::from_secs(15);
/// Longest time for a request to an etcd that may be away.
const ETCD_LIMIT: Duration = Duration::from_millis(500);

/// The registry: one etcd or a cluster of three.
enum Registry {
    One(Box<Mutex<Etcd>>),
    Three(Vec<Mutex<Member>>),
}

/// One gateway. Its socket outlives its processes, as systemd's does.
struct Gateway {
    socket: TcpListener,
    view: PathBuf,
    /// None while it is away.
    running: Mutex<Option<(Role, Sampler)>>,
    /// What each of its earlier processes showed of its view.
    samples: Mutex<Vec<Vec<Sample>>>,
}

/// The system.
pub struct System {
    endpoints: String,
    registry: Registry,
    gateways: Vec<Gateway>,
    instances: Vec<Vec<(SocketAddr, Mutex<Option<Role>>)>>,
    directory: tempfile::TempDir,
    /// What no process may do.
    pub broken: Mutex<Vec<String>>,
    /// When each gateway was away or did not run.
    pub away: Mutex<Vec<(usize, Instant, Instant)>>,
}

impl System {
    /// Starts everything and waits until every gateway knows every instance.
    pub async fn start(plan: &Plan) -> Self {
        let (registry, endpoints) = if plan.members == 1 {
            let etcd = Etcd::start().await;
            let endpoints = etcd.addr.to_string();
            (Registry::One(Box::new(Mutex::new(etcd))), endpoints)
        } else {
            let cluster = Cluster::start().await;
            let endpoints = cluster.endpoints();
            (Registry::Three(cluster.members.into_iter().map(Mutex::new).collect()), endpoints)
        };
        let directory = tempfile::tempdir().expect("a directory");
        let gateways = (0..plan.gateways).map(|number| Gateway {
            socket: TcpListener::bind("127.0.0.1:0").expect("a free port"),
            view: directory.path().join(format!("view-{number}.json")),
            running: Mutex::new(None),
            samples: Mutex::default(),
        });
        let gateways = gateways.collect();
        let instances = SERVICES.map(|_| (0..INSTANCES).map(|_| (free_addr(), Mutex::new(None))).collect());
        let (broken, away) = (Mutex::default(), Mutex::default());
        let system =
            Self { endpoints, registry, gateways, instances: instances.into(), directory, broken, away };
        for service in 0..SERVICES.len() {
            for index in 0..INSTANCES {
                system.start_instance(service, index).await;
            }
        }
        for gateway in 0..plan.gateways {
            system.start_gateway(gateway).await;
            let running = system.gateways[gateway].running.lock().await;
            let (role, _) = running.as_ref().expect("it was started");
            for service in SERVICES {
                role.wait_for_certain(service, INSTANCES).await;
            }
        }
        system
    }

    /// Returns the addresses of the gateways.
    pub fn gateways(&self) -> Vec<SocketAddr> {
        self.gateways.iter().map(|gateway| gateway.socket.local_addr().expect("its address")).collect()
    }

    /// Returns the address of an instance.
    pub fn addr(&self, (service, index): (usize, usize)) -> SocketAddr {
        self.instances[service][index].0
    }

    /// Returns the admin address of each gateway; panics if one is away.
    pub async fn admins(&self) -> Vec<SocketAddr> {
        let mut admins = Vec::new();
        for gateway in &self.gateways {
            admins.push(gateway.running.lock().await.as_ref().expect("it runs").0.admin);
        }
        admins
    }

    /// Does the fault of a step at its time and undoes it at its end.
    pub async fn play(&self, start: Instant, step: Step) {
        sleep_until(start + step.begin).await;
        let begun = Instant::now();
        self.begin(step).await;
        sleep_until(start + step.end).await;
        self.end(step).await;
        if let Target::Gateway(number) = step.target {
            self.away.lock().await.push((number, begun, Instant::now()));
        }
    }

    async fn begin(&self, step: Step) {
        match (step.target, step.kind) {
            (Target::Instance(service, index), Kind::Freeze) => {
                let instance = self.instances[service][index].1.lock().await;
                instance.as_ref().expect("it runs").process.signal(Signal::STOP);
            }
            (Target::Instance(service, index), kind) => {
                let role = self.instances[service][index].1.lock().await.take().expect("it runs");
                self.take_away(role, kind).await;
            }
            (Target::Gateway(number), Kind::Freeze) => {
                let running = self.gateways[number].running.lock().await;
                running.as_ref().expect("it runs").0.process.signal(Signal::STOP);
            }
            (Target::Gateway(number), kind) => {
                let gateway = &self.gateways[number];
                let (role, sampler) = gateway.running.lock().await.take().expect("it runs");
                gateway.samples.lock().await.push(sampler.finish().await);
                self.take_away(role, kind).await;
                if kind == Kind::DamageView {
                    std::fs::write(&gateway.view, b"{\"services\": [garbage").expect("a file");
                }
            }
            (Target::Etcd(number), kind) => self.strike_etcd(number, kind).await,
            (Target::Registry, kind) => {
                // an etcd that is away cannot be told; then nothing happens
                let _ = timeout(ETCD_LIMIT, self.change_registry(kind)).await;
            }
            (Target::Store(service), _) => {
                let (path, lasts) = (self.store(service), step.end.saturating_sub(step.begin));
                tokio::task::spawn_blocking(move || lock(&path, lasts));
            }
        }
    }

    async fn end(&self, step: Step) {
        match (step.target, step.kind) {
            (Target::Instance(service, index), Kind::Freeze) => {
                let instance = self.instances[service][index].1.lock().await;
                instance.as_ref().expect("it runs").process.signal(Signal::CONT);
            }
            (Target::Instance(service, index), _) => self.start_instance(service, index).await,
            (Target::Gateway(number), Kind::Freeze) => {
                let running = self.gateways[number].running.lock().await;
                running.as_ref().expect("it runs").0.process.signal(Signal::CONT);
            }
            (Target::Gateway(number), _) => self.start_gateway(number).await,
            (Target::Etcd(number), kind) => match &self.registry {
                Registry::One(etcd) if kind == Kind::Freeze => etcd.lock().await.signal(Signal::CONT),
                Registry::One(etcd) if kind == Kind::Wipe => etcd.lock().await.wipe().await,
                Registry::One(etcd) => etcd.lock().await.restart().await,
                Registry::Three(members) if kind == Kind::Freeze => {
                    members[number].lock().await.signal(Signal::CONT);
                }
                // not `restart`, which waits for a quorum that may be away
                Registry::Three(members) => members[number].lock().await.launch(),
            },
            (Target::Registry | Target::Store(_), _) => {}
        }
    }

    async fn strike_etcd(&self, number: usize, kind: Kind) {
        match &self.registry {
            Registry::One(etcd) if kind == Kind::Freeze => etcd.lock().await.signal(Signal::STOP),
            Registry::One(etcd) => etcd.lock().await.kill(),
            Registry::Three(members) if kind == Kind::Freeze => {
                members[number].lock().await.signal(Signal::STOP);
            }
            Registry::Three(members) => members[number].lock().await.kill(),
        }
    }

    async fn change_registry(&self, kind: Kind) -> Option<()> {
        let endpoints: Vec<_> = self.endpoints.split(',').collect();
        let mut client = etcd_client::Client::connect(endpoints, None).await.ok()?;
        let key = |service: usize, index| {
            format!("/services/{}/{}", SERVICES[service], self.addr((service, index)))
        };
        match kind {
            Kind::RevokeLease(service, index) => {
                let found = client.get(key(service, index), None).await.ok()?;
                client.lease_revoke(found.kvs().first()?.lease()).await.ok()?;
            }
            Kind::DeleteKey(service, index) => {
                client.delete(key(service, index), None).await.ok()?;
            }
            _ => {
                let revision = client.get("/", None).await.ok()?.header()?.revision();
                client.compact(revision, None).await.ok()?;
            }
        }
        Some(())
    }

    /// Ends a process: at once, or by SIGTERM, which must end it well.
    async fn take_away(&self, mut role: Role, kind: Kind) {
        let ended = tokio::task::spawn_blocking(move || {
            if kind == Kind::Stop {
                role.process.signal(Signal::TERM);
                let status = role.process.wait(STOP_LIMIT);
                if !status.success() {
                    return (role, Some(format!("{status} after SIGTERM")));
                }
            } else {
                role.process.kill();
            }
            (role, None)
        });
        let (mut role, error) = ended.await.expect("it ends");
        self.broken.lock().await.extend(error);
        self.look_for_panics(&mut role).await;
    }

    async fn look_for_panics(&self, role: &mut Role) {
        let count = role.process.count_logs(|line| line.to_string().contains("panicked"));
        if count > 0 {
            self.broken.lock().await.push(format!("{count} panics of {}", role.addr));
        }
    }

    async fn start_instance(&self, service: usize, index: usize) {
        let (addr, slot) = &self.instances[service][index];
        let (endpoints, listen) = (self.endpoints.clone(), addr.to_string());
        let store = format!("sqlite:{}", self.store(service).display());
        let start =
            move || Role::start(&endpoints, SERVICES[service], &listen, &[("MSA__STORE__URL", &store)]);
        *slot.lock().await = Some(tokio::task::spawn_blocking(start).await.expect("it starts"));
    }

    async fn start_gateway(&self, number: usize) {
        let gateway = &self.gateways[number];
        let (endpoints, view) = (self.endpoints.clone(), gateway.view.display().to_string());
        let socket = gateway.socket.try_clone().expect("a socket");
        let start = move || {
            let env = [
                ("MSA__REGISTRY__SNAPSHOT_FILE", view.as_str()),
                ("MSA__REGISTRY__TTL_S", "1"),
                ("MSA__REGISTRY__KEEPALIVE_MS", "300"),
            ];
            Role::gateway_on(&socket, &endpoints, &env)
        };
        let role = tokio::task::spawn_blocking(start).await.expect("it starts");
        let sampler = role.sample();
        *gateway.running.lock().await = Some((role, sampler));
    }

    fn store(&self, service: usize) -> PathBuf {
        self.directory.path().join(format!("{}.db", SERVICES[service]))
    }

    /// Stops observing; returns what each gateway process showed of its view.
    pub async fn finish(&self) -> Vec<Vec<Sample>> {
        let mut all = Vec::new();
        for gateway in &self.gateways {
            if let Some((mut role, sampler)) = gateway.running.lock().await.take() {
                gateway.samples.lock().await.push(sampler.finish().await);
                self.look_for_panics(&mut role).await;
            }
            all.append(&mut *gateway.samples.lock().await);
        }
        for (_, instance) in self.instances.iter().flatten() {
            if let Some(role) = instance.lock().await.as_mut() {
                self.look_for_panics(role).await;
            }
        }
        all
    }
}

/// Holds the write lock of a store file.
fn lock(path: &std::path::Path, lasts: Duration) {
    let Ok(db) = rusqlite::Connection::open(path) else { return };
    let _ = db.busy_timeout(lasts);
    if db.execute_batch("BEGIN IMMEDIATE").is_ok() {
        std::thread::sleep(lasts);
        let _ = db.execute_batch("ROLLBACK");
    }
}
