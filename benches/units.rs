//! The time of single pieces of a request: choosing an instance, breakers and budgets, JSON, the stores, metrics.
//!
//! `cargo bench --bench units [FILTER]` measures them, `-- --test` runs each one once. Numbers of two runs can be compared
//! on a quiet machine only; what a change may cost is judged by tests/counts.

#![expect(clippy::expect_used, reason = "a measurement fails by panicking")]
#![allow(missing_docs, reason = "criterion's macros make public functions without them")]

use std::hint::black_box;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use futures_util::stream;
use http::{Method, StatusCode};
use microservice_app::api::proto::feed::{FeedRecord, GetFeedsResponse};
use microservice_app::api::received::Feeds;
use microservice_app::api::rpc::Rpc;
use microservice_app::app::metrics::Metrics;
use microservice_app::client::balance::pick::Picker;
use microservice_app::client::call::Call;
use microservice_app::client::policy::budget::{Budget, Reserve};
use microservice_app::client::{Client, Connect, Connector, Target};
use microservice_app::config::{Balancer, Role, Settings, Store};
use microservice_app::context::Context;
use microservice_app::gateway::answers;
use microservice_app::gateway::request::{self, Accepted};
use microservice_app::registry::value::{decode, encode};
use microservice_app::registry::{Instance, Local, Registration, Registry as _};
use microservice_app::server::UnsentLimit;
use microservice_app::server::admission::Admission;
use microservice_app::server::pause::Pauses;
use microservice_app::store::{self, FeedStore};
use microservice_app::telemetry::metrics::text;
use microservice_app::tls::Validity;
use prost::Message as _;
use tokio::io::{DuplexStream, duplex};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// Instances of a service.
const COUNTS: [usize; 3] = [3, 100, 1000];
/// Feeds in an answer, and bytes of the content of each.
const FEEDS: i64 = 20;
const CONTENT: usize = 100;
const SOON: Duration = Duration::from_secs(30);

criterion_group!(benches, instances, views, breakers_and_budgets, json, stores, metrics);
criterion_main!(benches);

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// Connects to a server in this process without a network.
struct Memory(UnboundedSender<io::Result<DuplexStream>>);

impl Connect for Memory {
    type Stream = DuplexStream;

    async fn connect(&self, _: Target<'_>) -> io::Result<(DuplexStream, Option<Validity>)> {
        let (near, far) = duplex(64 * 1024);
        self.0.send(Ok(far)).map_err(io::Error::other)?;
        Ok((near, None))
    }
}

/// Says of every service that it is healthy.
async fn serve(streams: UnboundedReceiver<io::Result<DuplexStream>>) {
    let (_reporter, health) = tonic_health::server::health_reporter();
    let incoming = stream::unfold(streams, async |mut streams| Some((streams.recv().await?, streams)));
    let server = tonic::transport::Server::builder().add_service(health);
    server.serve_with_incoming(incoming).await.expect("it serves");
}

fn instance(number: usize) -> Instance {
    let addr = format!("10.0.{}.{}:8082", number / 250, number % 250 + 1);
    Instance { id: format!("{number:016x}"), version: "0.1.0".to_owned(), ..Instance::bare("feed", &addr) }
}

/// A client of so many instances, all connected.
struct Fleet {
    client: Client,
    _registrations: Vec<Registration>,
}

