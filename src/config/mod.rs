//! The settings of every role: one struct per concern, each field with its unit, range and default.
//!
//! Layers, the later wins: defaults, the TOML file (`--config`), the environment
//! (`MSA__SECTION__KEY`), flags. [`load`] does the layering, names the wrong key and where it was set,
//! and opens nothing: no socket, no database, no secret.

mod load;
mod types;

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use load::{ConfigError, Source, load, rows};
pub use types::{Balancer, Collector, HostPort, ListenAddr, LogFormat, Network, StoreUrl};

/// What one process does; the name is the registry's, the metrics' and the command line's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// The HTTP gateway.
    Apigateway,
    /// The feed service.
    Feed,
    /// The profile service; calls the feed service.
    Profile,
    /// The topic service.
    Topic,
    /// Every role in one process, on loopback.
    Up,
}

impl Role {
    /// The services that register and are called.
    pub const SERVICES: [Self; 3] = [Self::Feed, Self::Profile, Self::Topic];

    /// Returns the name used everywhere for this role.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Apigateway => "apigateway",
            Self::Feed => "feed",
            Self::Profile => "profile",
            Self::Topic => "topic",
            Self::Up => "up",
        }
    }

    /// Returns the ports of the role: service and admin.
    const fn ports(self) -> (u16, u16) {
        match self {
            Self::Apigateway | Self::Up => (8080, 6060),
            Self::Feed => (8082, 6062),
            Self::Profile => (8083, 6063),
            Self::Topic => (8084, 6064),
        }
    }
}

/// Everything that can be set, for any role; a role ignores the sections that are not its own.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// The HTTP listener of the gateway.
    pub http: Http,
    /// The gRPC listener of a service.
    pub grpc: Grpc,
    /// The second listener of every role, for operators.
    pub admin: Admin,
    /// Where instances are registered and found.
    pub registry: Registry,
    /// How this process calls services.
    pub client: Client,
    /// Where a service keeps its records.
    pub store: Store,
    /// How a process stops.
    pub shutdown: Shutdown,
    /// What is logged, and how.
    pub log: Log,
    /// Which requests are traced, and where their spans go.
    pub trace: Trace,
    /// What `up` runs.
    pub up: Up,
}

impl Default for Settings {
    fn default() -> Self {
        Self::for_role(Role::Up)
    }
}

impl Settings {
    /// Returns the defaults of a role; they differ in ports, bind addresses and the store.
    #[must_use]
    pub fn for_role(role: Role) -> Self {
        let (service, admin) = role.ports();
        let http_addr = match role {
            Role::Up => ListenAddr::loopback(8080),
            _ => ListenAddr::any(8080),
        };
        let store = match role {
            Role::Up => StoreUrl::Sqlite(PathBuf::from("data")),
            _ => StoreUrl::Memory,
        };
        let endpoints = match role {
            Role::Up => Vec::new(),
            _ => vec!["127.0.0.1:2379".to_owned()],
        };
        Self {
            http: Http { addr: http_addr, ..Http::default() },
            grpc: Grpc { addr: ListenAddr::any(service), ..Grpc::default() },
            admin: Admin { addr: ListenAddr::loopback(admin), ..Admin::default() },
            registry: Registry { endpoints, ..Registry::default() },
            client: Client::default(),
            store: Store { url: store },
            shutdown: Shutdown::default(),
            log: Log::default(),
            trace: Trace::default(),
            up: Up::default(),
        }
    }
}

/// The HTTP listener of the gateway.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct Http {
    /// Address to listen on. Default `:8080` (every interface), with `up` `127.0.0.1:8080`.
    pub addr: ListenAddr,
    /// Connections at the same time, 1 to 1000000. Default 10000. At the limit the connection that has
    /// been idle longest is closed for the new one; if none is idle the new one waits in the backlog.
    pub max_connections: usize,
    /// Time a client has for the head of a request, and that a kept-alive connection may stay idle,
    /// 100 to 600000 ms. Default 10000.
    #[serde(rename = "header_timeout_ms", with = "types::millis")]
    pub header_timeout: Duration,
    /// Time a client has for a whole request body, 100 to 600000 ms. Default 10000; then 408.
    #[serde(rename = "body_timeout_ms", with = "types::millis")]
    pub body_timeout: Duration,
    /// A connection whose client takes nothing of an answer for this long is closed, 1000 to 600000 ms
    /// (the kernel needs 200 ms to repeat a lost packet). Default 10000.
    #[serde(rename = "write_timeout_ms", with = "types::millis")]
    pub write_timeout: Duration,
    /// Requests in progress at the same time, 1 to 1000000; more are answered 503 at once. Default 1024:
    /// a gateway spends less than 0.5 ms on a request, so what it has accepted costs it at most a quarter
    /// of the default deadline. (Envoy's `max_requests` is 1024 too.) A request counts once its body is
    /// there and until its answer is; in the worst case each holds some 6 MiB.
    pub max_in_flight: usize,
    /// Requests a second that one client may send in the long run, 0 to 1000000; more are answered 429.
    /// Default 0, which means no limit. A client is an IPv4 address or an IPv6 network of 64 bits.
    pub rate_limit: u32,
    /// Requests that a client which has been quiet may send at once, 1 to 1000000. Default 100.
    pub rate_burst: u32,
    /// Proxies in front of the gateway: addresses or networks, `10.0.0.7`, `10.1.0.0/16`. Default none.
    /// For a request from one of them the client is the right-most address in `X-Forwarded-For` that is
    /// not a proxy of this list; from anyone else the header says nothing.
    pub trusted_proxies: Vec<Network>,
}

