//! Profiles of a real process under load.
#![cfg(feature = "cpu-profile")]

use std::io::Read as _;
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use flate2::read::GzDecoder;
use http::StatusCode;
use microservice_app::admin::profile::Profile;
use prost::Message as _;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::kit::http::{get, raw};
use crate::kit::load::Load;
use crate::kit::process::Process;
use crate::kit::{SOON, skip, wait_for};

struct Up {
    process: Process,
    gateway: SocketAddr,
    admin: SocketAddr,
    _data: tempfile::TempDir,
}

async fn up() -> Up {
    let data = tempfile::tempdir().unwrap();
    let mut process = Process::start(&["up", "--free-ports", "--data-dir", data.path().to_str().unwrap()]);
    let (gateway, admin) = process.wait_for_role("apigateway");
    wait_for("it is ready", || async { (get(admin, "/readyz").await.body == "ready\n").then_some(()) }).await;
    Up { process, gateway, admin, _data: data }
}

/// Returns the body of a GET, which is not text.
async fn download(addr: SocketAddr, path: &str) -> Vec<u8> {
    use http_body_util::{BodyExt as _, Empty};
    let stream = TcpStream::connect(addr).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request =
        http::Request::get(path).header("host", "localhost").body(Empty::<bytes::Bytes>::new()).unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    response.into_body().collect().await.unwrap().to_bytes().to_vec()
}

/// Returns the names of the functions on each stack, from the innermost outwards, with its count.
fn stacks(profile: &Profile) -> Vec<(Vec<&str>, i64)> {
    let text = |at: i64| profile.string_table[usize::try_from(at).unwrap()].as_str();
    let function = |id: u64| profile.function.iter().find(|function| function.id == id).expect("a function");
    let names = |id: &u64| {
        let location = profile.location.iter().find(|location| location.id == *id).expect("a location");
        location.line.iter().map(|line| text(function(line.function_id).name)).collect::<Vec<_>>()
    };
    let stack = |sample: &microservice_app::admin::profile::Sample| {
        sample.location_id.iter().flat_map(names).collect()
    };
    profile.sample.iter().map(|sample| (stack(sample), sample.value[0])).collect()
}

#[tokio::test]
async fn a_profile_names_the_functions_that_are_busy() {
    let mut up = up().await;
    let load = Load::get(up.gateway, 600.0, "/api/topic/list").start();
    let packed = download(up.admin, "/debug/pprof/profile?seconds=2").await;
    let record = load.finish().await;
    assert!(record.failed().is_empty(), "a profile fails no call: {}", record.failures());

    let mut bytes = Vec::new();
    GzDecoder::new(&packed[..]).read_to_end(&mut bytes).unwrap();
    let profile = Profile::decode(&bytes[..]).unwrap();
    let text = |at: i64| profile.string_table[usize::try_from(at).unwrap()].as_str();
    let types: Vec<_> = profile.sample_type.iter().map(|t| (text(t.r#type), text(t.unit))).collect();
    assert_eq!(types, [("samples", "count"), ("cpu", "nanoseconds")]);
    assert!((1_900_000_000..4_000_000_000).contains(&profile.duration_nanos), "{}", profile.duration_nanos);
    assert!(profile.sample.iter().all(|s| s.value[1] == s.value[0] * profile.period && s.value[0] > 0));

    let stacks = stacks(&profile);
    let samples: i64 = stacks.iter().map(|(_, count)| count).sum();
    assert!((5..=250).contains(&samples), "{samples} samples");
    // stacks are whole: from what is busy to where the thread began
    let rooted: i64 = stacks
        .iter()
        .filter(|(names, _)| {
            names.iter().any(|n| *n == "main" || n.contains("thread_start") || n.contains("start_thread"))
        })
        .map(|(_, count)| count)
        .sum();
    assert!(rooted * 2 > samples, "{rooted} of {samples} stacks have their root: {stacks:#?}");
    let ours =
        stacks.iter().filter(|(names, _)| names.iter().any(|name| name.contains("microservice_app::")));
    let ours: i64 = ours.map(|(_, count)| count).sum();
    assert!(ours * 2 > samples, "{ours} of {samples} samples are under ours: {stacks:#?}");
    let served =
        |(names, _): &(Vec<&str>, i64)| names.iter().any(|name| name.contains("microservice_app::server::"));
    assert!(stacks.iter().any(served), "{stacks:#?}");

    // as users look at it
    if Command::new("go").arg("version").output().is_ok_and(|out| out.status.success()) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("profile.pb.gz");
        std::fs::write(&file, &packed).unwrap();
        let out = Command::new("go")
            .args(["tool", "pprof", "-top", "-cum", "-nodecount=500"])
            .arg(&file)
            .output()
            .unwrap();
        let shown = String::from_utf8(out.stdout).unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        assert!(shown.contains("Type: cpu") && shown.contains("microservice_app::"), "{shown}");
    } else {
        skip("`go tool pprof` reads a profile", "go is not installed");
    }
    // it goes on as before, and a second profile can be had
    download(up.admin, "/debug/pprof/profile?seconds=1").await;
    up.process.stop(SOON);
}

#[tokio::test]
async fn one_profile_at_a_time_and_none_for_a_caller_who_has_gone() {
    let mut up = up().await;
    let mut caller = TcpStream::connect(up.admin).await.unwrap();
    caller
        .write_all(b"GET /debug/pprof/profile?seconds=60 HTTP/1.1\r\nhost: localhost\r\n\r\n")
        .await
        .unwrap();
    let status = |status: &'static str| {
        move || async move {
            let answer = raw(
                up.admin,
                b"GET /debug/pprof/profile?seconds=1 HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n",
            );
            answer.await.split(' ').nth(1).is_some_and(|code| code == status).then_some(())
        }
    };
    wait_for("the first profile has begun", status("409")).await;
    drop(caller);
    let begun = Instant::now();
    wait_for("its turn is over", status("200")).await;
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    // nor does a profile hold up the end
    let mut caller = TcpStream::connect(up.admin).await.unwrap();
    caller
        .write_all(b"GET /debug/pprof/profile?seconds=60 HTTP/1.1\r\nhost: localhost\r\n\r\n")
        .await
        .unwrap();
    wait_for("another has begun", status("409")).await;
    up.process.stop(Duration::from_secs(10));
}

#[tokio::test]
async fn what_a_profile_is_not_is_said() {
    let up = up().await;
    for (query, named) in [
        ("seconds=0", "seconds: must be an integer from 1 to 60"),
        ("seconds=61", "seconds: "),
        ("seconds=x", "seconds: "),
        ("second=1", "\"second\" is not known here"),
    ] {
        let refused = get(up.admin, &format!("/debug/pprof/profile?{query}")).await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{query}");
        assert!(refused.body.starts_with(named), "{:?}", refused.body);
    }
    let heap = get(up.admin, "/debug/pprof/heap").await;
    assert_eq!(heap.status, StatusCode::NOT_IMPLEMENTED);
    assert!(heap.body.contains("heaptrack --pid"), "{}", heap.body);
}
