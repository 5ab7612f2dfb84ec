//! How a process starts and stops: signals, drains, systemd, exit statuses.

use std::io::Read as _;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use command_fds::{CommandFdExt as _, FdMapping};
use rustix::process::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::kit::etcd::Etcd;
use crate::kit::http::{Answer, Connection, get, request, send};
use crate::kit::process::{PROGRAM, Process, run};
use crate::kit::{SOON, peer, wait_for};

fn role(role: &'static str, etcd: &Etcd) -> (Process, SocketAddr, SocketAddr) {
    let listen = if role == "apigateway" { "--http-addr" } else { "--addr" };
    let addr = etcd.addr.to_string();
    let args = [role, listen, "127.0.0.1:0", "--debug-addr", "127.0.0.1:0", "--etcd-addr", &addr];
    let mut process = Process::start(&args);
    let (addr, admin) = process.wait_for_role(role);
    (process, addr, admin)
}

/// A gateway with a call in flight that ends only at its deadline.
async fn gateway_with_a_slow_call(
    deadline_ms: u32,
) -> (Etcd, peer::Peer, Process, tokio::task::JoinHandle<std::io::Result<Answer>>) {
    let etcd = Etcd::start().await;
    let silent = peer::stalling().await;
    let mut client = etcd.client().await;
    let bare = silent.addr.to_string();
    client.put(format!("/services/topic/{bare}"), bare, None).await.unwrap();
    let (gateway, addr, admin) = role("apigateway", &etcd);
    wait_for("the silent topic is connected", || async {
        let status = get(admin, "/status").await.json();
        (status["clients"][0]["topic"][0]["state"] == "up").then_some(())
    })
    .await;
    let mut asked = request("GET", "/api/topic/list", "");
    let limit = deadline_ms.to_string().parse().unwrap();
    asked.headers_mut().insert("x-request-timeout-ms", limit);
    let call = tokio::spawn(send(addr, asked));
    wait_for("the call is in flight", || async {
        let status = get(admin, "/status").await.json();
        (status["clients"][0]["topic"][0]["in_flight"] == 1).then_some(())
    })
    .await;
    (etcd, silent, gateway, call)
}

#[tokio::test]
async fn sigterm_lets_calls_in_flight_finish_and_exits_0() {
    let (_etcd, _silent, gateway, call) = gateway_with_a_slow_call(800).await;
    gateway.signal(Signal::TERM);
    let answer = call.await.unwrap().expect("an answer, not a reset");
    assert_eq!(answer.status, 504);
    assert_eq!(answer.header("connection"), "close");
    let mut gateway = gateway;
    let status = gateway.wait(Duration::from_secs(2));
    assert_eq!(status.code(), Some(0));
}