impl Default for Http {
    fn default() -> Self {
        Self {
            addr: ListenAddr::any(8080),
            max_connections: 10_000,
            header_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(10),
            write_timeout: Duration::from_secs(10),
            max_in_flight: 1024,
            rate_limit: 0,
            rate_burst: 100,
            trusted_proxies: Vec::new(),
        }
    }
}

/// The gRPC listener of a service.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct Grpc {
    /// Address to listen on. Default `:8082` (feed), `:8083` (profile), `:8084` (topic).
    pub addr: ListenAddr,
    /// Address that is registered for others to call, `host:port`; port 0 stands for the bound port.
    /// Default: the bind address if it is a specific one, else the source address of the route to the
    /// registry, with the bound port.
    pub advertise_addr: Option<HostPort>,
    /// Connections at the same time, 1 to 1000000. Default 10000.
    pub max_connections: usize,
    /// Calls at the same time on one connection, 1 to 100000. Default 1024.
    pub max_concurrent_streams: u32,
    /// Calls in progress at the same time, 1 to 1000000; more are refused at once with UNAVAILABLE and
    /// `grpc-retry-pushback-ms`. Default 512: a store call takes less than 1 ms of a service's thread, so
    /// what it has accepted is answered within a quarter of the default deadline. Health checks and
    /// reflection do not count and are not refused.
    pub max_in_flight: usize,
    /// A connection whose client takes nothing of its answers for this long is closed, 1000 to 600000
    /// ms. Default 10000.
    #[serde(rename = "write_timeout_ms", with = "types::millis")]
    pub write_timeout: Duration,
}

impl Default for Grpc {
    fn default() -> Self {
        Self {
            addr: ListenAddr::any(8082),
            advertise_addr: None,
            max_connections: 10_000,
            max_concurrent_streams: 1024,
            max_in_flight: 512,
            write_timeout: Duration::from_secs(10),
        }
    }
}

/// The second listener of every role: metrics, health, status.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct Admin {
    /// Address to listen on. Default loopback, port 6060 (gateway, `up`), 6062, 6063 or 6064.
    pub addr: ListenAddr,
    /// Address that is registered for Prometheus, `host:port`; port 0 stands for the bound port.
    /// Default: as for the service address; a loopback address is not advertised to a remote registry.
    pub advertise_addr: Option<HostPort>,
    /// Connections at the same time, 1 to 100000. Default 256.
    pub max_connections: usize,
}

impl Default for Admin {
    fn default() -> Self {
        Self { addr: ListenAddr::loopback(6060), advertise_addr: None, max_connections: 256 }
    }
}

