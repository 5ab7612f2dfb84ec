//! A process with several threads that serve: what they share, what each has for itself, and what happens to the process
//! if one of them stands still.

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use http::StatusCode;
use microservice_app::api::error::chain;
use microservice_app::app;
use microservice_app::config::{Balancer, ListenAddr, Role as Part, Settings};
use microservice_app::registry::Registration;
use rustix::process::Signal;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::systemd::{bind_shared, start_on};
use crate::kit::SOON;
use crate::kit::app::App;
use crate::kit::etcd::Etcd;
use crate::kit::fake::{Behaviour, Fake};
use crate::kit::http::{Connection, fill, get};
use crate::kit::load::{Load, Outcome};
use crate::kit::process::{Process, run};
use crate::kit::system::Role;
use crate::kit::wait_for;

const FEEDS: &str = "/api/feed/get_feeds?user_id=7&size=2";
const LIST: &str = "/api/topic/list";
const TWO: [(&str, &str); 1] = [("MSA__RUNTIME__THREADS", "2")];

/// Starts every role on two threads, with changed settings.
async fn two_threads(change: impl FnOnce(&mut Settings)) -> App {
    App::start_with(|settings| {
        settings.runtime.threads = 2;
        change(settings);
    })
    .await
}

async fn status(app: &App) -> Value {
    get(app.addresses.admin, "/status").await.json()
}

/// Returns what the gateway knows of the instances of topic, which nobody else calls.
async fn topics(app: &App) -> Vec<Value> {
    let status = status(app).await;
    let callers = status["clients"].as_array().unwrap();
    let topics = callers.iter().find_map(|services| services.get("topic"));
    topics.and_then(Value::as_array).cloned().unwrap_or_default()
}

/// Returns true if both threads are connected to an instance.
fn is_called_by_both(instance: &Value) -> bool {
    instance["connections"] == 2 && instance["state"] == "up"
}

/// Returns the open connections of each thread.
async fn connections(app: &App) -> Vec<u64> {
    status(app).await["threads"].as_array().unwrap().iter().map(|count| count.as_u64().unwrap()).collect()
}

/// Returns the sum of the series that begin so.
async fn count(app: &App, series: &str) -> u64 {
    app.metric(series).await as u64
}

async fn open(app: &App, connections: usize) -> Vec<Connection> {
    let mut open = Vec::new();
    for _ in 0..connections {
        open.push(Connection::open(app.gateway()).await.unwrap());
    }
    open
}

#[tokio::test]
async fn connections_are_spread_evenly_and_every_request_is_counted_once() {
    let app = two_threads(|_| {}).await;
    fill(app.gateway(), 7).await;
    // those of the clients: each thread of gateway and profile has its own to each service
    let services = async || {
        let open = connections(&app).await;
        (open.iter().sum::<u64>() == 8 && open.iter().all(|count| (3..=5).contains(count))).then_some(())
    };
    wait_for("callers of the services are spread", services).await;
    let before = count(&app, "http_server_request_duration_seconds_count").await;
    let mut callers = open(&app, 7).await;
    for _ in 0..20 {
        for caller in &mut callers {
            assert_eq!(caller.get(FEEDS).await.unwrap().status, 200);
        }
    }
    let spread = connections(&app).await;
    assert!(
        spread.iter().sum::<u64>() == 15 && spread.iter().all(|count| (7..=8).contains(count)),
        "{spread:?}"
    );
    for thread in ["0", "1"] {
        let gauge = count(&app, &format!("server_thread_connections{{thread=\"{thread}\"}}")).await;
        assert!((7..=8).contains(&gauge), "{gauge}");
    }
    // the sums of both threads, each request once
    let counted = count(&app, "http_server_request_duration_seconds_count").await - before;
    assert_eq!(counted, 140);
    let calls = count(&app, "grpc_server_handling_seconds_count{code=\"OK\",method=\"GetFeeds\"").await;
    let attempts =
        count(&app, "grpc_client_attempt_duration_seconds_count{code=\"OK\",method=\"GetFeeds\"").await;
    assert!(calls == attempts && calls >= 140, "{calls} {attempts}");
    // an instance is one instance, with the connections of both threads
    let seen = &status(&app).await["clients"][0]["feed"];
    assert_eq!((seen.as_array().unwrap().len(), &seen[0]["connections"]), (1, &Value::from(2)));
    assert_eq!(count(&app, "client_endpoints{service=\"feed\",state=\"up\"}").await, 1);
    assert_eq!(
        count(&app, "client_breaker_state{method=\"GetTopic\",service=\"topic\",state=\"closed\"}").await,
        1
    );
    drop(callers);
    wait_for("connections that end are counted", || async {
        (connections(&app).await.iter().sum::<u64>() == 8).then_some(())
    })
    .await;
}

