//! What systemd sees of a process: notifications, the watchdog, sockets that it hands over.

use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process::Command;

use command_fds::{CommandFdExt as _, FdMapping};
use rustix::process::Signal;

use crate::kit::SOON;
use crate::kit::etcd::Etcd;
use crate::kit::http::get;
use crate::kit::process::{PROGRAM, Process};

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
    let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(name.as_bytes()).unwrap()).unwrap();
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