/// Where instances are registered and found.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct Registry {
    /// etcd's client URLs, `https://host:port`, `http://host:port` or `host:port` (which is http); all with
    /// TLS or all without. Default `["127.0.0.1:2379"]`; with `up` none, which means the registry inside
    /// the process.
    pub endpoints: Vec<String>,
    /// Certificates (PEM) of the authorities that etcd's certificate must come from; needed with https.
    /// Default none. This file and the next ones are read at each connection and watched for changes; a
    /// relative name is looked up in `$CREDENTIALS_DIRECTORY` if that is set, else in the working directory.
    pub ca_file: Option<PathBuf>,
    /// Certificate chain (PEM) that this process shows to etcd, with `key_file`. Default none.
    pub cert_file: Option<PathBuf>,
    /// Private key (PEM) of `cert_file`. Default none.
    pub key_file: Option<PathBuf>,
    /// Name that etcd's certificate must bear. Default the host of the endpoint.
    pub tls_server_name: Option<String>,
    /// etcd's user, with `password_file`. Default none.
    pub user: Option<String>,
    /// File with the user's password; line ends after it do not count. Default none.
    pub password_file: Option<PathBuf>,
    /// What every key begins with; must begin and end with `/`. Default `/services/`.
    pub prefix: String,
    /// Life of an instance's lease, 1 to 3600 s. Default 3. A crashed instance stays listed up to 0.5 s
    /// longer than this.
    #[serde(rename = "ttl_s", with = "types::seconds")]
    pub ttl: Duration,
    /// Time between two renewals of the lease, 100 ms to half the TTL. Default 1000.
    #[serde(rename = "keepalive_ms", with = "types::millis")]
    pub keepalive: Duration,
    /// Time one request to etcd may take, 100 to 60000 ms. Default 1000.
    #[serde(rename = "timeout_ms", with = "types::millis")]
    pub timeout: Duration,
    /// Longest wait between two tries while etcd is away, 100 to 60000 ms. Default 2000, so that every
    /// key is back 2 s after etcd; the first wait is 100 ms, each next one up to twice as long, with
    /// jitter.
    #[serde(rename = "backoff_cap_ms", with = "types::millis")]
    pub backoff_cap: Duration,
    /// Silence after which etcd's watch stream is given up and made anew, 1000 to 60000 ms. Default
    /// 3000. A progress request goes out every third of it.
    #[serde(rename = "watch_silence_ms", with = "types::millis")]
    pub watch_silence: Duration,
    /// Time between two lists that check what the watch said, 1000 to 3600000 ms. Default 30000.
    #[serde(rename = "relist_ms", with = "types::millis")]
    pub relist: Duration,
    /// File that keeps the last good view, so that a process which restarts while etcd is away still
    /// finds the services. Its directory must exist. Default none.
    pub snapshot_file: Option<PathBuf>,
    /// Availability zone written into the registration, for balancers to come. Default none.
    pub zone: Option<String>,
    /// Relative weight written into the registration, 1 to 1000, for balancers to come. Default 100.
    pub weight: u32,
}

impl Default for Registry {
    fn default() -> Self {
        Self {
            endpoints: Vec::new(),
            ca_file: None,
            cert_file: None,
            key_file: None,
            tls_server_name: None,
            user: None,
            password_file: None,
            prefix: "/services/".to_owned(),
            ttl: Duration::from_secs(3),
            keepalive: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            backoff_cap: Duration::from_secs(2),
            watch_silence: Duration::from_secs(3),
            relist: Duration::from_secs(30),
            snapshot_file: None,
            zone: None,
            weight: 100,
        }
    }
}

/// Returns the `host:port` of an endpoint of etcd.
pub(crate) fn bare_endpoint(endpoint: &str) -> &str {
    let bare = endpoint.strip_prefix("https://").or_else(|| endpoint.strip_prefix("http://"));
    bare.unwrap_or(endpoint).trim_end_matches('/')
}

