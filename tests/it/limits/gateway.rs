//! The limits of the gateway: what is refused, how, and that others are served meanwhile. What they hold
//! under attack, and its numbers, is in `faults::edge`.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use microservice_app::config::Settings;
use microservice_app::registry::Registration;
use microservice_app::server::listener::Listener;
use microservice_app::server::metrics::Metrics;
use microservice_app::server::{Limits, Protocol, Stop, UnsentLimit, serve};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::kit::app::App;
use crate::kit::fake::{Behaviour, Fake};
use crate::kit::http::{Answer, Connection, fill, get, parse, put, raw, request, send, small};
use crate::kit::metrics::find;
use crate::kit::wait_for;

const LIST: &str = "/api/topic/list";

const MS: Duration = Duration::from_millis(1);

/// Holds requests in the gateway: topic is there and takes a minute.
async fn held(change: impl FnOnce(&mut Settings)) -> (App, Fake, Registration) {
    let app = App::launch(|settings| {
        settings.up.topic_replicas = 0;
        settings.client.deadline = Duration::from_secs(20);
        change(settings);
    });
    let slow = Behaviour { delay: Duration::from_mins(1), ..Behaviour::default() };
    let fake = Fake::start_with(slow, 1000).await;
    let registered = app.register("topic", fake.addr);
    for service in ["feed", "topic"] {
        let line = format!("client_endpoints{{service=\"{service}\",state=\"up\"}}");
        wait_for(service, || async { app.metric_above(&line, 0.0).await.then_some(()) }).await;
    }
    (app, fake, registered)
}

