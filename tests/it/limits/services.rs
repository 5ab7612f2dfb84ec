//! The limits of the services: what they refuse, how, and that others are served meanwhile. What they
//! hold under attack, and its numbers, is in `faults::edge`.

use std::net::SocketAddr;
use std::time::Duration;

use http::Request as HttpRequest;
use microservice_app::api::proto::{feed, profile, topic};
use microservice_app::config::Role;
use microservice_app::registry::Registration;
use rustix::process::Signal;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::kit::app::App;
use crate::kit::frames::Bare;
use crate::kit::http::{fill, small};
use crate::kit::metrics::{metric, metric_above};
use crate::kit::process::Process;
use crate::kit::{frames, measured, peer, wait_for};

const LIST: &str = "/topic.Topic/ListTopics";
const MS: Duration = Duration::from_millis(1);

async fn channel(addr: SocketAddr) -> Channel {
    Endpoint::from_shared(format!("http://{addr}")).unwrap().connect().await.unwrap()
}

async fn call<Q, A>(channel: &Channel, path: &'static str, request: Request<Q>) -> Result<A, Status>
where
    Q: prost::Message + Send + Sync + 'static,
    A: prost::Message + Default + Send + Sync + 'static,
{
    let mut grpc = Grpc::new(channel.clone());
    grpc.ready().await.map_err(|error| Status::unknown(error.to_string()))?;
    let codec = tonic_prost::ProstCodec::default();
    Ok(grpc.unary(request, PathAndQuery::from_static(path), codec).await?.into_inner())
}

async fn get_profile(channel: Channel) -> Result<profile::GetProfileResponse, Status> {
    let mut asked = Request::new(profile::GetProfileRequest { user_id: 7 });
    asked.metadata_mut().insert("grpc-timeout", "30S".parse().unwrap());
    call(&channel, "/profile.Profile/GetProfile", asked).await
}

async fn list(channel: &Channel) -> Result<topic::ListTopicsResponse, Status> {
    call(channel, LIST, Request::new(topic::ListTopicsRequest { after: 0, size: 1 })).await
}

/// An application whose profile service waits for a feed service that says nothing.
struct Waiting {
    app: App,
    profile: Channel,
    _feed: peer::Peer,
    _registered: Registration,
}

impl Waiting {
    async fn start(max_in_flight: usize) -> Self {
        let app = App::launch(|settings| {
            settings.up.feed_replicas = 0;
            settings.grpc.max_in_flight = max_in_flight;
            settings.client.keepalive_timeout = Duration::from_secs(30);
        });
        let feed = peer::silent().await;
        let registered = app.register("feed", feed.addr);
        let profile = channel(app.addresses.of(Role::Profile).unwrap()).await;
        let ada = profile::PutProfileRequest { user_id: 7, ..Default::default() };
        let _: profile::OkResponse =
            call(&profile, "/profile.Profile/PutProfile", Request::new(ada)).await.unwrap();
        Self { app, profile, _feed: feed, _registered: registered }
    }

    /// Makes calls that stay in progress.
    async fn hold(&self, count: usize) -> Vec<JoinHandle<Result<profile::GetProfileResponse, Status>>> {
        let calls = (0..count).map(|_| tokio::spawn(get_profile(self.profile.clone()))).collect();
        self.in_flight(count).await;
        calls
    }

    async fn in_flight(&self, count: usize) {
        wait_for("the calls are in progress", || async {
            let gauge = self.app.metric("grpc_server_in_flight{service=\"profile.Profile\"}").await;
            (gauge as usize == count).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn above_the_limit_calls_are_refused_with_pushback_and_health_is_not() {
    let waiting = Waiting::start(2).await;
    let held = waiting.hold(2).await;
    for _ in 0..3 {
        let refused = get_profile(waiting.profile.clone()).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
        let pushback = refused.metadata().get("grpc-retry-pushback-ms").expect("pushback");
        let ms: u32 = pushback.to_str().unwrap().parse().unwrap();
        assert!((50..=150).contains(&ms), "{ms}");
    }
    let count = "grpc_server_refused_total{reason=\"in_flight\",service=\"profile.Profile\"}";
    assert!(waiting.app.metric(count).await >= 3.0);
    let mut health = HealthClient::new(waiting.profile.clone());
    let asked = HealthCheckRequest { service: "profile.Profile".to_owned() };
    health.check(asked.clone()).await.unwrap();
    let mut watch = health.watch(asked).await.unwrap().into_inner();
    watch.message().await.unwrap().unwrap();
    // watches hold no place, and other services of the process have their own
    waiting.in_flight(2).await;
    list(&channel(waiting.app.addresses.of(Role::Topic).unwrap()).await).await.unwrap();
    for call in held {
        call.abort();
    }
    waiting.in_flight(0).await;
    assert!(waiting.hold(2).await.len() == 2, "the places are free again");
}

#[tokio::test]
async fn a_hang_up_cancels_the_handler_within_50_ms() {
    let waiting = Waiting::start(100).await;
    measured("from hang-up to the end of the handler", || async {
        let call = waiting.hold(1).await.pop().unwrap();
        let begun = Instant::now();
        call.abort();
        waiting.in_flight(0).await;
        let took = begun.elapsed();
        if took < 50 * MS { Ok(()) } else { Err(took) }
    })
    .await;
}

/// Sends a call as it stands, without a client's own timers, and returns its status.
async fn bare(addr: SocketAddr, path: &str, timeout: &str, message: &impl prost::Message) -> Status {
    let stream = TcpStream::connect(addr).await.unwrap();
    let (sender, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let request = HttpRequest::post(format!("http://{addr}{path}")).header("grpc-timeout", timeout);
    let request = request.header("content-type", "application/grpc").body(()).unwrap();
    let (answer, mut body) = sender.ready().await.unwrap().send_request(request, false).unwrap();
    let message = message.encode_to_vec();
    let length = u8::try_from(message.len()).unwrap();
    let _ = body.send_data([&[0, 0, 0, 0, length], message.as_slice()].concat().into(), true);
    let answer = tokio::time::timeout(Duration::from_secs(10), answer).await.unwrap().unwrap();
    Status::from_header_map(answer.headers()).unwrap_or_else(|| Status::ok(""))
}

#[tokio::test]
async fn a_call_that_nobody_waits_for_is_not_begun() {
    let app = App::start().await;
    let addr = app.addresses.of(Role::Feed).unwrap();
    let record = feed::FeedRecord { id: 1, user_id: 7, content: "x".to_owned() };
    // a service that has just started cannot know how long a write has waited for it, and says so
    wait_for("writes count as new", || async {
        let refused = bare(addr, "/feed.Feed/CreateFeed", "0m", &record).await;
        (refused.code() == Code::DeadlineExceeded).then_some(())
    })
    .await;
    for spent in ["0m", "0n", "0S"] {
        let refused = bare(addr, "/feed.Feed/CreateFeed", spent, &record).await;
        assert_eq!(refused.code(), Code::DeadlineExceeded);
    }
    assert!(app.metric("grpc_server_refused_total{reason=\"deadline\",service=\"feed.Feed\"}").await >= 3.0);
    let asked = feed::GetFeedsRequest { user_id: 7, size: 1, before: 0 };
    let found = bare(addr, "/feed.Feed/GetFeeds", "5S", &asked).await;
    assert_eq!(found.code(), Code::NotFound, "nothing was written");
}

/// A process is stopped, so that call and hang-up are surely there when it reads.
#[tokio::test]
async fn a_call_whose_caller_has_given_up_is_not_begun() {
    const CALLS: i32 = 60;
    let mut feed = Process::start(&["feed", "--addr", "127.0.0.1:0", "--debug-addr", "127.0.0.1:0"]);
    let (addr, admin) = feed.wait_for_role("feed");
    let mut callers = Vec::new();
    for _ in 0..CALLS {
        callers.push(frames::hello(addr).await);
    }
    feed.signal(Signal::STOP);
    let mut gone = Vec::new();
    for (id, mut caller) in (1..).zip(callers) {
        let record = feed::FeedRecord { id, user_id: 7, content: "x".to_owned() };
        let call = frames::call(1, "/feed.Feed/CreateFeed", &record);
        if id % 2 == 0 {
            caller.write_all(&[call, frames::reset(1)].concat()).await.unwrap();
            gone.push(caller);
        } else {
            caller.write_all(&call).await.unwrap(); // and the end of the connection
        }
    }
    tokio::time::sleep(100 * MS).await;
    feed.signal(Signal::CONT);
    // a call whose connection ends may not even be seen
    let ended = "grpc_server_handling_seconds_count{code=\"CANCELLED\",method=\"CreateFeed\"";
    wait_for("the calls have ended", || async {
        metric_above(admin, ended, f64::from(CALLS / 2) - 0.5).await.then_some(())
    })
    .await;
    let asked = Request::new(feed::GetFeedsRequest { user_id: 7, size: 100, before: 0 });
    let found: Result<feed::GetFeedsResponse, _> =
        call(&channel(addr).await, "/feed.Feed/GetFeeds", asked).await;
    assert_eq!(found.expect_err("nothing is written").code(), Code::NotFound);
}

/// A call to a process that is stopped: its deadline passes meanwhile, and its caller sends no reset.
#[tokio::test]
async fn a_write_that_a_stopped_process_finds_late_is_not_begun() {
    let mut feed = Process::start(&["feed", "--addr", "127.0.0.1:0", "--debug-addr", "127.0.0.1:0"]);
    let (addr, admin) = feed.wait_for_role("feed");
    let write = async |id, timeout| {
        let record = feed::FeedRecord { id, user_id: 7, content: "x".to_owned() };
        bare(addr, "/feed.Feed/CreateFeed", timeout, &record).await
    };
    assert_eq!(write(1, "500m").await.code(), Code::Ok);
    feed.signal(Signal::STOP);
    let thaw = async {
        tokio::time::sleep(800 * MS).await;
        feed.signal(Signal::CONT);
    };
    let (late, patient, ()) = tokio::join!(write(2, "500m"), write(3, "10S"), thaw);
    assert_eq!((late.code(), patient.code()), (Code::Unavailable, Code::Ok), "{late:?}");
    let pushback = late.metadata().get("grpc-retry-pushback-ms").expect("it may be repeated");
    let pushback: u64 = pushback.to_str().unwrap().parse().unwrap();
    assert!(pushback <= 1000, "{pushback}");
    let count = "grpc_server_refused_total{reason=\"deadline\",service=\"feed.Feed\"}";
    assert_eq!(metric(admin, count).await as u32, 1);
    tokio::time::sleep(Duration::from_millis(pushback)).await;
    assert_eq!(write(4, "500m").await.code(), Code::Ok, "the stop is over");
    let asked = feed::GetFeedsRequest { user_id: 7, size: 100, before: 0 };
    let found: feed::GetFeedsResponse =
        call(&channel(addr).await, "/feed.Feed/GetFeeds", Request::new(asked)).await.unwrap();
    assert_eq!(found.feeds.iter().map(|feed| feed.id).collect::<Vec<_>>(), [1, 3, 4]);
}

#[tokio::test]
async fn a_request_that_never_comes_takes_no_place_and_ends_at_its_deadline() {
    let app = App::start_with(|settings| {
        settings.grpc.max_in_flight = 2;
        settings.client.deadline = 1500 * MS;
    })
    .await;
    let addr = app.addresses.of(Role::Topic).unwrap();
    let stream = TcpStream::connect(addr).await.unwrap();
    let (mut sender, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let mut answers = Vec::new();
    for _ in 0..20 {
        let request = HttpRequest::post(format!("http://{addr}{LIST}"));
        let request = request.header("content-type", "application/grpc").body(()).unwrap();
        sender = sender.ready().await.unwrap();
        answers.push(sender.send_request(request, false).unwrap());
    }
    let others = channel(addr).await;
    for _ in 0..5 {
        list(&others).await.unwrap();
    }
    for (answer, _body) in answers {
        let answer = tokio::time::timeout(Duration::from_secs(10), answer).await.unwrap().unwrap();
        let status = Status::from_header_map(answer.headers()).unwrap();
        assert_eq!(status.code(), Code::DeadlineExceeded);
    }
}

#[tokio::test]
async fn a_request_over_its_limit_is_refused() {
    let app = App::start().await;
    let feed = channel(app.addresses.of(Role::Feed).unwrap()).await;
    let record = feed::FeedRecord { id: 1, user_id: 7, content: "x".repeat(300 * 1024) };
    let refused: Result<feed::OkResponse, _> =
        call(&feed, "/feed.Feed/CreateFeed", Request::new(record)).await;
    let refused = refused.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::InvalidArgument, "request: is over 262144 bytes"));
}

/// Such messages count in no limit, so they are short.
#[tokio::test]
async fn a_health_check_over_its_limit_is_refused() {
    let app = App::start().await;
    let channel = channel(app.addresses.of(Role::Feed).unwrap()).await;
    let asked = HealthCheckRequest { service: "x".repeat(5000) };
    let refused = HealthClient::new(channel.clone()).check(asked.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    let refused = HealthClient::new(channel).watch(asked).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
}

#[tokio::test]
async fn f31_a_caller_that_opens_no_window_is_cut() {
    let app = App::start_with(|settings| {
        settings.grpc.write_timeout = 600 * MS;
        settings.client.deadline = Duration::from_secs(20);
    })
    .await;
    fill(app.gateway(), 7).await;
    let addr = app.addresses.of(Role::Feed).unwrap();
    // h2 gives no window back until it is told to: the answer stays where it is
    let (mut sender, connection) = h2::client::handshake(small(addr).await).await.unwrap();
    let connection = tokio::spawn(connection);
    let request = HttpRequest::post(format!("http://{addr}/feed.Feed/GetFeeds"));
    let request = request.header("content-type", "application/grpc").body(()).unwrap();
    let (answer, mut body) = sender.send_request(request, false).unwrap();
    let message = prost::Message::encode_to_vec(&feed::GetFeedsRequest { user_id: 7, size: 60, before: 0 });
    let length = u8::try_from(message.len()).unwrap();
    body.send_data([&[0, 0, 0, 0, length], message.as_slice()].concat().into(), true).unwrap();
    let _answer = answer.await.unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(10), connection).await;
    assert!(ended.expect("the connection is cut").unwrap().is_err());
    assert!(app.metric("server_connections_cut_total{reason=\"write_timeout\"}").await > 0.0);
    list(&channel(app.addresses.of(Role::Topic).unwrap()).await).await.unwrap();
}

/// Asks for the largest answer there is, 2 MiB, of what [`fill`] has stored.
fn large() -> Vec<u8> {
    prost::Message::encode_to_vec(&feed::GetFeedsRequest { user_id: 7, size: 60, before: 0 })
}

/// Calls that last as long as the tests of them.
async fn patient() -> (App, SocketAddr) {
    let app = App::start_with(|settings| settings.client.deadline = Duration::from_secs(30)).await;
    fill(app.gateway(), 7).await;
    let addr = app.addresses.of(Role::Feed).unwrap();
    (app, addr)
}

async fn put(channel: &Channel) -> Result<feed::OkResponse, Status> {
    let record = feed::FeedRecord { id: 1, user_id: 8, content: "x".to_owned() };
    call(channel, "/feed.Feed/CreateFeed", Request::new(record)).await
}

/// 80 answers are more than all connections together may have unsent.
#[tokio::test]
async fn one_connection_that_reads_byte_by_byte_stops_nobody() {
    let (_app, addr) = patient().await;
    let mut hostile = Bare::open(addr, 0).await;
    for _ in 0..80 {
        hostile.call("/feed.Feed/GetFeeds", &large()).await;
    }
    let others = channel(addr).await;
    let begun = Instant::now();
    let mut refused = 0;
    while begun.elapsed() < Duration::from_secs(6) {
        hostile.open_by_one_byte().await;
        refused += usize::from(put(&others).await.is_err());
        tokio::time::sleep(100 * MS).await;
    }
    assert_eq!(refused, 0, "calls of others were refused");
}

/// Nor do several, each with its share.
#[tokio::test]
async fn connections_that_read_byte_by_byte_are_cut_when_memory_is_short() {
    let (app, addr) = patient().await;
    let mut hostile = Vec::new();
    for _ in 0..5 {
        let mut connection = Bare::open(addr, 0).await;
        for _ in 0..40 {
            connection.call("/feed.Feed/GetFeeds", &large()).await;
        }
        hostile.push(tokio::spawn(async move {
            while !connection.is_closed() {
                connection.open_by_one_byte().await;
                tokio::time::sleep(100 * MS).await;
            }
        }));
    }
    let others = channel(addr).await;
    let line = "server_connections_cut_total{reason=\"unsent\"}";
    // five shares are more than the limit, and four are all of it
    wait_for("some are cut", || async { (app.metric(line).await >= 1.0).then_some(()) }).await;
    wait_for("calls are taken again", || async { put(&others).await.ok() }).await;
    for _ in 0..20 {
        put(&others).await.unwrap();
        tokio::time::sleep(50 * MS).await;
    }
    assert!(hostile.iter().filter(|connection| connection.is_finished()).count() >= 1);
}

/// What one connection may hold is less than all; then its own calls are refused.
#[tokio::test]
async fn a_connection_that_holds_its_share_of_unsent_answers_gets_no_more() {
    let (app, addr) = patient().await;
    let mut greedy = Bare::open(addr, 0).await;
    let refused = "grpc_server_refused_total{reason=\"memory\",service=\"feed.Feed\"}";
    let mut asked = 0;
    while app.metric(refused).await < 1.0 {
        greedy.call("/feed.Feed/GetFeeds", &large()).await;
        asked += 1;
        assert!(asked < 60, "it holds 120 MB");
        tokio::time::sleep(20 * MS).await;
    }
    assert!(asked > 16, "32 MiB, {asked} answers");
    put(&channel(addr).await).await.unwrap();
}

/// Pings are answered at once: they say nothing about the answers.
#[tokio::test]
async fn a_caller_that_opens_no_window_and_pings_is_cut() {
    let app = App::start_with(|settings| settings.grpc.write_timeout = 600 * MS).await;
    fill(app.gateway(), 7).await;
    let mut caller = Bare::open(app.addresses.of(Role::Feed).unwrap(), 0).await;
    caller.call("/feed.Feed/GetFeeds", &large()).await;
    for _ in 0..50 {
        caller.ping().await;
        tokio::time::sleep(100 * MS).await;
    }
    assert!(caller.is_closed(), "it holds an answer for 5 s");
    assert!(app.metric("server_connections_cut_total{reason=\"write_timeout\"}").await > 0.0);
}

#[tokio::test]
async fn an_idle_connection_stays_open_and_one_that_says_no_hello_does_not() {
    let app = App::start().await;
    let addr = app.addresses.of(Role::Topic).unwrap();
    let mut idle = Bare::open(addr, 65_535).await;
    let mut silent = TcpStream::connect(addr).await.unwrap();
    let ended = async {
        let mut byte = [0; 100];
        while tokio::io::AsyncReadExt::read(&mut silent, &mut byte).await.is_ok_and(|count| count > 0) {}
    };
    tokio::time::timeout(Duration::from_secs(12), ended).await.expect("it is closed");
    tokio::time::sleep(1500 * MS).await;
    assert!(!idle.is_closed(), "a client that connects ahead has done nothing wrong");
    let list = prost::Message::encode_to_vec(&topic::ListTopicsRequest { after: 0, size: 1 });
    idle.call(LIST, &list).await;
    let counted =
        "grpc_server_handling_seconds_count{code=\"OK\",method=\"ListTopics\",service=\"topic.Topic\"}";
    wait_for("its call is answered", || async { (app.metric(counted).await > 0.0).then_some(()) }).await;
    app.stop.cancel();
    assert!(idle.goaway().await, "it is told before it is closed");
}

/// 10 connections with 1000 calls each, of which 8 KiB have come: 80 MB, and 64 MiB are the limit.
#[tokio::test]
async fn bodies_that_never_end_are_bounded_however_small_each_is() {
    let (app, addr) = patient().await;
    let mut callers = Vec::new();
    for _ in 0..10 {
        let mut caller = Bare::open(addr, 65_535).await;
        for _ in 0..1000 {
            caller.call_without_end("/feed.Feed/CreateFeed", 8 * 1024).await;
        }
        callers.push(caller);
    }
    let refused = "grpc_server_refused_total{reason=\"memory\",service=\"feed.Feed\"}";
    wait_for("some are refused", || async { (app.metric(refused).await > 0.0).then_some(()) }).await;
    // a usual call of another connection is not among them
    let record = feed::FeedRecord { id: 1, user_id: 8, content: "x".repeat(4096) };
    let _: feed::OkResponse =
        call(&channel(addr).await, "/feed.Feed/CreateFeed", Request::new(record)).await.unwrap();
}
