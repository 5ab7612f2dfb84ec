//! A fixed sequence of requests whose work is counted: instructions and allocations under valgrind, system calls under
//! strace. `tests/counts` runs it and compares.
//!
//! Gateway and services are in this process, on one thread and over real sockets, as `up` has them. While instructions
//! are counted the clock of the runtime stands still: what happens at times (health checks, hedges, pings) does not
//! depend on how slow the machine is.
//!
//! usage: counts get_feeds|get_profile|create_feed|page    does the requests inside of `measured`
//!        counts paced REQUESTS                             does so many get_feeds, 500 a second

#![expect(clippy::expect_used, clippy::panic, reason = "a measurement fails by panicking")]

use std::net::SocketAddr;
use std::time::Duration;

use microservice_app::app::process::Process;
use microservice_app::app::role::ServiceKind;
use microservice_app::config::{ListenAddr, Role, Settings, Store, StoreUrl};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Runtime};
use tokio::time::{Instant, advance, pause, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

/// Requests that are counted; `tests/counts` divides by it.
const REQUESTS: usize = 100;
/// Requests before them, which fill caches and tables.
const WARM_UP: usize = 30;
/// Feeds of the user, and bytes of the content of each: an answer has 3.9 kB.
const FEEDS: usize = 20;
const CONTENT: usize = 100;
/// Interval of a paced sequence.
const INTERVAL: Duration = Duration::from_millis(2);
/// Interval in which the program looks whether it was stopped for a while, see `server::pause`.
const BEAT: Duration = Duration::from_millis(50);
/// Longest wait for the start.
const START: Duration = Duration::from_mins(1);

fn main() {
    let arguments: Vec<_> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["paced", requests] => paced(&runtime, requests.parse().expect("a number")),
        ["page"] => count(&runtime, &Scenario::page()),
        [name] => count(&runtime, &Scenario::request(name)),
        _ => {} // as `cargo bench` calls it
    }
}

/// What is asked.
struct Scenario {
    request: Vec<u8>,
    /// True for the page of metrics of a process that is only a gateway.
    page: bool,
    write: bool,
}

impl Scenario {
    fn page() -> Self {
        Self { request: get("/metrics"), page: true, write: false }
    }

    fn request(name: &str) -> Self {
        let (request, write) = match name {
            "get_feeds" => (get(&format!("/api/feed/get_feeds?user_id=7&size={FEEDS}")), false),
            "get_profile" => (get("/api/profile/get_profile?user_id=7"), false),
            "create_feed" => (put("/api/feed/create_feed", &feed(FEEDS)), true),
            _ => panic!("there is no sequence {name}"),
        };
        Self { request, page: false, write }
    }
}

fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n").into_bytes()
}

fn put(path: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("PUT {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}\r\n\r\n{body}").into_bytes()
}

