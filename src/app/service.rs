//! One instance of a service in a process: bind, build, serve, register, drain.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use futures_util::FutureExt as _;
use http::HeaderValue;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::common::{self, Common, Serving};
use super::drain::Turn;
use super::instance;
use super::role::{Member, ServiceKind};
use crate::admin::Phase;
use crate::api::headers::service_identity;
use crate::config::{ListenAddr, Store};
use crate::registry::{Instance, Registration, advertise};
use crate::server::listener::Listener;
use crate::server::threads::PerThread;
use crate::server::{Protocol, Stop, UnsentLimit, serve_on};
use crate::service::{Handler, Service};
use crate::tls::Acceptor;

/// Interval of the checks whether the store can be used, and the longest time for one.
const STORE_CHECK: Duration = Duration::from_secs(1);

/// An instance that is bound, but does not serve yet.
pub struct Bound {
    pub kind: ServiceKind,
    /// The service, as each thread has it.
    pub services: PerThread<Service>,
    pub listener: Listener,
    /// What others are to call, `host:port`.
    advertised: String,
}

/// Opens the store of a service. It may wait for the lock of another process, or for a database.
pub async fn open(
    common: &mut Common,
    kind: ServiceKind,
    store: &Store,
) -> anyhow::Result<PerThread<Service>> {
    let metrics = common.metrics.store.clone();
    let service = match kind {
        ServiceKind::Feed => Service::feed(store, &metrics).await?,
        ServiceKind::Profile => {
            let clients = common.clients(Member::Service(kind));
            let first = clients.first().cloned().context("there is no thread")?;
            let service = Service::profile(store, &metrics, first).await?;
            return Ok(clients.map(|_, client| service.with_client(client)));
        }
        ServiceKind::Topic => Service::topic(store, &metrics).await?,
    };
    Ok(common.threads.each(|_| service.clone()))
}

/// A started instance, as its drain needs it.
struct Running {
    handler: Handler,
    registration: Registration,
    /// Ends the checks of the store when it is dropped.
    checks: DropGuard,
    /// Begins the drain of the server.
    begin: CancellationToken,
    server: JoinHandle<()>,
    /// How long `draining` stands in the registry before the entry is deleted.
    announce: Duration,
}

impl Bound {
    /// Binds the listener of an instance and finds the address to advertise.
    pub fn new(
        common: &Common,
        kind: ServiceKind,
        services: PerThread<Service>,
        addr: ListenAddr,
    ) -> anyhow::Result<Self> {
        let own = match kind {
            ServiceKind::Feed => "up.feed_addr",
            ServiceKind::Profile => "up.profile_addr",
            ServiceKind::Topic => "up.topic_addr",
        };
        let acceptor = common.mutual.clone().map(Acceptor::mutual);
        let listener = common::bind(addr, &["grpc.addr", own])?.with_tls(acceptor);
        let configured = common.settings.grpc.advertise_addr.as_ref();
        let registry = &common.settings.registry;
        let advertised = advertise::service(listener.addr(), listener.families(), configured, registry)?;
        Ok(Self { kind, services, listener, advertised })
    }

