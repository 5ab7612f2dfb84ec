//! What systemd sees of a process: notifications, the watchdog, sockets that it hands over.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixDatagram};
use std::process::Command;
use std::time::{Duration, Instant};

use command_fds::{CommandFdExt as _, FdMapping};
use rustix::process::Signal;
use socket2::{Domain, Socket, Type};

use crate::kit::etcd::Etcd;
use crate::kit::http::get;
use crate::kit::process::{PROGRAM, Process};
use crate::kit::{SOON, wait_for};

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

/// Starts a gateway on sockets as systemd hands them over. Returns it and its admin address.
pub fn start_on(sockets: &[TcpListener], etcd: &Etcd, env: &[(&str, &str)]) -> (Process, SocketAddr) {
    // LISTEN_PID must name the process itself: the shell sets it and becomes the program
    let mut command = Command::new("sh");
    command.args(["-c", "LISTEN_PID=$$ exec \"$@\"", "sh", PROGRAM, "apigateway"]);
    command.args(["--http-addr", "127.0.0.1:1", "--debug-addr", "127.0.0.1:0"]);
    command.args(["--etcd-addr", &etcd.addr.to_string()]).env("LISTEN_FDS", sockets.len().to_string());
    let mappings = sockets.iter().zip(3..).map(|(socket, child_fd)| FdMapping {
        parent_fd: OwnedFd::from(socket.try_clone().unwrap()),
        child_fd,
    });
    command.fd_mappings(mappings.collect()).unwrap();
    let mut gateway = Process::spawn_with(command, env);
    let (_, admin) = gateway.wait_for_role("apigateway");
    (gateway, admin)
}

/// Returns `up` with this socket of a service manager.
fn notifying(dir: &tempfile::TempDir, socket: &str) -> Command {
    let mut command = Command::new(PROGRAM);
    let data = dir.path().display().to_string();
    command.args(["up", "--free-ports", "--data-dir", &data]).env("NOTIFY_SOCKET", socket);
    command
}

fn receive(socket: &UnixDatagram) -> String {
    let mut buffer = [0; 256];
    socket.set_read_timeout(Some(SOON)).unwrap();
    let length = socket.recv(&mut buffer).expect("a notification in time");
    String::from_utf8_lossy(&buffer[..length]).trim().to_owned()
}

#[test]
fn a_manager_with_an_abstract_socket_is_told() {
    let (dir, name) = (tempfile::tempdir().unwrap(), format!("microservice-app/{}", std::process::id()));
    let socket = UnixDatagram::bind_addr(&UnixAddr::from_abstract_name(name.as_bytes()).unwrap()).unwrap();
    let mut process = Process::spawn(notifying(&dir, &format!("@{name}")));
    assert_eq!(receive(&socket), "READY=1");
    process.signal(Signal::TERM);
    assert_eq!(receive(&socket), "STOPPING=1");
    assert!(process.wait(SOON).success());
    assert_eq!(process.count_logs(|line| line["level"] == "WARN" || line["level"] == "ERROR"), 0);
}

/// A socket that is not there, a name that is none, and a watchdog that wants nothing: a process runs without them.
#[test]
fn a_manager_that_cannot_be_told_stops_nothing() {
    for (socket, warned) in [("", false), ("/nowhere/notify", true), ("@", true), ("relative", true)] {
        let dir = tempfile::tempdir().unwrap();
        let mut command = notifying(&dir, socket);
        command.env("WATCHDOG_USEC", "0");
        let mut process = Process::spawn(command);
        process.wait_for_roles();
        process.stop(SOON);
        let warnings =
            process.count_logs(|line| line["message"] == "the service manager could not be notified");
        // that it is ready, and that it stops
        assert_eq!(warnings, if warned { 2 } else { 0 }, "{socket:?}");
        assert_eq!(process.count_logs(|line| line["level"] == "ERROR"), 0, "{socket:?}");
    }
}