#[tokio::test]
async fn a_second_signal_ends_at_once() {
    let (_etcd, _silent, mut gateway, _call) = gateway_with_a_slow_call(2000).await;
    gateway.signal(Signal::TERM);
    gateway.wait_for_log("it drains", |line| line["message"] == "draining");
    let begun = Instant::now();
    gateway.signal(Signal::INT);
    let status = gateway.wait(SOON);
    assert_eq!(status.code(), Some(130));
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn stopping_one_of_two_instances_fails_no_call() {
    let etcd = Etcd::start().await;
    let (_gateway, addr, admin) = role("apigateway", &etcd);
    let (_stays, _, _) = role("topic", &etcd);
    for round in 0..3 {
        let (mut leaves, leaving, _) = role("topic", &etcd);
        wait_for("both are up", || async {
            let status = get(admin, "/status").await.json();
            let topics = status["clients"][0]["topic"].as_array()?.clone();
            (topics.iter().filter(|t| t["state"] == "up").count() == 2).then_some(())
        })
        .await;
        let (stop, calls) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let callers: Vec<_> = (0..8)
            .map(|_| {
                let (stop, calls) = (stop.clone(), calls.clone());
                tokio::spawn(async move {
                    let mut connection = Connection::open(addr).await.unwrap();
                    while !stop.load(Relaxed) {
                        let answer = connection.get("/api/topic/list").await.unwrap();
                        assert_eq!(answer.status, 200, "{answer:?}");
                        assert_eq!(answer.header("x-degraded"), "", "{answer:?}");
                        calls.fetch_add(1, Relaxed);
                    }
                })
            })
            .collect();
        let at_least = |n: usize| {
            let calls = calls.clone();
            move || {
                let enough = calls.load(Relaxed) >= n;
                async move { enough.then_some(()) }
            }
        };
        wait_for("load", at_least(100)).await;
        tokio::task::spawn_blocking(move || leaves.stop(SOON)).await.unwrap();
        let so_far = calls.load(Relaxed);
        wait_for("more load", at_least(so_far + 100)).await;
        stop.store(true, Relaxed);
        for caller in callers {
            caller.await.unwrap_or_else(|e| panic!("round {round}, {leaving} left: {e}"));
        }
    }
}

#[tokio::test]
async fn up_answers_a_request_that_was_on_its_way_when_it_was_told_to_stop() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().display().to_string();
    let mut up = Process::start(&["up", "--free-ports", "--data-dir", &data]);
    let gateway = up.wait_for_roles()["apigateway"];
    let body = r#"{"id":1,"user_id":7,"content":"x"}"#;
    wait_for("feed is called", || async {
        (get(gateway, "/api/feed/get_feeds?user_id=7").await.status == 404).then_some(())
    })
    .await;
    let mut stream = tokio::net::TcpStream::connect(gateway).await.unwrap();
    let head =
        format!("PUT /api/feed/create_feed HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&body.as_bytes()[..10]).await.unwrap();
    // the head has arrived when a later request on another connection is answered
    get(gateway, "/api/topic/list").await;
    up.signal(Signal::TERM);
    up.wait_for_log("it drains", |line| line["message"] == "draining");
    // longer than an idle connection lingers and a service announces its end
    tokio::time::sleep(Duration::from_millis(300)).await;
    stream.write_all(&body.as_bytes()[10..]).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    assert!(answer.contains("connection: close"), "{answer}");
    assert!(up.wait(SOON).success());
}

#[tokio::test]
async fn a_drain_goes_on_when_etcd_is_away() {
    let mut etcd = Etcd::start().await;
    let (mut topic, _, _) = role("topic", &etcd);
    wait_for("it is registered", || async { etcd.list("/services/topic/").await.pop() }).await;
    etcd.kill();
    let begun = Instant::now();
    topic.stop(SOON);
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
}

#[test]
fn systemd_is_told_when_it_asks() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    let mut command = Command::new(PROGRAM);
    let data = dir.path().display().to_string();
    command.args(["up", "--free-ports", "--data-dir", &data]);
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "300000");
    let mut process = Process::spawn(command);
    let receive = || {
        let mut buffer = [0; 256];
        let length = socket.recv(&mut buffer).expect("a notification in time");
        String::from_utf8_lossy(&buffer[..length]).trim().to_owned()
    };
    assert_eq!(receive(), "READY=1");
    // it answers by then
    assert_eq!(process.wait_for_roles().len(), 4);
    assert_eq!(receive(), "WATCHDOG=1");
    assert_eq!(receive(), "WATCHDOG=1");
    process.signal(Signal::TERM);
    let last = std::iter::repeat_with(receive).find(|message| message != "WATCHDOG=1");
    assert_eq!(last.as_deref(), Some("STOPPING=1"));
    assert!(process.wait(SOON).success());
}

#[tokio::test]
async fn a_gateway_serves_the_sockets_it_is_handed() {
    let etcd = Etcd::start().await;
    let sockets = [(); 2].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    let addrs = sockets.each_ref().map(|socket| socket.local_addr().unwrap());
    let start = || {
        // LISTEN_PID must name the process itself: the shell sets it and becomes the program
        let mut command = Command::new("sh");
        command.args(["-c", "LISTEN_PID=$$ exec \"$@\"", "sh", PROGRAM, "apigateway"]);
        command.args(["--http-addr", "127.0.0.1:1", "--debug-addr", "127.0.0.1:0"]);
        command.args(["--etcd-addr", &etcd.addr.to_string()]).env("LISTEN_FDS", "2");
        let mappings = sockets.iter().zip(3..).map(|(socket, child_fd)| FdMapping {
            parent_fd: OwnedFd::from(socket.try_clone().unwrap()),
            child_fd,
        });
        command.fd_mappings(mappings.collect()).unwrap();
        let mut gateway = Process::spawn(command);
        gateway.wait_for_role("apigateway");
        gateway
    };
    let mut gateway = start();
    for addr in addrs {
        assert_eq!(get(addr, "/nowhere").await.status, 404);
    }
    // while it restarts nobody is refused: a call waits in the socket for the next process
    gateway.stop(SOON);
    let waiting = tokio::spawn(get(addrs[0], "/nowhere"));
    tokio::task::yield_now().await;
    let _gateway = start();
    assert_eq!(waiting.await.unwrap().status, 404);
}

