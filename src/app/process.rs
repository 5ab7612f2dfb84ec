//! A process and its roles: binds every listener, then builds, then serves, then registers; and takes
//! the same way back when it is told to stop.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::HeaderValue;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::metrics::Metrics;
use crate::admin::{self, Admin, Phase};
use crate::api::headers::service_identity;
use crate::build_info;
use crate::client::{self, Client, Connector};
use crate::config::{ListenAddr, Role, Settings, StoreUrl};
use crate::gateway::Gateway;
use crate::limit::Limit;
use crate::registry::{Etcd, Instance, Local, Registration, Registry, advertise};
use crate::server::listener::Listener;
use crate::server::{Limits, MAX_UNSENT, Protocol, Stop, serve};
use crate::service::{Handler, Service};
use crate::telemetry::log;
use crate::telemetry::trace::Traces;

/// What a gateway's drain may take beyond its longest deadline.
const GATEWAY_MARGIN: Duration = Duration::from_millis(500);
/// Time for a request's head on the admin listener.
const ADMIN_HEADERS: Duration = Duration::from_secs(5);
/// Time that a reader of the admin listener may take nothing of an answer.
const ADMIN_WRITES: Duration = Duration::from_secs(10);

/// The addresses that a process listens on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// Each role with its bound address, in the order of their start.
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

/// A process that has been put together and bound, but answers nothing yet.
pub struct Process {
    settings: Settings,
    metrics: Metrics,
    traces: Traces,
    registry: Arc<dyn Registry>,
    admin: Listener,
    services: Vec<Prepared>,
    gateways: Vec<Listener>,
    clients: Vec<Client>,
    roles: Vec<admin::Role>,
    level: Option<log::Level>,
}