/// Sends requests that stay without an answer, on connections of both threads.
async fn hold(app: &App, requests: usize) -> Vec<TcpStream> {
    let mut held = Vec::new();
    for _ in 0..requests {
        let mut stream = TcpStream::connect(app.gateway()).await.unwrap();
        stream.write_all(format!("GET {LIST} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).await.unwrap();
        held.push(stream);
    }
    held
}

/// Starts two threads with a topic that takes a minute.
async fn slow_topic(change: impl FnOnce(&mut Settings)) -> (App, Fake, Registration) {
    let app = App::launch(|settings| {
        (settings.runtime.threads, settings.up.topic_replicas) = (2, 0);
        settings.client.deadline = Duration::from_secs(20);
        change(settings);
    });
    let slow = Behaviour { delay: Duration::from_mins(1), ..Behaviour::default() };
    let fake = Fake::start_with(slow, 1000).await;
    let registered = app.register("topic", fake.addr);
    wait_for("both threads are connected", || async {
        topics(&app).await.first().is_some_and(is_called_by_both).then_some(())
    })
    .await;
    (app, fake, registered)
}

#[tokio::test]
async fn requests_in_progress_are_limited_for_all_threads_together() {
    let (app, _topic, _registered) = slow_topic(|settings| settings.http.max_in_flight = 5).await;
    let held = hold(&app, 5).await;
    wait_for("they are in progress", || async {
        (count(&app, "http_server_in_flight").await == 5).then_some(())
    })
    .await;
    let mut others = open(&app, 4).await;
    for other in &mut others {
        assert_eq!(other.get(LIST).await.unwrap().status, 503);
    }
    assert_eq!(count(&app, "http_server_refused_total{reason=\"in_flight\"}").await, 4);
    drop(held);
    wait_for("they end", || async { (count(&app, "http_server_in_flight").await == 0).then_some(()) }).await;
}

#[tokio::test]
async fn calls_in_flight_at_an_instance_are_limited_for_all_threads_together() {
    let (app, topic, _registered) = slow_topic(|settings| settings.client.max_in_flight = 3).await;
    let _held = hold(&app, 8).await;
    wait_for("the others are refused", || async {
        (count(&app, "client_limit_refused_total{service=\"topic\"}").await >= 5
            || count(&app, "http_server_in_flight").await == 3)
            .then_some(())
    })
    .await;
    assert_eq!(topic.calls(), 3);
    assert_eq!(topics(&app).await[0]["in_flight"], 3);
}

#[tokio::test]
async fn a_clients_rate_is_limited_for_all_threads_together() {
    let app = two_threads(|settings| (settings.http.rate_limit, settings.http.rate_burst) = (1, 5)).await;
    let mut callers = open(&app, 6).await;
    let (begun, mut passed) = (Instant::now(), 0);
    for _ in 0..4 {
        for caller in &mut callers {
            passed += u32::from(caller.get("/nowhere").await.unwrap().status == 404);
        }
    }
    let earned = begun.elapsed().as_secs() as u32;
    assert!((5..=6 + earned).contains(&passed), "{passed}");
}

#[tokio::test]
async fn open_connections_are_limited_for_all_threads_together() {
    let app = two_threads(|settings| settings.http.max_connections = 4).await;
    let mut callers = open(&app, 4).await;
    for caller in &mut callers {
        assert_eq!(caller.get("/nowhere").await.unwrap().status, 404);
    }
    // the one that has been idle longest goes, whichever thread has it
    for _ in 0..3 {
        let mut caller = Connection::open(app.gateway()).await.unwrap();
        assert_eq!(caller.get("/nowhere").await.unwrap().status, 404);
        callers.push(caller);
    }
    wait_for("no more are open", || async {
        (connections(&app).await.iter().sum::<u64>() == 8 + 4).then_some(())
    })
    .await;
    let mut answers = BTreeSet::new();
    for (number, caller) in callers.iter_mut().enumerate() {
        if caller.get("/nowhere").await.is_ok() {
            answers.insert(number);
        }
    }
    assert_eq!(answers, BTreeSet::from([3, 4, 5, 6]));
}

#[tokio::test]
async fn every_thread_follows_the_registry() {
    let app = App::launch(|settings| {
        (settings.runtime.threads, settings.up.topic_replicas) = (2, 0);
        settings.client.balancer = Balancer::RoundRobin;
    });
    let fakes = [Fake::start().await, Fake::start().await];
    let mut registered: Vec<_> = fakes.iter().map(|topic| app.register("topic", topic.addr)).collect();
    wait_for("both threads are connected to both", || async {
        let seen = topics(&app).await;
        (seen.len() == 2 && seen.iter().all(is_called_by_both)).then_some(())
    })
    .await;
    let mut callers = open(&app, 4).await;
    for caller in &mut callers {
        let calls = fakes.each_ref().map(Fake::calls);
        for _ in 0..40 {
            assert_eq!(caller.get(LIST).await.unwrap().status, 200);
        }
        let more = [fakes[0].calls() - calls[0], fakes[1].calls() - calls[1]];
        assert!(more.iter().all(|more| *more > 0), "each thread calls both: {more:?}");
    }
    // one that says that it drains gets nothing more, from no thread
    registered[0].drain().await;
    wait_for("it drains", || async {
        topics(&app).await.iter().any(|topic| topic["draining"] == true).then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let calls = fakes[0].calls();
    for caller in &mut callers {
        for _ in 0..10 {
            assert_eq!(caller.get(LIST).await.unwrap().status, 200);
        }
    }
    assert_eq!(fakes[0].calls(), calls);
}

/// A thread is kept busy until the returned value is dropped.
fn block(app: &App, thread: usize) -> mpsc::Sender<()> {
    let (release, blocked) = mpsc::channel::<()>();
    let mut blocked = Some(blocked);
    app.threads.each(|number| {
        if let Some(blocked) = blocked.take_if(|_| number == thread) {
            tokio::spawn(async move { blocked.recv().is_ok() });
        }
    });
    release
}

#[tokio::test]
async fn a_thread_that_stands_still_is_noticed_and_the_others_go_on() {
    let app = two_threads(|_| {}).await;
    let admin = app.addresses.admin;
    assert_eq!(get(admin, "/livez").await.status, 200);
    let mut callers = open(&app, 2).await;
    let stuck = block(&app, 1);
    for path in ["/livez", "/readyz"] {
        let answer = get(admin, path).await;
        assert!(answer.status == 503 && answer.body.contains("thread 1 does not run"), "{answer:?}");
    }
    // it is not asked again and again meanwhile
    let error = app.threads.check(Duration::from_millis(50)).await.unwrap_err();
    assert_eq!(error.threads, [1]);
    let mut answered = 0;
    for caller in &mut callers {
        let answer = tokio::time::timeout(Duration::from_secs(1), caller.get("/nowhere")).await;
        answered += u32::from(answer.is_ok_and(|answer| answer.is_ok()));
    }
    assert_eq!(answered, 1, "the other thread serves");
    drop(stuck);
    wait_for("it runs again", || async { (get(admin, "/livez").await.status == 200).then_some(()) }).await;
    let mut caller = Connection::open(app.gateway()).await.unwrap();
    assert_eq!(caller.get("/nowhere").await.unwrap().status, 404);
}

/// The first thread accepts all connections: while it stands still they wait, also those that another one gets.
#[tokio::test]
async fn a_write_that_has_waited_to_be_accepted_is_not_made_later() {
    let app = App::launch(|settings| {
        (settings.runtime.threads, settings.up.topic_replicas) = (2, 0);
        settings.client.deadline = Duration::from_secs(20);
    });
    let topic = Fake::start().await;
    let _registered = app.register("topic", topic.addr);
    wait_for("both threads are connected", || async {
        topics(&app).await.first().is_some_and(is_called_by_both).then_some(())
    })
    .await;
    let write = |id: u8, limit: &str| {
        let body = format!(r#"{{"topic_id":{id},"subject":"x","content":"y"}}"#);
        let head = format!("host: x\r\ncontent-length: {}\r\nconnection: close", body.len());
        format!("PUT /api/topic/put_topic HTTP/1.1\r\n{limit}{head}\r\n\r\n{body}")
    };
    let ask = |id, limit| {
        let mut stream = std::net::TcpStream::connect(app.gateway()).unwrap();
        std::io::Write::write_all(&mut stream, write(id, limit).as_bytes()).unwrap();
        stream.set_nonblocking(true).unwrap();
        stream
    };
    let answer = async |stream| {
        let (mut stream, mut answer) = (TcpStream::from_std(stream).unwrap(), String::new());
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    let fresh = answer(ask(1, "")).await;
    assert!(fresh.starts_with("HTTP/1.1 200 ") && topic.calls() == 1, "{fresh}");
    // the thread of this test is the first one
    let waiting: Vec<_> = (2..=5).map(|id| ask(id, "x-request-timeout-ms: 500\r\n")).collect();
    std::thread::sleep(Duration::from_secs(1));
    for stream in waiting {
        let answer = answer(stream).await;
        assert!(
            answer.starts_with("HTTP/1.1 503 ") && answer.contains("older than its time limit"),
            "{answer}"
        );
    }
    assert_eq!(topic.calls(), 1);
}

/// It cannot be started again: its connections, and what they share with other threads, are gone.
#[tokio::test]
async fn the_end_of_a_thread_ends_the_process() {
    let mut settings = Settings::for_role(Part::Apigateway);
    (settings.http.addr, settings.admin.addr) = (ListenAddr::loopback(0), ListenAddr::loopback(0));
    settings.registry.endpoints.clear();
    settings.runtime.threads = 2;
    let mut process = app::process::Process::new(Part::Apigateway, settings).unwrap();
    process.add_gateway().unwrap();
    let threads = process.threads();
    let run = tokio::spawn(process.run(CancellationToken::new(), || {}));
    threads.stop().await;
    let ended = tokio::time::timeout(SOON, run).await.expect("it ends").unwrap();
    assert_eq!(ended.unwrap_err().to_string(), "a thread that serves requests has ended");
}

/// A store gets the writes of both threads.
#[tokio::test]
async fn a_store_takes_the_writes_of_every_thread() {
    let app = two_threads(|_| {}).await;
    let feed = |id: usize| {
        let body = format!(r#"{{"id":{id},"user_id":7,"content":"x"}}"#);
        crate::kit::http::request("PUT", "/api/feed/create_feed", &body)
    };
    let callers = open(&app, 8).await;
    let writers = callers.into_iter().enumerate().map(|(number, mut caller)| {
        tokio::spawn(async move {
            for id in 0..25 {
                assert_eq!(caller.send(feed(1 + number * 25 + id)).await.unwrap().status, 200);
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    let read = get(app.gateway(), "/api/feed/get_feeds?user_id=7&size=1000").await.json();
    assert_eq!(read["feeds"].as_array().unwrap().len(), 200);
}

#[tokio::test]
async fn a_taken_port_is_an_error_with_any_number_of_threads() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("app.toml");
    std::fs::write(&config, "[runtime]\nthreads = 2\n").unwrap();
    let config = config.display().to_string();
    let args = ["apigateway", "--config", &config, "--http-addr", &addr, "--debug-addr", "127.0.0.1:0"];
    let (status, _, errors) = run(&args);
    assert!(!status.success() && errors.contains(&format!("cannot listen on {addr}")), "{errors}");
    // nor can another process of the same user take the port of one that runs
    let etcd = Etcd::start().await;
    let gateway = Role::start(&etcd.addr.to_string(), "apigateway", "127.0.0.1:0", &TWO);
    let addr = gateway.addr.to_string();
    let args = ["apigateway", "--config", &config, "--http-addr", &addr, "--debug-addr", "127.0.0.1:0"];
    let (status, _, errors) = run(&args);
    assert!(!status.success() && errors.contains(&format!("cannot listen on {addr}")), "{errors}");
}

/// Sockets that outlive a gateway, and the registry.
struct Host {
    sockets: Vec<TcpListener>,
    etcd: Arc<Etcd>,
}

impl Host {
    /// Starts a gateway of two threads, after the end of another one. Not on this thread: the load goes on.
    async fn start(self: &Arc<Self>, before: Option<Process>) -> (Process, SocketAddr) {
        let host = self.clone();
        let start = move || {
            if let Some(mut before) = before {
                assert!(before.wait(SOON).success());
            }
            // a machine that is busy for a while is no loss
            let patient = [TWO[0], ("MSA__CLIENT__DEADLINE_MS", "10000")];
            start_on(&host.sockets, &host.etcd, &patient)
        };
        tokio::task::spawn_blocking(start).await.unwrap()
    }
}

/// Asks on a new connection, which must be neither refused nor reset. It may be closed before the request arrives, as any idle
/// connection; then it is sent once more (RFC 9112, 9.3.1).
async fn ask(addr: SocketAddr) -> u16 {
    for _ in 0..2 {
        match Connection::open(addr).await.expect("not refused").get(FEEDS).await {
            Ok(answer) => return answer.status.as_u16(),
            Err(error) => assert!(is_closed(&error), "{error:?}"),
        }
    }
    panic!("closed twice");
}

/// Returns whether a connection was closed, and not reset: before the request was written, meanwhile, or before the answer.
fn is_closed(error: &std::io::Error) -> bool {
    let closed = ["channel closed", "operation was canceled", "closed before message completed"];
    closed.iter().any(|text| error.to_string().contains(text)) && !chain(error).contains("reset by peer")
}

/// With one socket, and with one for each thread as `ReusePort=true` and two lines `ListenStream=` give them.
#[tokio::test]
async fn a_restart_under_load_loses_no_call() {
    let etcd = Arc::new(Etcd::start().await);
    let endpoint = etcd.addr.to_string();
    let _feed = Role::start(&endpoint, "feed", "127.0.0.1:0", &TWO);
    let _others = ["profile", "topic"].map(|role| Role::start(&endpoint, role, "127.0.0.1:0", &[]));
    let ready = |admin| async move { (get(admin, "/readyz").await.body == "ready\n").then_some(()) };
    for count in [1, 2] {
        let mut sockets = vec![bind_shared("127.0.0.1:0".parse().unwrap()).unwrap()];
        let addr = sockets[0].local_addr().unwrap();
        sockets.extend((1..count).map(|_| bind_shared(addr).unwrap()));
        let host = Arc::new(Host { sockets, etcd: etcd.clone() });
        let (mut gateway, admin) = host.start(None).await;
        wait_for("the gateway is ready", || ready(admin)).await;
        fill(addr, 7).await;
        let load = Load::get(addr, 200.0, FEEDS).within(Duration::from_secs(20)).start();
        for _ in 0..2 {
            load.more(100).await;
            gateway.signal(Signal::TERM);
            // many new connections, while nobody accepts them
            let burst = (0..200).map(|_| tokio::spawn(ask(addr)));
            let burst: Vec<_> = burst.collect();
            let (next, admin) = host.start(Some(gateway)).await;
            gateway = next;
            for answer in burst {
                // a gateway that has just started may not know its services yet
                let status = answer.await.unwrap();
                assert!([200, 503].contains(&status), "{status}");
            }
            wait_for("the gateway is ready", || ready(admin)).await;
        }
        load.more(100).await;
        let record = load.finish().await;
        let lost = record.calls.iter().filter(|call| {
            !call.answered() && call.outcome != Outcome::Status(StatusCode::SERVICE_UNAVAILABLE)
        });
        assert_eq!((lost.count(), record.unsent), (0, 0), "{}", record.failures());
        gateway.stop(SOON);
    }
}
