//! A process: binds its listeners, then builds, serves and registers its members, and drains them when it is told to
//! stop.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use super::common::{self, Common, Serving};
use super::drain::Drain;
use super::gateway;
use super::instance;
use super::metrics::Metrics;
use super::role::{Member, ServiceKind};
use super::service::{self, Bound};
use crate::admin;
use crate::client::{self, Connector, Secured};
use crate::config::{ListenAddr, Role, Settings, Store};
use crate::registry::{Dial, Etcd, Local, Registry, dial_tcp};
use crate::server::listener::Listener;
use crate::server::threads::Threads;
use crate::server::{Protocol, Stop, serve};
use crate::telemetry::log;
use crate::telemetry::trace::Traces;
use crate::tls::Mutual;

/// Time for the head of a request to the admin listener.
const ADMIN_HEADERS: Duration = Duration::from_secs(5);
/// Longest time that a reader of the admin listener may accept no data of an answer.
const ADMIN_WRITES: Duration = Duration::from_secs(10);
/// Time for answers of the admin listener after the process has drained.
const ADMIN_GRACE: Duration = Duration::from_millis(100);

/// The addresses that a process listens on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// Each member with its bound address, services first.
    pub roles: Vec<(&'static str, SocketAddr)>,
    /// The admin listener.
    pub admin: SocketAddr,
}

impl Addresses {
    /// Returns the address of the first instance of a role.
    #[must_use]
    pub fn of(&self, role: Role) -> Option<SocketAddr> {
        let found = self.roles.iter().find(|(name, _)| *name == role.name());
        found.map(|(_, addr)| *addr)
    }
}

/// How a process opens connections. A simulation passes its own.
pub struct Network {
    /// To instances of services.
    pub services: Connector,
    /// To etcd.
    pub etcd: Dial,
}

impl Network {
    /// Returns connections over TCP, those to services with TLS if there is a certificate for it.
    #[must_use]
    pub fn tcp(settings: &Settings, mutual: Option<Mutual>) -> Self {
        let secured = |mutual| Connector::new(Secured::new(mutual));
        let services = mutual.map_or_else(Connector::default, secured);
        Self { services, etcd: dial_tcp(settings.registry.timeout) }
    }
}

/// A process whose listeners are bound, but which answers nothing yet.
pub struct Process {
    common: Common,
    admin: Listener,
    services: Vec<Bound>,
    gateways: Vec<Listener>,
    log: Option<log::Log>,
}

impl Process {
    /// Binds the admin listener and chooses the registry: etcd if the settings name it, else one inside
    /// the process. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// When the address is taken, or a file with a certificate or with credentials for etcd cannot be used.
    pub fn new(role: Role, settings: Settings) -> anyhow::Result<Self> {
        Self::with_network(role, settings, Network::tcp)
    }

    /// As [`Self::new`], but its connections to services and to etcd are opened by `network`.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_network(
        role: Role,
        settings: Settings,
        network: impl FnOnce(&Settings, Option<Mutual>) -> Network,
    ) -> anyhow::Result<Self> {
        let metrics = Metrics::register()?;
        let threads = Threads::start(settings.runtime.threads, &metrics.server);
        let threads = threads.context("cannot start the threads of `runtime.threads`")?;
        let mutual = Mutual::start(role, &settings.tls, &settings.grpc, &metrics.tls)?;
        let network = network(&settings, mutual.clone());
        let connector = network.services.clone();
        let registry = registry(&settings, network)?;
        let admin = common::bind(settings.admin.addr, &["admin.addr"])?;
        let common = Common {
            traces: Traces::start(&settings.trace, &metrics.trace),
            admin: admin.addr(),
            clients: Vec::new(),
            threads: Arc::new(threads),
            mutual,
            connector,
            metrics,
            registry,
            settings,
        };
        Ok(Self { common, admin, services: Vec::new(), gateways: Vec::new(), log: None })
    }

    /// Adds an instance of a service: opens its store, binds its listener, finds the address to advertise.
    ///
    /// # Errors
    /// When one of these fails; the text says which.
    ///
    /// *Cancellation*: a thread that waits for the store's lock is left behind, until the process ends.
    pub async fn add_service(
        &mut self,
        kind: ServiceKind,
        addr: ListenAddr,
        store: &Store,
    ) -> anyhow::Result<()> {
        let services = service::open(&mut self.common, kind, store).await?;
        self.services.push(Bound::new(&self.common, kind, services, addr)?);
        Ok(())
    }

    /// Adds another instance of a service over the same store.
    ///
    /// # Errors
    /// As [`Self::add_service`].
    pub fn add_replica(&mut self, kind: ServiceKind, addr: ListenAddr) -> anyhow::Result<()> {
        let Some(first) = self.services.iter().find(|bound| bound.kind == kind) else {
            anyhow::bail!("there is no {} to replicate", kind.name());
        };
        let services = first.services.map(|_, service| service.clone());
        self.services.push(Bound::new(&self.common, kind, services, addr)?);
        Ok(())
    }

    /// Adds a gateway: on the sockets that systemd passes, else on the configured address.
    ///
    /// # Errors
    /// When the address is taken.
    pub fn add_gateway(&mut self) -> anyhow::Result<()> {
        self.gateways.extend(gateway::bind(self.common.settings.http.addr)?);
        Ok(())
    }

    /// Lets the admin listener show what the log has lost, and change its level.
    ///
    /// # Errors
    /// When it is called twice.
    pub fn set_log(&mut self, log: log::Log) -> anyhow::Result<()> {
        log.writer.metrics().register(&self.common.metrics.registry)?;
        self.log = Some(log);
        Ok(())
    }

    /// Returns the registry of the process.
    #[must_use]
    pub fn registry(&self) -> Arc<dyn Registry> {
        self.common.registry.clone()
    }

    /// Returns the threads that serve.
    #[must_use]
    pub fn threads(&self) -> Arc<Threads> {
        self.common.threads.clone()
    }

    /// Returns the bound addresses.
    #[must_use]
    pub fn addresses(&self) -> Addresses {
        let services = self.services.iter().map(|bound| (bound.kind.name(), bound.listener.addr()));
        let gateways = self.gateways.iter().map(|gateway| (Role::Apigateway.name(), gateway.addr()));
        Addresses { roles: services.chain(gateways).collect(), admin: self.common.admin }
    }

    /// Serves until `stop` is cancelled and the drain has ended. `ready` is called once every member serves.
    ///
    /// # Errors
    /// When a service cannot be built, or when the registry refuses the credentials of this process before
    /// it has ever accepted them: then the process drains and returns the reason.
    pub async fn run(self, stop: CancellationToken, ready: impl FnOnce()) -> anyhow::Result<()> {
        let Self { mut common, admin, services, gateways, log } = self;
        let token = admin::Token::open(&common.settings.admin, common.metrics.admin.unauthorized.clone())?
            .map(Arc::new);
        let (roles, mut drains) = start_members(&mut common, services, gateways, &stop)?;
        let level = log.map(|log| log.level);
        let (admin, stop_admin) = serve_admin(&common, admin, roles, level, token);
        ready();
        let failed = wait_for_drains(&mut drains, &common, &stop).await?;
        common.traces.stop().await;
        // the admin listener stops last, so that a drain can be watched
        stop_admin.cancel();
        admin.await?;
        common.threads.stop().await;
        if let Some(reason) = failed {
            anyhow::bail!(reason);
        }
        tracing::info!("stopped");
        Ok(())
    }
}