impl Fleet {
    /// Registers the instances before the client looks, and waits until it knows them, or is connected to them.
    async fn start(count: usize, connected: bool) -> Self {
        let (registry, settings) = (Local::default(), Settings::default());
        let registrations = (0..count).map(|number| registry.register(instance(number))).collect();
        let metrics = Metrics::register().expect("metrics").client;
        let (streams, incoming) = unbounded_channel();
        tokio::spawn(serve(incoming));
        let (view, connector) = (registry.view(), Connector::new(Memory(streams)));
        let client =
            Client::new(&["feed"], &settings.client, &settings.registry.prefix, &view, &metrics, &connector);
        let begun = Instant::now();
        loop {
            let snapshot = client.snapshots()["feed"].clone();
            if (if connected { snapshot.usable.len() } else { snapshot.all.len() }) == count {
                return Self { client, _registrations: registrations };
            }
            assert!(begun.elapsed() < SOON, "{} of {count} are connected", snapshot.usable.len());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

/// `pick/N`: one of N instances is chosen.
fn instances(criterion: &mut Criterion) {
    for count in COUNTS {
        let runtime = runtime();
        let fleet = runtime.block_on(Fleet::start(count, true));
        let snapshot = fleet.client.snapshots()["feed"].clone();
        let context = Context::new(tokio::time::Instant::now() + Duration::from_hours(1));
        let call = Call::new(Rpc::GetFeeds, Bytes::new(), context);
        for (name, kind) in [("pick", Balancer::PeakEwma), ("pick_in_turn", Balancer::RoundRobin)] {
            let picker = Picker::from(kind);
            criterion.bench_function(&format!("{name}/{count}"), |bench| {
                bench.iter(|| black_box(picker.pick(&call, &snapshot.usable)).is_some());
            });
        }
    }
}

/// `view/decode/N`: the entries of N instances are read. `view/apply/N`: a client that has just started knows the N
/// instances of the registry and has begun to connect to them.
fn views(criterion: &mut Criterion) {
    for count in COUNTS {
        let entries: Vec<_> = (0..count).map(instance).map(|it| (it.addr.clone(), encode(&it))).collect();
        criterion.bench_function(&format!("view/decode/{count}"), |bench| {
            bench.iter(|| {
                entries.iter().filter(|(addr, text)| decode("feed", addr, text.as_bytes()).is_ok()).count()
            });
        });
        let mut group = criterion.benchmark_group("view");
        group.sample_size(10);
        group.bench_function(format!("apply/{count}"), |bench| {
            bench.iter_custom(|rounds| {
                let mut took = Duration::ZERO;
                for _ in 0..rounds {
                    // one that has ended has closed its connections
                    let runtime = runtime();
                    let begun = Instant::now();
                    let fleet = runtime.block_on(Fleet::start(count, false));
                    took += begun.elapsed();
                    drop(fleet);
                }
                took
            });
        });
    }
}

fn breakers_and_budgets(criterion: &mut Criterion) {
    let runtime = runtime();
    let fleet = runtime.block_on(Fleet::start(1, true));
    let endpoint = fleet.client.snapshots()["feed"].usable[0].clone();
    criterion.bench_function("breaker", |bench| {
        bench.iter(|| {
            let permit = endpoint.breakers.admit(Rpc::GetFeeds, false).expect("it is closed");
            endpoint.breakers.record(&permit, false, None)
        });
    });
    let budget = Budget::new(20, Reserve::per_second(10));
    criterion.bench_function("budget", |bench| {
        bench.iter(|| {
            budget.deposit();
            budget.withdraw()
        });
    });
}

fn feed(id: i64) -> FeedRecord {
    FeedRecord { id, user_id: 7, content: "x".repeat(CONTENT) }
}

/// `json/write`: an answer of 20 feeds from the bytes of its message. `json/read`: the body of a write.
fn json(criterion: &mut Criterion) {
    let message = GetFeedsResponse { feeds: (1..=FEEDS).map(feed).collect(), shortened: false };
    let message = Bytes::from(message.encode_to_vec());
    criterion.bench_function("json/write", |bench| {
        bench.iter(|| answers::feeds(&Feeds::decode(message.clone()).expect("a message")));
    });
    let body = Bytes::from(format!(r#"{{"id":1,"user_id":7,"content":"{}"}}"#, "x".repeat(CONTENT)));
    let runtime = runtime();
    let entered = runtime.enter();
    let accepted = accepted();
    drop(entered);
    criterion.bench_function("json/read", |bench| {
        bench.iter(|| runtime.block_on(read(body.clone(), accepted())));
    });
}

/// Returns what makes a request to the gateway that has been accepted.
fn accepted() -> impl Fn() -> Accepted {
    let metrics = Metrics::register().expect("metrics").server;
    let settings = Settings::for_role(Role::Apigateway);
    let admission = Admission::http("apigateway", &settings.http, UnsentLimit::new(1 << 20), &metrics);
    let pauses = Pauses::watch();
    move || Accepted {
        context: Context::new(tokio::time::Instant::now()),
        time_limit: Duration::from_secs(1),
        length: None,
        head: 0,
        peer: None,
        expects: false,
        admission: admission.clone(),
        pauses: pauses.clone(),
        caller: Arc::default(),
        owner: None,
        needs_permit: true,
    }
}

/// Reads the body of a write as the gateway does.
async fn read(body: Bytes, mut accepted: Accepted) -> FeedRecord {
    let parts = stream::iter([Ok(body)]);
    let read = request::body(parts, Duration::from_secs(1), &mut accepted).await;
    let Ok((mut fields, _permit)) = read else { unreachable!("the body is JSON") };
    let mut integer = |name| fields.integer(name).expect("a number");
    let (id, user_id) = (integer("id"), integer("user_id"));
    FeedRecord { id, user_id, content: fields.text("content").expect("a text") }
}

async fn open(url: &str) -> Arc<dyn FeedStore> {
    let settings = Store { url: url.parse().expect("a URL"), ..Store::default() };
    let metrics = store::metrics::Metrics::register(&prometheus::Registry::new()).expect("metrics");
    let store = store::feed(&settings, &metrics).await.expect("a store");
    for id in 1..=FEEDS {
        store.create(feed(id), Instant::now() + SOON).await.expect("a write");
    }
    store
}

/// `store/NAME/read`: 20 feeds. `store/NAME/write`: one feed; SQLite waits for the disk.
fn stores(criterion: &mut Criterion) {
    let (runtime, dir) = (runtime(), tempfile::tempdir().expect("a directory"));
    let file = format!("sqlite:{}/feed.db", dir.path().display());
    for (name, url) in [("memory", "memory:"), ("sqlite", &file)] {
        let store = runtime.block_on(open(url));
        criterion.bench_function(&format!("store/{name}/read"), |bench| {
            bench.iter(|| runtime.block_on(store.newest(7, 20, 0)).expect("a read"));
        });
        criterion.bench_function(&format!("store/{name}/write"), |bench| {
            bench.iter_batched(
                || feed(3),
                |feed| runtime.block_on(store.create(feed, Instant::now() + SOON)).expect("a write"),
                BatchSize::SmallInput,
            );
        });
    }
}

static ROUTES: [(&str, Method); 1] = [("/api/feed/get_feeds", Method::GET)];

/// `metrics/record`: a request and the attempt that it made. `metrics/page`: the page of a process.
fn metrics(criterion: &mut Criterion) {
    let metrics = Metrics::register().expect("metrics");
    let requests = metrics.server.requests(&ROUTES);
    let handled = metrics.server.handled("feed");
    let took = Duration::from_micros(300);
    criterion.bench_function("metrics/record", |bench| {
        bench.iter(|| {
            requests.observe(requests.target(&Method::GET, "/api/feed/get_feeds"), StatusCode::OK, took);
            handled.observe(Rpc::GetFeeds, tonic::Code::Ok, took);
        });
    });
    criterion.bench_function("metrics/page", |bench| bench.iter(|| text(&metrics.registry)));
}