#[test]
fn wrong_flags_and_settings_exit_2_and_say_why() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("app.toml");
    std::fs::write(&file, "[http]\nport = 80\n").unwrap();
    let path = file.display().to_string();
    for args in [&["apigateway", "--config", &path][..], &["check-config", "--config", &path]] {
        let (status, _, err) = run(args);
        assert_eq!(status.code(), Some(2), "{args:?}: {err}");
        assert!(err.contains("`http.port`") && err.contains("app.toml"), "{err}");
    }
    let (status, _, err) = run(&["feed", "--store", "oracle:"]);
    assert_eq!(status.code(), Some(2));
    assert!(err.contains("`store.url` in flag --store"), "{err}");
    let (status, _, _) = run(&["feed", "--no-such-flag"]);
    assert_eq!(status.code(), Some(2));

    std::fs::write(&file, "[http]\naddr = \":8080\"\n[client]\ndeadline_ms = 500\n").unwrap();
    let (status, out, err) = run(&["check-config", "--role", "apigateway", "--show", "--config", &path]);
    assert_eq!((status.code(), err.as_str()), (Some(0), ""));
    assert!(
        out.contains("client.deadline_ms = 500\n") && out.contains("http.addr = 0.0.0.0:8080\n"),
        "{out}"
    );
}

#[test]
fn a_taken_address_is_a_clear_error() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().display().to_string();
    let (status, _, err) = run(&["up", "--free-ports", "--http-addr", &addr, "--data-dir", &data]);
    assert_eq!(status.code(), Some(1));
    assert!(err.contains(&format!("cannot listen on {addr}")), "{err}");
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    for args in [&["completions", "bash"][..], &["man"], &["check-config", "--show"]] {
        let (closed, ours) = std::io::pipe().unwrap();
        drop(closed);
        let child = Command::new(PROGRAM).args(args).stdout(ours).stderr(Stdio::piped()).spawn().unwrap();
        let output = child.wait_with_output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && errors.is_empty(), "{args:?}: {} {errors}", output.status);
    }
}

#[test]
fn help_version_completions_and_the_manual_are_there() {
    let (status, out, _) = run(&["--version"]);
    assert!(status.success() && out.starts_with("microservice-app 0.") && out.contains('('), "{out}");
    for command in ["apigateway", "feed", "profile", "topic", "up", "check-config"] {
        let (_, out, _) = run(&["--help"]);
        assert!(out.contains(command), "{command}");
        assert!(run(&[command, "--help"]).0.success());
    }
    for shell in ["bash", "zsh", "fish"] {
        assert!(run(&["completions", shell]).1.contains("microservice-app"));
    }
    assert!(run(&["man"]).1.starts_with(".ie") || run(&["man"]).1.contains(".TH"));
}

#[test]
fn up_prints_addresses_and_commands_that_work() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().display().to_string();
    let mut child = Command::new(PROGRAM)
        .args(["up", "--free-ports", "--data-dir", &data, "--replicas", "feed=2", "--log-level", "error"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = String::new();
    let mut pipe = child.stdout.take().unwrap();
    while !out.contains("get_feeds") {
        let mut buffer = [0; 4096];
        let length = pipe.read(&mut buffer).unwrap();
        assert!(length > 0, "it ended after {out:?}");
        out.push_str(&String::from_utf8_lossy(&buffer[..length]));
    }
    let commands: Vec<_> = out.lines().map(str::trim).filter(|line| line.starts_with("curl ")).collect();
    assert_eq!(commands.len(), 3, "{out}");
    assert_eq!(out.lines().filter(|line| line.starts_with("feed ")).count(), 2, "{out}");
    let printed: Vec<_> = commands
        .iter()
        .map(|command| Command::new("sh").args(["-c", &format!("{command} -sS")]).output().unwrap().stdout)
        .collect();
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(printed[0], b"{}");
    assert!(String::from_utf8_lossy(&printed[2]).contains("goodbye!"));
}