fn registry(settings: &Settings, network: Network) -> anyhow::Result<Arc<dyn Registry>> {
    if settings.registry.endpoints.is_empty() {
        return Ok(Arc::new(Local::default()));
    }
    let probe = client::probe(settings.client.clone(), settings.registry.prefix.clone(), network.services);
    Ok(Arc::new(Etcd::new(settings.registry.clone(), probe, network.etcd)?))
}

/// Starts every member, the gateways first. Returns their rows for the admin listener, and the tasks that end when they
/// have drained.
fn start_members(
    common: &mut Common,
    services: Vec<Bound>,
    gateways: Vec<Listener>,
    stop: &CancellationToken,
) -> anyhow::Result<(Vec<admin::Role>, JoinSet<()>)> {
    let drain = Drain::new(stop.clone());
    let (mut roles, mut drains) = (Vec::new(), JoinSet::new());
    let mut add = |member: Serving| {
        roles.push(member.role);
        drains.spawn(member.drain);
    };
    gateway::start(common, gateways, &drain)?.into_iter().for_each(&mut add);
    for service in services {
        let turn = drain.join(Member::Service(service.kind));
        add(service.start(common, turn)?);
    }
    drain.close();
    Ok((roles, drains))
}

/// Serves the admin listener. Returns its task, and the token that stops it.
fn serve_admin(
    common: &Common,
    listener: Listener,
    roles: Vec<admin::Role>,
    level: Option<log::Level>,
    token: Option<Arc<admin::Token>>,
) -> (JoinHandle<()>, CancellationToken) {
    let clients = common.clients.clone();
    // a process that calls no service does not follow the registry
    let view = (!clients.is_empty()).then(|| common.registry.view());
    let links = &common.settings.admin;
    let state = Arc::new(admin::State {
        roles,
        clients,
        threads: common.threads.clone(),
        view,
        names: instance::names(&common.settings),
        token,
        metrics: common.metrics.registry.clone(),
        registry_metrics: common.metrics.view.clone(),
        started_at: instance::seconds_since_1970(),
        history: admin::History::default(),
        events: common.metrics.events.clone(),
        links: admin::Links {
            grafana: links.grafana_url.clone(),
            prometheus: links.prometheus_url.clone(),
            zipkin: links.zipkin_url.clone(),
        },
        level,
    });
    let admin = admin::Handler::new(&state);
    let stop = CancellationToken::new();
    let observe = admin::observe(state, common.metrics.server.clone());
    tokio::spawn(stop.clone().run_until_cancelled_owned(observe));
    let stop_server = Stop { begin: stop.clone(), grace: ADMIN_GRACE };
    let limits = common::limits(common.settings.admin.max_connections, ADMIN_WRITES);
    let metrics = common.metrics.server.clone();
    let server = tokio::spawn(async move {
        let protocol = Protocol::Http1 { header_timeout: ADMIN_HEADERS };
        let answer = move |request, peer| admin.clone().call(request, peer);
        serve(listener, protocol, limits, &metrics, answer, stop_server).await;
    });
    (server, stop)
}

/// Waits until every member has drained. Begins the drain itself if the registry refuses the credentials or a thread ends,
/// and then returns the reason.
async fn wait_for_drains(
    drains: &mut JoinSet<()>,
    common: &Common,
    stop: &CancellationToken,
) -> anyhow::Result<Option<String>> {
    let drained = async {
        while let Some(ended) = drains.join_next().await {
            ended?;
        }
        Ok::<_, tokio::task::JoinError>(())
    };
    tokio::pin!(drained);
    let reason = tokio::select! {
        ended = &mut drained => {
            ended?;
            return Ok(None);
        }
        reason = common.registry.refused() => reason,
        () = common.threads.ended() => "a thread that serves requests has ended".to_owned(),
    };
    stop.cancel();
    drained.await?;
    Ok(Some(reason))
}
