//! The second listener of every role, for operators: `/metrics`, `/livez`, `/readyz`, `/status`,
//! `/loglevel`, `/debug/pprof/*`, and `/sd/targets` where the registry is followed.
//!
//! What changes the process or slows it down is for callers on this host, whatever the listener is bound to.
//!
//! Ready means that a call would succeed as far as this process alone decides; what it depends on is a
//! warning line and a metric, so that one lost dependency does not take every instance out at once.

mod loglevel;
mod pprof;
#[cfg(feature = "cpu-profile")]
pub mod profile;
#[cfg(feature = "cpu-profile")]
mod profiler;
mod targets;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;
use tower::Service as _;
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::reply::Response;

use crate::client::Client;
use crate::registry::metrics::Metrics as ViewMetrics;
use crate::registry::{Registered, ViewHandle};
use crate::service::Service;
use crate::telemetry::log;
use crate::telemetry::metrics;

/// Longest time a store may take to show that it can be read.
const STORE_LIMIT: Duration = Duration::from_secs(1);
/// Age of the view above which the registry counts as away: etcd is asked every second.
const STALE: Duration = Duration::from_secs(5);

/// Where a role is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Calls are answered.
    Serving,
    /// The last calls are being answered.
    Draining,
}

impl Phase {
    const fn name(self) -> &'static str {
        match self {
            Self::Serving => "serving",
            Self::Draining => "draining",
        }
    }
}

/// One role of the process, as operators see it.
#[derive(Clone)]
pub struct Role {
    /// `feed`, `apigateway`, ...
    pub name: &'static str,
    /// The bound address.
    pub addr: std::net::SocketAddr,
    /// Where it is in its life.
    pub phase: watch::Receiver<Phase>,
    /// The service behind it; none for a gateway.
    pub service: Option<Service>,
    /// Its entry in the registry, if it has one.
    pub registration: Option<watch::Receiver<Registered>>,
    /// What was odd at the start.
    pub warnings: Vec<String>,
}

/// Everything the admin listener tells. Cheap to clone.
#[derive(Clone)]
pub struct Admin(Arc<Inner>);

struct Inner {
    roles: Vec<Role>,
    clients: Vec<Client>,
    /// None in a process that calls nobody.
    view: Option<ViewHandle>,
    metrics: prometheus::Registry,
    view_metrics: ViewMetrics,
    /// The last page of metrics, and when it was begun; held while one is made.
    page: Arc<tokio::sync::Mutex<Option<(Instant, Bytes)>>>,
    /// None where something else than [`log::init`] decides what is logged.
    level: Option<log::Level>,
}

/// Where a request comes from.
#[derive(Clone, Copy)]
struct Peer(IpAddr);

impl Peer {
    /// Refuses callers from elsewhere.
    fn local(self) -> Result<(), Refusal> {
        if self.0.to_canonical().is_loopback() {
            return Ok(());
        }
        Err(Refusal(StatusCode::FORBIDDEN, "for callers on this host only".to_owned()))
    }
}

/// Why a request is not answered as it wishes.
struct Refusal(StatusCode, String);

impl From<Refusal> for Response {
    fn from(Refusal(status, reason): Refusal) -> Self {
        text(status, reason + "\n")
    }
}

impl Admin {
    /// Returns an admin listener's content for a process.
    #[must_use]
    pub fn new(
        roles: Vec<Role>,
        clients: Vec<Client>,
        view: Option<ViewHandle>,
        metrics: prometheus::Registry,
        view_metrics: ViewMetrics,
        level: Option<log::Level>,
    ) -> Self {
        let page = Arc::default();
        Self(Arc::new(Inner { roles, clients, view, metrics, view_metrics, page, level }))
    }

    /// Returns what answers requests.
    #[must_use]
    pub fn handler(self) -> Handler {
        let metrics = self.clone();
        let metrics = warp::path!("metrics").then(move || {
            let admin = metrics.clone();
            async move { admin.metrics().await }
        });
        let live = warp::path!("livez").map(|| text(StatusCode::OK, "ok\n".to_owned()));
        let ready = self.clone();
        let ready = warp::path!("readyz").then(move || {
            let admin = ready.clone();
            async move { admin.ready().await }
        });
        let level = loglevel::routes(self.0.level.clone());
        let targets = self.clone();
        let targets = warp::path!("sd" / "targets").map(move || targets.targets());
        let status = warp::path!("status").map(move || self.status());
        let get = metrics.or(live).unify().or(ready).unify().or(targets).unify().or(status).unify();
        let get = get.or(pprof::routes()).unify();
        let head = warp::get().or(warp::head()).unify();
        let unknown = warp::any().map(|| {
            let known = "want GET /metrics, /livez, /readyz, /status, /sd/targets, /loglevel or \
                /debug/pprof/profile\n";
            text(StatusCode::NOT_FOUND, known.to_owned())
        });
        Handler(head.and(get).or(level).unify().or(unknown).unify().boxed())
    }

    /// Tells the metrics as they are after the request has come. A page takes a millisecond: it is made on a thread
    /// of its own, so that requests are answered meanwhile, one at a time, for all who wait.
    async fn metrics(&self) -> Response {
        let came = Instant::now();
        let mut last = self.0.page.clone().lock_owned().await;
        let page = match &*last {
            Some((begun, page)) if *begun >= came => Ok(page.clone()),
            _ => {
                let admin = self.clone();
                let made = tokio::task::spawn_blocking(move || {
                    let begun = Instant::now();
                    let page = Bytes::from(admin.page());
                    *last = Some((begun, page.clone()));
                    page
                });
                made.await
            }
        };
        let mut response = match page {
            Ok(page) => Response::new(page.into()),
            Err(error) => {
                tracing::error!(%error, "metrics cannot be told");
                return text(StatusCode::INTERNAL_SERVER_ERROR, "metrics cannot be told\n".to_owned());
            }
        };
        let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        response
    }