/// Held by roles that call others; the token beside it is cancelled when the last one is dropped.
#[derive(Clone)]
struct Present(#[expect(dead_code, reason = "held, not read")] watch::Receiver<()>);

impl Present {
    fn new() -> (Self, CancellationToken) {
        let (last, present) = watch::channel(());
        let gone = CancellationToken::new();
        let token = gone.clone();
        tokio::spawn(async move {
            last.closed().await;
            token.cancel();
        });
        (Self(present), gone)
    }
}

/// Returns the limits of one role's listeners.
fn limits(max_connections: usize, write_timeout: Duration) -> Limits {
    Limits { max_connections, write_timeout, unsent: Limit::new(MAX_UNSENT, None) }
}

/// A service instance before its start.
struct Prepared {
    service: Service,
    listener: Listener,
    addr: String,
}

impl Process {
    /// Binds the admin listener and chooses the registry: etcd if the settings name it, else one inside
    /// the process. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// When the address is taken, or a file that leads to etcd cannot be used.
    pub fn new(settings: Settings) -> anyhow::Result<Self> {
        let registry: Arc<dyn Registry> = if settings.registry.endpoints.is_empty() {
            Arc::new(Local::default())
        } else {
            let (client, prefix) = (settings.client.clone(), settings.registry.prefix.clone());
            let probe = client::probe(client, prefix, Connector::default());
            Arc::new(Etcd::new(settings.registry.clone(), probe)?)
        };
        let metrics = Metrics::register()?;
        Ok(Self {
            admin: Listener::bind(settings.admin.addr.0)?,
            traces: Traces::start(&settings.trace, &metrics.trace),
            metrics,
            registry,
            services: Vec::new(),
            gateways: Vec::new(),
            clients: Vec::new(),
            roles: Vec::new(),
            level: None,
            settings,
        })
    }

    /// Adds an instance of a service: opens its store, binds its listener, finds its address.
    ///
    /// # Errors
    /// When one of these fails; the text says which.
    pub fn add_service(&mut self, role: Role, addr: ListenAddr, store: &StoreUrl) -> anyhow::Result<()> {
        let service = match role {
            Role::Profile => {
                let client = self.client(&["feed"]);
                Service::profile(store, &self.metrics.store, client)?
            }
            Role::Topic => Service::topic(store, &self.metrics.store)?,
            _ => Service::feed(store, &self.metrics.store)?,
        };
        self.add_instance(service, addr)
    }

    /// Adds another instance of a service over the same store.
    ///
    /// # Errors
    /// As [`Self::add_service`].
    pub fn add_replica(&mut self, role: Role, addr: ListenAddr) -> anyhow::Result<()> {
        let first = self.services.iter().find(|prepared| prepared.service.name() == role.name());
        let service = first.map(|prepared| prepared.service.clone());
        match service {
            Some(service) => self.add_instance(service, addr),
            None => anyhow::bail!("there is no {} to replicate", role.name()),
        }
    }

    fn add_instance(&mut self, service: Service, addr: ListenAddr) -> anyhow::Result<()> {
        let listener = Listener::bind(addr.0)?;
        let grpc = &self.settings.grpc;
        let addr =
            advertise::service(listener.addr(), grpc.advertise_addr.as_ref(), &self.settings.registry)?;
        self.services.push(Prepared { service, listener, addr });
        Ok(())
    }

    /// Adds a gateway: on the sockets that systemd passed, else on the configured address.
    ///
    /// # Errors
    /// When the address is taken.
    pub fn add_gateway(&mut self) -> anyhow::Result<()> {
        let mut passed = listenfd::ListenFd::from_env();
        for index in 0..passed.len() {
            if let Some(socket) = passed.take_tcp_listener(index)? {
                self.gateways.push(Listener::adopt(socket)?);
            }
        }
        if self.gateways.is_empty() {
            self.gateways.push(Listener::bind(self.settings.http.addr.0)?);
        }
        Ok(())
    }

    fn client(&mut self, services: &[&'static str]) -> Client {
        let client = Client::new(
            services,
            &self.settings.client,
            &self.settings.registry.prefix,
            &self.registry.view(),
            &self.metrics.client,
            &Connector::default(),
        );
        self.clients.push(client.clone());
        client
    }

    /// Lets the admin listener change what is logged.
    pub fn set_level(&mut self, level: log::Level) {
        self.level = Some(level);
    }

    /// Returns the registry, for whoever else wants to register or to look.
    #[must_use]
    pub fn registry(&self) -> Arc<dyn Registry> {
        self.registry.clone()
    }

    /// Returns the bound addresses.
    #[must_use]
    pub fn addresses(&self) -> Addresses {
        let services = self.services.iter().map(|p| (p.service.name(), p.listener.addr()));
        let gateways = self.gateways.iter().map(|g| (Role::Apigateway.name(), g.addr()));
        Addresses { roles: services.chain(gateways).collect(), admin: self.admin.addr() }
    }

    /// Serves until `stop` is cancelled and the drain is over. `ready` is called once every role answers.
    ///
    /// # Errors
    /// When a service cannot be built, or when the registry refuses the credentials of this process before
    /// it has ever taken them: then it drains and says why.
    pub async fn run(mut self, stop: CancellationToken, ready: impl FnOnce()) -> anyhow::Result<()> {
        let admin_addr = self.admin.addr();
        let mut tasks = JoinSet::new();
        let gateways = std::mem::take(&mut self.gateways);
        // in one process those who call drain before those who are called, so that a request which has
        // begun still finds its services
        let (edge, edge_gone) = Present::new();
        let (profiles, profiles_gone) = Present::new();
        self.start_gateway(gateways, &stop, &edge, admin_addr, &mut tasks);
        for prepared in std::mem::take(&mut self.services) {
            let callers_gone = [stop.clone(), edge_gone.clone(), profiles_gone.clone()];
            let (wait_for, present) = match prepared.service {
                Service::Profile(..) => (&callers_gone[..2], Some(profiles.clone())),
                Service::Feed(_) => (&callers_gone[..], None),
                Service::Topic(_) => (&callers_gone[..2], None),
            };
            self.start_service(prepared, wait_for.to_vec(), present, admin_addr, &mut tasks).await?;
        }
        drop((edge, profiles));
        // who calls nobody does not follow the registry
        let view = (!self.clients.is_empty()).then(|| self.registry.view());
        let metrics = self.metrics.server.clone();
        let admin =
            Admin::new(self.roles, self.clients, view, self.metrics.registry, self.metrics.view, self.level)
                .handler();
        let end = CancellationToken::new();
        let stop_admin = Stop { begin: end.clone(), grace: Duration::from_millis(100) };
        let limits = limits(self.settings.admin.max_connections, ADMIN_WRITES);
        let admin = tokio::spawn(async move {
            let protocol = Protocol::Http1 { header_timeout: ADMIN_HEADERS };
            let answer = move |request, peer| admin.clone().call(request, peer);
            serve(self.admin, protocol, limits, &metrics, answer, stop_admin).await;
        });
        ready();
        // the admin listener outlives the roles: a drain can be watched
        let drained = async {
            while let Some(ended) = tasks.join_next().await {
                ended?;
            }
            Ok::<_, tokio::task::JoinError>(())
        };
        tokio::pin!(drained);
        let refused = tokio::select! {
            ended = &mut drained => {
                ended?;
                None
            }
            reason = self.registry.refused() => {
                stop.cancel();
                drained.await?;
                Some(reason)
            }
        };
        self.traces.stop().await;
        end.cancel();
        admin.await?;
        if let Some(reason) = refused {
            anyhow::bail!(reason);
        }
        tracing::info!("stopped");
        Ok(())
    }

    /// Starts one instance. It drains once each of `stop` is cancelled, and is present until it has.
    async fn start_service(
        &mut self,
        prepared: Prepared,
        stop: Vec<CancellationToken>,
        present: Option<Present>,
        admin: SocketAddr,
        tasks: &mut JoinSet<()>,
    ) -> anyhow::Result<()> {
        let Prepared { service, listener, addr } = prepared;
        let name = service.name();
        let (instance, warnings) = self.instance(name, addr, admin);
        let identity = service_identity(&self.settings.registry.prefix, name);
        let id = HeaderValue::from_str(&instance.id)?;
        let grpc = &self.settings.grpc;
        let limits = limits(grpc.max_connections, grpc.write_timeout);
        let unsent = limits.unsent.clone();
        let bound = listener.addr();
        let tracer = self.traces.tracer(name, instance.addr.parse().unwrap_or(bound));
        let handler =
            Handler::new(&service, identity, id, &self.metrics.server, tracer, &self.settings, unsent);
        let mut handler = handler.await?;
        let begin = CancellationToken::new();
        let stop_server = Stop { begin: begin.clone(), grace: self.settings.shutdown.grace };
        let protocol = Protocol::Http2 { max_concurrent_streams: grpc.max_concurrent_streams };
        let server = tokio::spawn({
            let (handler, metrics) = (handler.clone(), self.metrics.server.clone());
            let answer = move |request, peer| handler.clone().call(request, peer);
            async move { serve(listener, protocol, limits, &metrics, answer, stop_server).await }
        });
        handler.set_serving(true).await;
        tracing::info!(service = name, addr = %bound, advertised = instance.addr, %admin, "serving");
        for warning in service.store().warnings().iter().chain(&warnings) {
            tracing::warn!(service = name, "{warning}");
        }
        let mut registration = self.registry.register(instance);
        let phase = self.add_role(name, bound, Some(service), Some(&registration), warnings);
        let announce = self.settings.shutdown.announce;
        tasks.spawn(async move {
            for each in stop {
                each.cancelled().await;
            }
            phase.send_replace(Phase::Draining);
            registration.drain().await;
            handler.set_serving(false).await;
            tokio::time::sleep(announce).await;
            registration.delete().await;
            handler.end_watches().await;
            begin.cancel();
            if let Err(error) = server.await {
                tracing::error!(%error, service = name, "server failed");
            }
            drop(present);
            registration.revoke().await;
        });
        Ok(())
    }

    /// Starts the gateway on each of its sockets. They drain on `stop` and are present until they have.
    fn start_gateway(
        &mut self,
        listeners: Vec<Listener>,
        stop: &CancellationToken,
        present: &Present,
        admin: SocketAddr,
        tasks: &mut JoinSet<()>,
    ) {
        if listeners.is_empty() {
            return;
        }
        let name = Role::Apigateway.name();
        let client = self.client(&Role::SERVICES.map(Role::name));
        let http = &self.settings.http;
        let limits = limits(http.max_connections, http.write_timeout);
        let addr = listeners.first().map_or(http.addr.0, Listener::addr);
        let tracer = self.traces.tracer(name, addr);
        let gateway =
            Gateway::new(client, &self.metrics.server, tracer, &self.settings, limits.unsent.clone());
        let grace = self.settings.shutdown.grace.min(self.settings.client.deadline + GATEWAY_MARGIN);
        for listener in listeners {
            let bound = listener.addr();
            tracing::info!(service = name, addr = %bound, %admin, "serving");
            let protocol = Protocol::Http1 { header_timeout: self.settings.http.header_timeout };
            let stop_server = Stop { begin: stop.clone(), grace };
            let server = tokio::spawn({
                let (gateway, limits, metrics) =
                    (gateway.clone(), limits.clone(), self.metrics.server.clone());
                let answer = move |request, peer| gateway.clone().call(request, peer);
                async move { serve(listener, protocol, limits, &metrics, answer, stop_server).await }
            });
            // nobody balances over gateways; they register to be seen, so an address that cannot be
            // found is no reason not to serve
            let (mut registration, warnings) = match advertise::service(bound, None, &self.settings.registry)
            {
                Ok(addr) => {
                    let (instance, warnings) = self.instance(name, addr, admin);
                    (Some(self.registry.register(instance)), warnings)
                }
                Err(error) => (None, vec![format!("not registered: {error}")]),
            };
            for warning in &warnings {
                tracing::warn!(service = name, "{warning}");
            }
            let phase = self.add_role(name, bound, None, registration.as_ref(), warnings);
            let (stop, present) = (stop.clone(), present.clone());
            tasks.spawn(async move {
                stop.cancelled().await;
                phase.send_replace(Phase::Draining);
                // the server has begun to drain already; the word is for who looks after gateways: one that
                // leaves without it has crashed
                if let Some(registration) = &mut registration {
                    registration.drain().await;
                }
                if let Err(error) = server.await {
                    tracing::error!(%error, service = name, "server failed");
                }
                drop(present);
                if let Some(registration) = registration {
                    registration.revoke().await;
                }
            });
        }
    }

    /// Notes a role that has begun to serve.
    fn add_role(
        &mut self,
        name: &'static str,
        addr: SocketAddr,
        service: Option<Service>,
        registration: Option<&Registration>,
        warnings: Vec<String>,
    ) -> watch::Sender<Phase> {
        let (phase, phase_rx) = watch::channel(Phase::Serving);
        self.roles.push(admin::Role {
            name,
            addr,
            phase: phase_rx,
            service,
            registration: registration.map(Registration::state),
            warnings,
        });
        phase
    }

    /// Returns what is registered for a role, and what is odd about it.
    fn instance(&self, service: &str, addr: String, admin: SocketAddr) -> (Instance, Vec<String>) {
        let registry = &self.settings.registry;
        let configured = self.settings.admin.advertise_addr.as_ref();
        let admin = advertise::admin(admin, configured, &addr, registry);
        let unreachable = "the admin address is a loopback one and etcd is remote: it is not advertised";
        let warnings = if admin.is_none() { vec![unreachable.to_owned()] } else { Vec::new() };
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let instance = Instance {
            service: service.to_owned(),
            addr,
            id: format!("{:016x}", crate::random::id()),
            version: build_info::VERSION.to_owned(),
            zone: registry.zone.clone(),
            weight: registry.weight,
            draining: false,
            admin,
            started_at: now.map_or(0, |now| now.as_secs()),
        };
        (instance, warnings)
    }
}