/// Sends requests for topics that stay without an answer.
async fn hold(app: &App, count: usize) -> Vec<TcpStream> {
    let mut held = Vec::new();
    for _ in 0..count {
        let mut stream = TcpStream::connect(app.gateway()).await.unwrap();
        stream.write_all(format!("GET {LIST} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).await.unwrap();
        held.push(stream);
    }
    in_flight(app, count).await;
    held
}

async fn in_flight(app: &App, count: usize) {
    wait_for("the requests are in progress", || async {
        (app.metric("http_server_in_flight").await as usize == count).then_some(())
    })
    .await;
}

fn is_overloaded(answer: &Answer) {
    assert_eq!(answer.status, 503, "{answer:?}");
    assert_eq!(answer.header("content-type"), "application/problem+json");
    assert_eq!(answer.json()["type"], "urn:microservice-app:problem:overloaded");
    assert_eq!(answer.header("retry-after"), "1");
    assert!(!answer.header("x-request-id").is_empty() && !answer.header("x-b3-traceid").is_empty());
}

#[tokio::test]
async fn above_the_limit_requests_are_refused_at_once_and_below_it_served_again() {
    let (app, _topic, _registered) = held(|settings| settings.http.max_in_flight = 3).await;
    let mut held = hold(&app, 3).await;
    // whatever it is, and on a connection that goes on
    let mut connection = Connection::open(app.gateway()).await.unwrap();
    for _ in 0..3 {
        let begun = Instant::now();
        is_overloaded(&connection.get(LIST).await.unwrap());
        is_overloaded(&connection.get("/nowhere").await.unwrap());
        let feed = request("PUT", "/api/feed/create_feed", r#"{"id":1,"user_id":7,"content":"x"}"#);
        is_overloaded(&connection.send(feed).await.unwrap());
        assert!(begun.elapsed() < Duration::from_secs(5), "refusals wait for nobody");
    }
    assert!(app.metric("http_server_refused_total{reason=\"in_flight\"}").await >= 9.0);
    assert_eq!(get(app.addresses.admin, "/livez").await.status, 200);
    // a caller that hangs up gives its place back
    held.pop();
    in_flight(&app, 2).await;
    let answer = connection.get("/api/feed/get_feeds?user_id=404").await.unwrap();
    assert_eq!(answer.status, 404);
    drop(held);
    in_flight(&app, 0).await;
}

#[tokio::test]
async fn a_slow_upload_takes_no_place() {
    let (app, _topic, _registered) = held(|settings| settings.http.max_in_flight = 2).await;
    let mut slow = Vec::new();
    for _ in 0..20 {
        let mut stream = TcpStream::connect(app.gateway()).await.unwrap();
        let begin = "PUT /api/feed/create_feed HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{";
        stream.write_all(begin.as_bytes()).await.unwrap();
        slow.push(stream);
    }
    let body = r#"{"id":1,"user_id":7,"content":"x"}"#;
    for _ in 0..5 {
        assert_eq!(put(app.gateway(), "/api/feed/create_feed", body).await.status, 200);
    }
    // an upload whose place is gone when it ends is refused then
    let _held = hold(&app, 2).await;
    let mut first = slow.pop().unwrap();
    first.write_all(&[b' '; 99]).await.unwrap();
    let mut answer = [0; 12];
    first.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 503");
}

/// Only a PUT has a body: that of any other request is refused, and not waited for.
#[tokio::test]
async fn a_body_that_is_not_read_is_not_waited_for() {
    let (app, _topic, _registered) = held(|_| {}).await;
    let mut stream = TcpStream::connect(app.gateway()).await.unwrap();
    let begin = format!("GET {LIST} HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{{");
    stream.write_all(begin.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // http.body_timeout_ms is 10 s
    let read = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut answer)).await;
    read.expect("an answer, and the end of the connection").unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 400 "), "{}", String::from_utf8_lossy(&answer));
    in_flight(&app, 0).await;
}

#[tokio::test]
async fn a_client_over_its_rate_is_told_when_to_come_again() {
    let app = App::start_with(|settings| {
        (settings.http.rate_limit, settings.http.rate_burst) = (1, 5);
    })
    .await;
    let mut connection = Connection::open(app.gateway()).await.unwrap();
    let mut refused = None;
    for n in 0..20 {
        // a header from a peer that is no proxy says nothing
        let mut spoofed = request("GET", LIST, "");
        spoofed.headers_mut().insert("x-forwarded-for", format!("192.0.2.{n}").parse().unwrap());
        let answer = connection.send(spoofed).await.unwrap();
        match (answer.status.as_u16(), n) {
            (200, _) => {}
            (429, 5..) => refused = Some(answer),
            _ => panic!("{n}: {answer:?}"),
        }
    }
    let refused = refused.expect("one of 20 is over a burst of 5");
    assert_eq!(refused.json()["type"], "urn:microservice-app:problem:too_many_requests");
    assert_eq!(refused.header("retry-after"), "1");
    assert!(app.metric("http_server_refused_total{reason=\"rate\"}").await > 0.0);
    assert_eq!(get(app.addresses.admin, "/livez").await.status, 200);
    wait_for("the next one is taken", || async {
        (get(app.gateway(), LIST).await.status == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn behind_a_trusted_proxy_each_client_has_its_own_rate() {
    let app = App::start_with(|settings| {
        (settings.http.rate_limit, settings.http.rate_burst) = (1, 3);
        settings.http.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap(), "10.0.0.9".parse().unwrap()];
    })
    .await;
    let ask = |forwarded: &[&str]| {
        let gateway = app.gateway();
        let forwarded: Vec<_> = forwarded.iter().map(|line| (*line).to_owned()).collect();
        async move {
            let mut asked = request("GET", LIST, "");
            for line in forwarded {
                asked.headers_mut().append("x-forwarded-for", line.parse().unwrap());
            }
            send(gateway, asked).await.unwrap().status.as_u16()
        }
    };
    for _ in 0..3 {
        assert_eq!(ask(&["203.0.113.1, 192.0.2.1"]).await, 200);
    }
    // what stands left of the client is the client's own word; one more proxy changes nothing
    let mut answers = Vec::new();
    for spoofed in 2..10 {
        answers.push(ask(&[&format!("203.0.113.{spoofed}, 192.0.2.1"), "10.0.0.9"]).await);
    }
    assert!(answers.contains(&429), "{answers:?}");
    assert_eq!(ask(&["192.0.2.2"]).await, 200, "another client");
    // garbage makes no new client: it is the proxy's request
    let mut answers = Vec::new();
    for garbage in [&["x"], &["1.2.3.4.5"], &["-"], &["unknown"], &[",,"], &["::g"]] {
        answers.push(ask(garbage).await);
    }
    assert!(answers.contains(&429), "{answers:?}");
}

#[tokio::test]
async fn f31_a_body_without_end_is_refused_before_it_is_read() {
    let app = App::start().await;
    let begin = "PUT /api/feed/create_feed HTTP/1.1\r\nhost: x\r\ncontent-length: 1073741824\r\n\r\n";
    let (status, headers, _) = parse(&raw(app.gateway(), begin.as_bytes()).await);
    assert_eq!((status, headers["connection"].to_str().unwrap()), (413, "close"));
    // without a length: as it comes
    let mut stream = TcpStream::connect(app.gateway()).await.unwrap();
    let begin = "PUT /api/feed/create_feed HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n";
    stream.write_all(begin.as_bytes()).await.unwrap();
    let chunk = [b"10000\r\n".as_slice(), &b" ".repeat(0x10000), b"\r\n"].concat();
    let mut sent = 0;
    while sent < 1024 && stream.write_all(&chunk).await.is_ok() {
        sent += 1;
    }
    assert!(sent < 1024, "64 MiB were read");
}

#[tokio::test]
async fn f31_idle_connections_make_room() {
    let app = App::start_with(|settings| settings.http.max_connections = 50).await;
    let mut idle = Vec::new();
    for _ in 0..49 {
        let mut connection = Connection::open(app.gateway()).await.unwrap();
        connection.get(LIST).await.unwrap();
        idle.push(connection);
    }
    for _ in 0..200 {
        idle.push(Connection::open(app.gateway()).await.unwrap());
        assert_eq!(get(app.gateway(), LIST).await.status, 200);
    }
}

/// They are not idle as hyper sees it, and end when they are told to all the same.
#[tokio::test]
async fn f31_connections_that_have_sent_one_byte_make_room() {
    let app = App::start_with(|settings| settings.http.max_connections = 50).await;
    let mut begun = Vec::new();
    let mut longest = Duration::ZERO;
    for round in 0..70 {
        let mut stream = TcpStream::connect(app.gateway()).await.unwrap();
        stream.write_all(b"G").await.unwrap();
        begun.push(stream);
        if round >= 50 {
            let asked = Instant::now();
            assert_eq!(get(app.gateway(), LIST).await.status, 200);
            longest = longest.max(asked.elapsed());
        }
    }
    assert!(longest < Duration::from_secs(1), "{longest:?}");
}

#[tokio::test]
async fn f31_a_reader_that_stops_is_cut_and_one_that_is_slow_is_served() {
    let app = App::start_with(|settings| {
        // longer than a busy machine lets the slow reader wait for its turn
        settings.http.write_timeout = Duration::from_secs(2);
        // the largest answer takes its time in a debug build on a busy machine
        settings.client.deadline = Duration::from_secs(20);
    })
    .await;
    fill(app.gateway(), 7).await;
    let asked =
        b"GET /api/feed/get_feeds?user_id=7&size=1000 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    let mut stopped = small(app.gateway()).await;
    stopped.write_all(asked).await.unwrap();
    let mut slow = small(app.gateway()).await;
    slow.write_all(asked).await.unwrap();
    // with pauses that are shorter than the timeout, and all together longer
    let (mut read, mut part, begun) = (0, vec![0; 200_000], Instant::now());
    loop {
        match slow.read(&mut part).await.unwrap() {
            0 => break,
            count => read += count,
        }
        tokio::time::sleep(10 * MS).await;
    }
    assert!(read > 1_900_000, "{read}");
    assert!(begun.elapsed() > Duration::from_secs(2), "{:?}", begun.elapsed());
    // a peer whose window is full need not take the reset for one: the program says what it did
    let line = "server_connections_cut_total{reason=\"write_timeout\"}";
    wait_for("the reader that stopped is cut", || async { (app.metric(line).await > 0.0).then_some(()) })
        .await;
    let cuts = app.metric(line).await;
    assert!((cuts - 1.0).abs() < 0.1, "{cuts}");
    drop(stopped);
    assert_eq!(get(app.gateway(), LIST).await.status, 200);
}

/// Opens connections that ask for something and read nothing.
async fn readers(addr: SocketAddr, count: usize) -> Vec<TcpStream> {
    let mut all = Vec::new();
    for _ in 0..count {
        let mut stream = small(addr).await;
        stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        all.push(stream);
    }
    all
}

#[tokio::test]
async fn f34_above_the_limit_of_unsent_bytes_the_slowest_reader_makes_room() {
    // much more than the 4 MiB that the kernel may take in, if earlier connections to this address were quick
    const ANSWER: usize = 24_000_000;
    let listener = Listener::bind(([127, 0, 0, 1], 0).into()).unwrap();
    let addr = listener.addr();
    // room is made from the half on
    let unsent = UnsentLimit::new(10 * ANSWER);
    let limits =
        Limits { max_connections: 100, write_timeout: Duration::from_mins(1), unsent: unsent.clone() };
    let registry = prometheus::Registry::new();
    let (metrics, begin) = (Metrics::register(&registry).unwrap(), CancellationToken::new());
    let stop = Stop { begin: begin.clone(), grace: Duration::ZERO };
    let protocol = Protocol::Http1 { header_timeout: Duration::from_secs(10) };
    let counted = metrics.clone();
    let server = tokio::spawn(async move {
        let answer = |_, _| async { http::Response::new(Full::new(Bytes::from(vec![b'x'; ANSWER]))) };
        serve(listener, protocol, limits, &counted, answer, stop).await;
    });
    let old = readers(addr, 4).await;
    wait_for("four answers wait", || async { (unsent.used() > 3 * ANSWER).then_some(()) }).await;
    tokio::time::sleep(200 * MS).await; // longer than the patience with readers while room is short
    // each of these is one too many, and an old one goes for it
    let young = readers(addr, 5).await;
    let cuts = || {
        let page = microservice_app::telemetry::metrics::text(&registry);
        let found = find(&page, "server_connections_cut_total{reason=\"unsent\"}");
        found.expect("cut connections are counted") as usize
    };
    wait_for("the old ones are cut", || async { (cuts() >= 3).then_some(()) }).await;
    assert!(cuts() <= old.len() && young.iter().all(|stream| stream.peer_addr().is_ok()));
    assert!(unsent.used() <= 6 * ANSWER, "{}", unsent.used());
    let answer = get(addr, "/").await;
    assert_eq!((answer.status.as_u16(), answer.body.len()), (200, ANSWER));
    begin.cancel();
    server.await.unwrap();
    assert_eq!(unsent.used(), 0, "what was cut holds nothing");
}

#[tokio::test]
async fn the_longest_idle_connection_makes_room() {
    let app = App::start_with(|settings| settings.http.max_connections = 2).await;
    let mut held = Vec::new();
    for _ in 0..5 {
        let mut connection = Connection::open(app.gateway()).await.unwrap();
        assert_eq!(connection.get("/api/topic/list").await.unwrap().status, 200);
        held.push(connection);
    }
    // the two youngest are still open
    for connection in held.iter_mut().rev().take(2) {
        assert_eq!(connection.get("/api/topic/list").await.unwrap().status, 200);
    }
    assert!(held[0].get("/api/topic/list").await.is_err());
}

/// Of two connections without a request to answer, one still sends.
#[tokio::test]
async fn a_download_under_way_is_not_idle() {
    let app = App::start_with(|settings| {
        settings.http.max_connections = 4;
        settings.client.deadline = Duration::from_secs(20);
    })
    .await;
    fill(app.gateway(), 7).await;
    let asked =
        b"GET /api/feed/get_feeds?user_id=7&size=1000 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    let mut reader = small(app.gateway()).await;
    reader.write_all(asked).await.unwrap();
    let mut part = vec![0; 20_000];
    let mut read = reader.read(&mut part).await.unwrap();
    // these were idle for a shorter time than the answer has been complete
    let mut idle = Vec::new();
    for _ in 0..3 {
        let mut connection = Connection::open(app.gateway()).await.unwrap();
        connection.get(LIST).await.unwrap();
        idle.push(connection);
    }
    let begun = Instant::now();
    loop {
        let count = reader.read(&mut part).await.unwrap_or_else(|error| panic!("cut after {read}: {error}"));
        read += count;
        if count == 0 {
            break;
        }
        if idle.len() < 20 {
            let mut connection = Connection::open(app.gateway()).await.unwrap();
            assert_eq!(connection.get(LIST).await.unwrap().status, 200, "an idle one makes room");
            idle.push(connection);
        }
        tokio::time::sleep(20 * MS).await;
    }
    assert!(read > 1_900_000, "cut after {read} bytes, {:?}", begun.elapsed());
    assert!(idle.len() > 10);
}