fn feed(id: usize) -> String {
    format!(r#"{{"id":{id},"user_id":7,"content":"{}"}}"#, "x".repeat(CONTENT))
}

/// Starts a gateway, and the services unless it is for a page. Returns the addresses of the gateway and of its admin
/// listener.
async fn start(services: bool) -> [SocketAddr; 2] {
    let role = if services { Role::Up } else { Role::Apigateway };
    let mut settings = Settings::for_role(role);
    let free = ListenAddr::loopback(0);
    (settings.http.addr, settings.admin.addr) = (free, free);
    settings.registry.endpoints.clear();
    let mut process = Process::new(role, settings).expect("a process");
    let store = Store { url: StoreUrl::Memory, ..Store::default() };
    if services {
        for kind in ServiceKind::ALL {
            process.add_service(kind, free, &store).await.expect("a service");
        }
    }
    process.add_gateway().expect("a gateway");
    let addresses = process.addresses();
    tokio::spawn(process.run(CancellationToken::new(), || {}));
    [addresses.of(Role::Apigateway).expect("a gateway"), addresses.admin]
}

/// A kept-alive connection to one listener.
struct Caller {
    stream: TcpStream,
    /// The last answer.
    answer: Vec<u8>,
}

impl Caller {
    /// Connects, and asks until the answer is 200.
    async fn open(addr: SocketAddr, request: &[u8]) -> Self {
        let begun = Instant::now();
        loop {
            let mut stream = TcpStream::connect(addr).await.expect("it listens");
            stream.set_nodelay(true).expect("a socket");
            stream.write_all(request).await.expect("it reads");
            let mut caller = Self { stream, answer: Vec::new() };
            caller.read().await;
            if caller.answer.starts_with(b"HTTP/1.1 200") {
                return caller;
            }
            assert!(begun.elapsed() < START, "{}", String::from_utf8_lossy(&caller.answer));
            sleep(Duration::from_millis(10)).await;
        }
    }

    async fn ask(&mut self, request: &[u8]) {
        self.stream.write_all(request).await.expect("it reads");
        self.read().await;
        assert!(self.answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&self.answer));
    }

    /// Reads one answer.
    async fn read(&mut self) {
        self.answer.clear();
        let head = loop {
            let read = self.stream.read_buf(&mut self.answer).await.expect("an answer");
            assert!(read > 0, "the connection was closed: {}", String::from_utf8_lossy(&self.answer));
            if let Some(end) = self.answer.windows(4).position(|end| end == b"\r\n\r\n") {
                break end + 4;
            }
        };
        let text = std::str::from_utf8(&self.answer[..head]).expect("a head");
        let length = text.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("a length");
        let length = head + length.parse::<usize>().expect("a number");
        let there = self.answer.len();
        self.answer.resize(length, 0);
        self.stream.read_exact(&mut self.answer[there..]).await.expect("the rest");
    }
}

/// Starts what a scenario asks, stores what it reads, and returns a connection.
async fn prepare(scenario: &Scenario) -> Caller {
    let [gateway, admin] = start(!scenario.page).await;
    if scenario.page {
        return Caller::open(admin, &scenario.request).await;
    }
    let profile = r#"{"user_id":7,"name":"Ann","company":"ACME","title":"CEO"}"#;
    Caller::open(gateway, &put("/api/profile/put_profile", profile)).await;
    for id in 1..=FEEDS {
        Caller::open(gateway, &put("/api/feed/create_feed", &feed(id))).await;
    }
    Caller::open(gateway, &scenario.request).await
}

/// Does the requests of a scenario, first those that are not counted.
fn count(runtime: &Runtime, scenario: &Scenario) {
    let mut caller = runtime.block_on(prepare(scenario));
    // while a blocking task runs the clock of a paused runtime does not go on by itself
    let (end, ended) = std::sync::mpsc::channel::<()>();
    let held = runtime.spawn_blocking(move || ended.recv());
    runtime.block_on(async {
        pause();
        // of the page, each one counts, the first one too
        if !scenario.page {
            sequence(scenario, &mut caller, WARM_UP).await;
        }
    });
    measured(runtime, scenario, &mut caller);
    drop(end);
    let _ = runtime.block_on(held);
}

/// valgrind counts only what happens in this function, and of the page only its making, which is on another thread.
#[inline(never)]
fn measured(runtime: &Runtime, scenario: &Scenario, caller: &mut Caller) {
    let requests = if scenario.page { REQUESTS - 1 } else { REQUESTS };
    runtime.block_on(sequence(scenario, caller, requests));
}

async fn sequence(scenario: &Scenario, caller: &mut Caller, requests: usize) {
    for _ in 0..requests {
        if scenario.write || scenario.page {
            // else the program would take itself for stopped, and writes for late ones; and two scrapes at the same
            // time get the same page
            advance(BEAT).await;
            tokio::task::yield_now().await;
        }
        caller.ask(&scenario.request).await;
    }
}

/// Does requests at a fixed rate.
fn paced(runtime: &Runtime, requests: u32) {
    runtime.block_on(async {
        let scenario = Scenario::request("get_feeds");
        let mut caller = prepare(&scenario).await;
        let begun = Instant::now();
        for number in 0..requests {
            sleep_until(begun + INTERVAL * number).await;
            caller.ask(&scenario.request).await;
        }
    });
}