    fn page(&self) -> String {
        let inner = &self.0;
        if let Some(view) = &inner.view {
            inner.view_metrics.set_view(view);
        }
        Client::update_gauges(&inner.clients);
        let registrations = inner.roles.iter().filter_map(|role| {
            let state = *role.registration.as_ref()?.borrow();
            Some((role.name, state))
        });
        inner.view_metrics.set_registrations(registrations);
        metrics::text(&inner.metrics)
    }

    async fn ready(&self) -> Response {
        let (mut failures, mut warnings) = (Vec::new(), Vec::new());
        for role in &self.0.roles {
            role.examine(&mut failures, &mut warnings).await;
        }
        if let Some(view) = &self.0.view {
            let gateway = self.0.roles.iter().any(|role| role.service.is_none());
            match view.age() {
                Some(age) if age > STALE => {
                    warnings.push(format!("registry: last heard from {} s ago", age.as_secs()));
                }
                None if gateway && !view.get().is_known() => {
                    failures.push("registry: never heard from yet".to_owned());
                }
                None => warnings.push("registry: never heard from yet".to_owned()),
                Some(_) => {}
            }
        }
        for (service, snapshot) in self.0.clients.iter().flat_map(Client::snapshots) {
            if snapshot.usable.is_empty() {
                warnings.push(format!("{service}: no instance can be called"));
            }
        }
        let status = if failures.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        let mut out = String::from(if failures.is_empty() { "ready\n" } else { "not ready\n" });
        for (kind, lines) in [("fail", failures), ("warn", warnings)] {
            for line in lines {
                out.extend([kind, ": ", &line, "\n"]);
            }
        }
        text(status, out)
    }

    fn status(&self) -> Response {
        let roles = self.0.roles.iter().map(|role| {
            let registration = role.registration.as_ref().map(|state| state.borrow().name());
            json!({
                "name": role.name, "addr": role.addr.to_string(),
                "phase": role.phase.borrow().name(), "registration": registration,
            })
        });
        let body = json!({
            "version": crate::build_info::VERSION,
            "roles": roles.collect::<Vec<_>>(),
            "registry": self.0.view.as_ref().map(registry),
            "clients": self.0.clients.iter().map(Client::status).collect::<Vec<_>>(),
            "best_effort": self.0.clients.iter().map(Client::best_effort).collect::<Vec<_>>(),
        });
        json(&body)
    }

    fn targets(&self) -> Response {
        let Some(view) = &self.0.view else {
            let elsewhere = "this process does not follow the registry: ask a gateway\n";
            return text(StatusCode::NOT_FOUND, elsewhere.to_owned());
        };
        let view = view.get();
        if !view.is_known() {
            // not an empty list: Prometheus keeps what it had when it is refused
            let unknown = "the registry has not been read yet\n";
            return text(StatusCode::SERVICE_UNAVAILABLE, unknown.to_owned());
        }
        json(&targets::groups(&view, Instant::now()))
    }
}

/// What answers the requests of an admin listener. Cheap to clone.
#[derive(Clone)]
pub struct Handler(BoxedFilter<(Response,)>);

impl Handler {
    /// Answers one request of the caller at `peer`.
    pub async fn call(self, mut request: http::Request<Incoming>, peer: IpAddr) -> Response {
        request.extensions_mut().insert(Peer(peer));
        match warp::service(self.0).call(request).await {
            Ok(response) => response,
        }
    }
}

impl Role {
    async fn examine(&self, failures: &mut Vec<String>, warnings: &mut Vec<String>) {
        let name = self.name;
        let phase = *self.phase.borrow();
        if phase != Phase::Serving {
            failures.push(format!("{name}: {}", phase.name()));
        }
        if let Some(service) = &self.service {
            match tokio::time::timeout(STORE_LIMIT, service.store().readable()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => failures.push(format!("{name}: {error}")),
                Err(_) => failures.push(format!("{name}: store: no answer within {STORE_LIMIT:?}")),
            }
            warnings.extend(service.store().warnings().into_iter().map(|w| format!("{name}: {w}")));
        }
        let absent = |state: &watch::Receiver<Registered>| {
            matches!(*state.borrow(), Registered::Unknown | Registered::Absent)
        };
        if phase == Phase::Serving && self.registration.as_ref().is_some_and(absent) {
            warnings.push(format!("{name}: not registered"));
        }
        warnings.extend(self.warnings.iter().map(|w| format!("{name}: {w}")));
    }
}

fn registry(handle: &ViewHandle) -> Value {
    let view = handle.get();
    let instances = view.services.iter().map(|(name, instances)| {
        let list = instances.values().map(|instance| {
            json!({
                "addr": instance.addr, "id": instance.id, "version": instance.version,
                "zone": instance.zone, "weight": instance.weight, "draining": instance.draining,
                "admin": instance.admin, "started_at": instance.started_at,
                "limbo": view.limbo.contains(&(instance.service.clone(), instance.addr.clone())),
            })
        });
        (name.clone(), Value::Array(list.collect()))
    });
    json!({
        "cluster_id": view.cluster_id, "revision": view.revision, "epoch": view.epoch,
        "age_seconds": handle.age().map(|age| age.as_secs_f64()),
        "differences": handle.differences(), "ignored_keys": view.ignored,
        "services": instances.collect::<serde_json::Map<_, _>>(),
    })
}

fn json(body: &Value) -> Response {
    let mut response = text(StatusCode::OK, format!("{body:#}\n"));
    let kind = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

fn text(status: StatusCode, body: String) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}