    /// Builds the handler, serves, and registers.
    pub fn start(self, common: &Common, turn: Turn) -> anyhow::Result<Serving> {
        let Self { kind, services, listener, advertised } = self;
        let service = services.first().cloned().context("there is no thread")?;
        let (name, bound) = (kind.name(), listener.addr());
        let (instance, warnings) = instance::describe(&common.settings, name, advertised, common.admin);
        let grpc = &common.settings.grpc;
        let limits = common::limits(grpc.max_connections, grpc.write_timeout);
        let handler = build(common, kind, &service, &instance, bound, limits.unsent.clone())?;
        let metrics = &common.metrics.server;
        let handlers = services.map(|number, service| match number {
            0 => Ok(handler.clone()),
            _ => handler.on_thread(service, &metrics.of_thread(number)),
        });
        let answers = handlers.transpose()?.map(|_, handler| {
            let handler = Arc::new(handler.clone());
            move |request, peer| handler.clone().call(request, peer)
        });

        let begin = CancellationToken::new();
        let stop = Stop { begin: begin.clone(), grace: common.settings.shutdown.grace };
        let protocol = Protocol::Http2 { max_concurrent_streams: grpc.max_concurrent_streams };
        let server = tokio::spawn({
            let metrics = metrics.clone();
            async move { serve_on(listener, protocol, limits, &metrics, answers, stop).await }
        });
        // one that is known to be of no use now; what takes its time to answer is asked again soon
        let serving = !matches!(service.store().usable().now_or_never(), Some(Err(_)));
        handler.set_serving(serving);
        let (addr, threads) = (&instance.addr, common.threads.count());
        tracing::info!(service = name, addr = %bound, advertised = addr, admin = %common.admin, threads, "serving");
        for warning in service.store().warnings().iter().chain(&warnings) {
            tracing::warn!(service = name, "{warning}");
        }

        let checks = CancellationToken::new();
        let (found, store) = watch::channel(None);
        let check = follow_store(name, service.clone(), handler.clone(), serving, found);
        tokio::spawn(checks.clone().run_until_cancelled_owned(check));
        let checks = checks.drop_guard();

        let registration = common.registry.register(instance);
        let (role, phase) = common::role(name, bound, Some((service, store)), Some(&registration), warnings);
        let announce = common.settings.shutdown.announce;
        let running = Running { handler, registration, checks, begin, server, announce };
        let drain = Box::pin(async move {
            let present = turn.begin().await;
            phase.send_replace(Phase::Draining);
            let registration = running.drain(name).await;
            drop(present);
            registration.revoke().await;
        });
        Ok(Serving { role, drain })
    }
}

/// Tells in health checks whether the store can be used, and why not in `problem`. A store that is slow to answer is not
/// out of use, but not well either. `serving` is what health checks tell by now.
async fn follow_store(
    name: &'static str,
    service: Service,
    handler: Handler,
    mut serving: bool,
    problem: watch::Sender<Option<String>>,
) {
    loop {
        tokio::time::sleep(STORE_CHECK).await;
        let Ok(found) = tokio::time::timeout(STORE_CHECK, service.store().usable()).await else {
            problem.send_replace(Some(format!("store: no answer within {STORE_CHECK:?}")));
            continue;
        };
        problem.send_replace(found.as_ref().err().map(ToString::to_string));
        if found.is_ok() != serving {
            serving = found.is_ok();
            match found {
                Ok(()) => tracing::info!(service = name, "the store can be used again"),
                Err(error) => {
                    tracing::error!(service = name, %error, "not serving: the store cannot be used");
                }
            }
            handler.set_serving(serving);
        }
    }
}

/// Builds the handler of an instance. While `unsent`, that of its server, is full, calls are refused.
fn build(
    common: &Common,
    kind: ServiceKind,
    service: &Service,
    instance: &Instance,
    bound: SocketAddr,
    unsent: Arc<UnsentLimit>,
) -> anyhow::Result<Handler> {
    let identity = service_identity(&common.settings.registry.prefix, kind.name());
    let id = HeaderValue::from_str(&instance.id)?;
    let tracer = common.traces.tracer(kind.name(), instance.addr.parse().unwrap_or(bound));
    Handler::new(service, identity, id, &common.metrics.server, tracer, &common.settings, unsent)
}

impl Running {
    /// Leaves the registry step by step, then finishes the calls in flight. Returns the registration, of which only the
    /// lease is left.
    async fn drain(mut self, name: &'static str) -> Registration {
        self.registration.drain().await;
        drop(self.checks);
        self.handler.set_serving(false);
        tokio::time::sleep(self.announce).await;
        self.registration.delete().await;
        self.handler.end_watches();
        self.begin.cancel();
        if let Err(error) = self.server.await {
            tracing::error!(%error, service = name, "server failed");
        }
        self.registration
    }
}