/// systemd lets the waits between restarts grow, and shrinks them only if it is told to.
#[test]
fn a_process_that_has_run_for_a_while_wants_short_waits_again() {
    let (dir, name) = (tempfile::tempdir().unwrap(), format!("microservice-app/r{}", std::process::id()));
    let socket = UnixDatagram::bind_addr(&UnixAddr::from_abstract_name(name.as_bytes()).unwrap()).unwrap();
    let mut process = Process::spawn(notifying(&dir, &format!("@{name}")));
    assert_eq!(receive(&socket), "READY=1");
    let ready = Instant::now();
    assert_eq!(receive(&socket), "RESTART_RESET=1");
    // one that ends within the longest wait between restarts must not be restarted without one
    assert!(ready.elapsed() > Duration::from_secs(9), "{:?}", ready.elapsed());
    process.signal(Signal::TERM);
    assert_eq!(receive(&socket), "STOPPING=1");
    assert!(process.wait(SOON).success());
}

#[tokio::test]
async fn a_frozen_manager_stops_nothing_and_learns_of_the_start_when_it_thaws() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    // the kernel queues a few messages, then senders wait
    let filler = UnixDatagram::unbound().unwrap();
    filler.connect(&path).unwrap();
    filler.set_nonblocking(true).unwrap();
    let filled = std::iter::repeat_with(|| filler.send(b"filled")).take_while(Result::is_ok).count();
    let mut command = notifying(&dir, path.to_str().unwrap());
    command.env("WATCHDOG_USEC", "300000");
    let mut process = Process::spawn(command);
    let gateway = process.wait_for_roles()["apigateway"];
    for _ in 0..5 {
        let answer = tokio::time::timeout(SOON / 4, get(gateway, "/api/topic/list")).await;
        assert_eq!(answer.expect("an answer in time").status, 200);
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    for _ in 0..filled {
        assert_eq!(receive(&socket), "filled");
    }
    let told = std::iter::repeat_with(|| receive(&socket)).find(|message| message != "WATCHDOG=1");
    assert_eq!(told.as_deref(), Some("READY=1"));
    process.stop(SOON);
}

#[tokio::test]
async fn a_gateway_serves_the_sockets_it_is_handed() {
    let etcd = Etcd::start().await;
    let sockets = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let addrs = sockets.each_ref().map(|socket| socket.local_addr().unwrap());
    let start = || start_on(&sockets, &etcd, &[]).0;
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

/// Binds a port with `ReusePort=true`, `BindIPv6Only=ipv6-only`, as several lines `ListenStream=` of one unit do.
pub fn bind_shared(addr: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None)?;
    if addr.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_port(true)?;
    socket.bind(&addr.into())?;
    socket.listen(1024)?;
    Ok(socket.into())
}

#[tokio::test]
async fn sockets_that_advertise_one_address_share_one_registration() {
    let etcd = Etcd::start().await;
    let mut sockets = vec![bind_shared("0.0.0.0:0".parse().unwrap()).unwrap()];
    let port = sockets[0].local_addr().unwrap().port();
    sockets.push(bind_shared(SocketAddr::from(([0, 0, 0, 0], port))).unwrap());
    // a host without IPv6 has none
    sockets.extend(bind_shared(SocketAddr::from(([0_u16; 8], port))));
    let (mut gateway, admin) = start_on(&sockets, &etcd, &[]);
    let entry = || async {
        let options = etcd_client::GetOptions::new().with_prefix();
        let found = etcd.client().await.get("/services/", Some(options)).await.unwrap();
        found.kvs().iter().map(|kv| (kv.key_str().unwrap().to_owned(), kv.mod_revision())).collect::<Vec<_>>()
    };
    let registered = wait_for("it is registered", || async {
        let entry = entry().await;
        (!entry.is_empty()).then_some(entry)
    })
    .await;
    assert_eq!(registered[0].0, format!("/services/apigateway/127.0.0.1:{port}"));
    // nobody overwrites the key
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    assert_eq!(entry().await, registered);
    let status = get(admin, "/status").await.json();
    let states: Vec<_> =
        status["roles"].as_array().unwrap().iter().map(|role| role["registration"].clone()).collect();
    assert_eq!(states.len(), sockets.len());
    assert_eq!(states.iter().filter(|state| *state == "up").count(), 1, "{states:?}");
    for socket in &sockets {
        let ipv6 = socket.local_addr().unwrap().is_ipv6();
        let loopback = if ipv6 { "[::1]" } else { "127.0.0.1" };
        let addr = format!("{loopback}:{port}").parse().unwrap();
        assert_eq!(get(addr, "/nowhere").await.status, 404);
    }
    gateway.stop(SOON);
    assert_eq!(entry().await, []);
}