/// How this process calls services. The numbers are those that have proven themselves elsewhere; each names
/// its source where it has one.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct Client {
    /// Time for a whole request, 1 to 600000 ms. Default 2000. A caller shortens it by
    /// `x-request-timeout-ms` (HTTP) or `grpc-timeout` (gRPC), and never extends it.
    #[serde(rename = "deadline_ms", with = "types::millis")]
    pub deadline: Duration,
    /// Time for opening one connection to an instance and for its first word, 10 to 60000 ms. Default
    /// 1000 (linkerd2-proxy).
    #[serde(rename = "connect_timeout_ms", with = "types::millis")]
    pub connect_timeout: Duration,
    /// Longest wait between two tries to connect to an instance that is down, 100 to 60000 ms. Default
    /// 1000; the first wait is 50 ms.
    #[serde(rename = "reconnect_cap_ms", with = "types::millis")]
    pub reconnect_cap: Duration,
    /// Time between two HTTP/2 pings on a connection with calls, 100 to 600000 ms. Default 5000.
    #[serde(rename = "keepalive_ms", with = "types::millis")]
    pub keepalive: Duration,
    /// Time a ping may stay unanswered before the connection is given up, 100 to 60000 ms. Default 2000.
    #[serde(rename = "keepalive_timeout_ms", with = "types::millis")]
    pub keepalive_timeout: Duration,
    /// Most HTTP/2 connections to each instance, 1 to 16. Default 2. The first is always open, further ones
    /// once each has 8 calls in flight. Measured with 64 calls in flight: two carry 1.2 (through the
    /// gateway) to 1.9 times (the client alone) the requests/s of one; four carry no more than two.
    pub connections: usize,
    /// Life of a connection, 1 to 86400 s, each with 20 % more or less. Default 1800. The next one is open
    /// before calls leave the old one; so load spreads again after a change behind an address (gRPC A9).
    #[serde(rename = "connection_age_s", with = "types::seconds")]
    pub connection_age: Duration,
    /// Calls in flight at one instance, 1 to 100000. Default 1024, what our services take on one
    /// connection. Above it other instances are called, or the call fails at once.
    pub max_in_flight: usize,
    /// How the next instance is chosen. Default `peak_ewma`.
    pub balancer: Balancer,
    /// Time in which an observed latency or failure fades to a third (1/e) for the balancer, 100 to
    /// 600000 ms. Default 1000; linkerd's 10 s would keep an instance that once took a second away from
    /// calls for a minute. The breaker looks after those that stay bad.
    #[serde(rename = "ewma_decay_ms", with = "types::millis")]
    pub ewma_decay: Duration,
    /// Latency that the balancer sees in an instance whose answers are all failures or pushback, 0 to
    /// 60000 ms; a share of it for a share of them. Default 5000 (linkerd2-proxy's load biaser).
    #[serde(rename = "penalty_ms", with = "types::millis")]
    pub penalty: Duration,
    /// Time in which a new instance, or one that has returned, comes to its full share of calls, 0 to
    /// 600000 ms. Default 2000. It begins with 10 % (Envoy's slow start).
    #[serde(rename = "slow_start_ms", with = "types::millis")]
    pub slow_start: Duration,
    /// Failures in a row that open an instance's breaker for a method, 1 to 1000. Default 5 (Finagle,
    /// Envoy).
    pub breaker_failures: u32,
    /// Share of good answers in the last 10 s below which a breaker opens, 0 to 99 %; 0 for never. Default
    /// 80 (Finagle, linkerd2-proxy).
    pub breaker_success_percent: u32,
    /// Answers in the last 10 s below which that share says nothing, 1 to 1000. Default 5 (linkerd2-proxy).
    pub breaker_min_calls: u32,
    /// Time a breaker stays open at first, 100 to 60000 ms, each time twice as long, with up to half of it
    /// as jitter. Default 1000 (linkerd2-proxy).
    #[serde(rename = "breaker_backoff_ms", with = "types::millis")]
    pub breaker_backoff: Duration,
    /// Longest time a breaker stays open before one call tries the instance again, 100 to 600000 ms.
    /// Default 60000 (linkerd2-proxy). For the only instance of a service it is 2000 at most.
    #[serde(rename = "breaker_backoff_cap_ms", with = "types::millis")]
    pub breaker_backoff_cap: Duration,
    /// Attempts of one call, the first one too, 1 to 5. Default 3 (gRPC A6 allows 5).
    pub attempts: u32,
    /// Time for an attempt of a read when another one may follow, 0 to 600000 ms. Default 0: a third of
    /// what the call has at its start, at least 100 ms.
    #[serde(rename = "attempt_timeout_ms", with = "types::millis")]
    pub attempt_timeout: Duration,
    /// Longest wait before the second attempt, 0 to 10000 ms; twice that before the third; at least half
    /// of it, at random. Default 10.
    #[serde(rename = "retry_backoff_ms", with = "types::millis")]
    pub retry_backoff: Duration,
    /// Retries that calls earn for their service, 0 to 100 % of them. Default 20 (Finagle, Envoy).
    pub retry_budget_percent: u32,
    /// Retries a second that are there without calls, 0 to 1000. Default 10 (Finagle).
    pub retry_budget_per_second: u32,
    /// Memory for the last good answers, 0 to 1048576 KiB; 0 for no fallback. Default 8192.
    pub fallback_kib: usize,
    /// Age up to which an earlier answer stands in for one that cannot be had, 1 to 86400 s. Default 600.
    #[serde(rename = "fallback_age_s", with = "types::seconds")]
    pub fallback_age: Duration,
}

impl Default for Client {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(2),
            connect_timeout: Duration::from_secs(1),
            reconnect_cap: Duration::from_secs(1),
            keepalive: Duration::from_secs(5),
            keepalive_timeout: Duration::from_secs(2),
            connections: 2,
            connection_age: Duration::from_mins(30),
            max_in_flight: 1024,
            balancer: Balancer::PeakEwma,
            ewma_decay: Duration::from_secs(1),
            penalty: Duration::from_secs(5),
            slow_start: Duration::from_secs(2),
            breaker_failures: 5,
            breaker_success_percent: 80,
            breaker_min_calls: 5,
            breaker_backoff: Duration::from_secs(1),
            breaker_backoff_cap: Duration::from_mins(1),
            attempts: 3,
            attempt_timeout: Duration::ZERO,
            retry_backoff: Duration::from_millis(10),
            retry_budget_percent: 20,
            retry_budget_per_second: 10,
            fallback_kib: 8 * 1024,
            fallback_age: Duration::from_mins(10),
        }
    }
}

/// Where a service keeps its records.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct Store {
    /// `memory:` (lost at exit) or `sqlite:PATH` (durable; PATH a file of this service alone, shared by
    /// its instances on the same machine). Default `memory:`; `up` keeps `feed.db`, `profile.db` and
    /// `topic.db` below `up.data_dir`.
    pub url: StoreUrl,
}

impl Default for Store {
    fn default() -> Self {
        Self { url: StoreUrl::Memory }
    }
}

/// How a process stops.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct Shutdown {
    /// Time for calls in flight to end after SIGTERM, 0 to 600000 ms. Default 10000; what is left then
    /// is cut off.
    #[serde(rename = "grace_ms", with = "types::millis")]
    pub grace: Duration,
    /// Time between announcing `draining` and deleting the key, in which callers turn away, 0 to
    /// 10000 ms. Default 50.
    #[serde(rename = "announce_ms", with = "types::millis")]
    pub announce: Duration,
}

impl Default for Shutdown {
    fn default() -> Self {
        Self { grace: Duration::from_secs(10), announce: Duration::from_millis(50) }
    }
}

/// What is logged, and how.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct Log {
    /// A level (`off`, `error`, `warn`, `info`, `debug`, `trace`), and levels of single modules:
    /// `info,microservice_app::client=debug`. Default `info`. Can be changed while the process runs; see
    /// [`crate::telemetry::log::filter`] for what it means for other crates.
    pub level: String,
    /// `logfmt` or `json`, on standard error. Default `logfmt`, which is read at a terminal as well.
    pub format: LogFormat,
    /// Requests slower than this are logged at level info, failed ones always, all others at level
    /// debug; 0 to 600000 ms. Default 1000.
    #[serde(rename = "slow_ms", with = "types::millis")]
    pub slow: Duration,
}

impl Default for Log {
    fn default() -> Self {
        Self { level: "info".to_owned(), format: LogFormat::Logfmt, slow: Duration::from_secs(1) }
    }
}

/// Which requests are traced, and where their spans go.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct Trace {
    /// Zipkin's collector, `http://host:port[/api/v2/spans]`. Default none: requests carry their ids, and
    /// nothing is recorded.
    pub zipkin_addr: Option<Collector>,
    /// Share of the requests that are traced, 0 to 1, of those whose headers do not say. Default 1: a few
    /// requests a second are all worth seeing; a busy system wants 0.01.
    pub sample_ratio: f64,
    /// Most spans that wait to be sent, 100 to 1000000, each below 1 KiB; the rest is counted and dropped.
    /// Default 8192: half a second of all spans of a gateway at 5000 requests/s.
    pub queue: usize,
}

impl Default for Trace {
    fn default() -> Self {
        Self { zipkin_addr: None, sample_ratio: 1.0, queue: 8192 }
    }
}

/// What `up` runs.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct Up {
    /// Directory of the SQLite files; made if it is missing. Default `data`.
    pub data_dir: PathBuf,
    /// Address of the first feed instance. Default `127.0.0.1:8082`.
    pub feed_addr: ListenAddr,
    /// Address of the first profile instance. Default `127.0.0.1:8083`.
    pub profile_addr: ListenAddr,
    /// Address of the first topic instance. Default `127.0.0.1:8084`.
    pub topic_addr: ListenAddr,
    /// Instances of feed, 0 to 64. Default 1; those after the first take free ports.
    pub feed_replicas: usize,
    /// Instances of profile, 0 to 64. Default 1.
    pub profile_replicas: usize,
    /// Instances of topic, 0 to 64. Default 1.
    pub topic_replicas: usize,
}

impl Default for Up {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("data"),
            feed_addr: ListenAddr::loopback(8082),
            profile_addr: ListenAddr::loopback(8083),
            topic_addr: ListenAddr::loopback(8084),
            feed_replicas: 1,
            profile_replicas: 1,
            topic_replicas: 1,
        }
    }
}
