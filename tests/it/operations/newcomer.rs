//! What somebody meets in the first hour: each error says what happened and what to do next.

use std::fs::{create_dir, set_permissions, write};
use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;

use rusqlite::Connection;

use crate::kit::process::PROGRAM;
use crate::kit::{SOON, free_addr, skip};

/// A user who is not root: nothing keeps root from writing.
const NOT_ROOT: &str = "65534";

/// What is wrong, the arguments, the exit status (none for a process that goes on, and says in its log what it waits for),
/// and what is said. UP and FEED stand for the usual arguments of a role, TAKEN for an address that is in use, NOBODY for
/// one where nobody listens, DIR for a directory.
type Row = (&'static str, &'static str, Option<i32>, &'static [&'static str]);

const UP: &str = "up --free-ports --data-dir DIR/data";
const FEED: &str = "feed --addr 127.0.0.1:0 --debug-addr 127.0.0.1:0 --etcd-addr NOBODY";

const IN_USE: &str = "cannot listen on TAKEN: Address already in use (os error 98); `ss -ltnp` shows the program that has it: \
                      end it, or choose another port";
const NO_ETCD: &str = "start etcd, or name the one that runs with --etcd-addr (registry.endpoints); `up` without it needs no etcd";
const NEWER: &str = "feed.db: is of schema version 9, and this program knows versions up to 1: run the newer program, or put \
                     back a backup from before its start";
const WRITABLE: &str = "give this user the right to write to it and to its directory";
const OTHER_DIR: &str = "choose another one with --data-dir";

const ROWS: &[Row] = &[
    (
        "the HTTP port is taken",
        "UP --http-addr TAKEN",
        Some(1),
        &[IN_USE, "`http.addr`; `up --free-ports` takes free ones"],
    ),
    ("the admin port is taken", "UP --debug-addr TAKEN", Some(1), &[IN_USE, "(it is set by `admin.addr`;"]),
    (
        "a service's port is taken",
        "feed --addr TAKEN --debug-addr 127.0.0.1:0 --etcd-addr NOBODY",
        Some(1),
        &[IN_USE, "(it is set by `grpc.addr` or `up.feed_addr`;"],
    ),
    (
        "an address of another host",
        "UP --http-addr 192.0.2.1:8080",
        Some(1),
        &[
            "cannot listen on 192.0.2.1:8080",
            "`ip address` shows the addresses of this host: choose one of them",
        ],
    ),
    ("a service without etcd", "FEED", None, &["not registered, trying until it is", NO_ETCD, "NOBODY"]),
    (
        "a gateway without etcd",
        "apigateway --http-addr 127.0.0.1:0 --debug-addr 127.0.0.1:0 --etcd-addr NOBODY",
        None,
        &["the registry cannot be reached yet", NO_ETCD],
    ),
    (
        "up, told of an etcd that is not there",
        "UP --etcd-addr NOBODY",
        None,
        &["the registry cannot be reached yet", NO_ETCD],
    ),
    (
        "a misspelt flag",
        "up --free-port",
        Some(2),
        &[
            "unexpected argument '--free-port' found",
            "a similar argument exists: '--free-ports'",
            "try '--help'",
        ],
    ),
    ("a misspelt command", "upp", Some(2), &["unrecognized subcommand 'upp'", "try '--help'"]),
    (
        "a flag with a wrong value",
        "up --replicas feeds=2",
        Some(2),
        &["`feeds=2`: want feed=N, profile=N or topic=N"],
    ),
    (
        "an address without a port",
        "UP --http-addr localhost",
        Some(2),
        &["`http.addr` in flag --http-addr", "want IP:port, localhost:port or :port"],
    ),
    (
        "a store that is none",
        "FEED --store feed.db",
        Some(2),
        &["`store.url` in flag --store", "want memory:, sqlite:PATH or postgres://USER@HOST:PORT"],
    ),
    (
        "a data directory that is a file",
        "up --free-ports --data-dir DIR/bad.toml",
        Some(1),
        &["cannot make the data directory", OTHER_DIR],
    ),
    (
        "a file that is no database",
        "up --free-ports --data-dir DIR/garbage",
        Some(1),
        &["feed.db: file is not a database: move it away, a new one is made, or put back a backup"],
    ),
    ("a file of a newer version", "up --free-ports --data-dir DIR/newer", Some(1), &[NEWER]),
    (
        "a file of another service",
        "topic --addr 127.0.0.1:0 --debug-addr 127.0.0.1:0 --etcd-addr NOBODY --store sqlite:DIR/newer/feed.db",
        Some(1),
        &["is not this service's file: name another one"],
    ),
    (
        "a directory that is missing",
        "FEED --store sqlite:DIR/none/feed.db",
        Some(1),
        &["none/feed.db: its directory does not exist: make it, or name another file"],
    ),
    (
        "a settings file that is missing",
        "up --config DIR/none.toml",
        Some(2),
        &["none.toml: No such file or directory", "--config names a file that can be read"],
    ),
    (
        "a settings file that is not TOML",
        "up --config DIR/bad.toml",
        Some(2),
        &["bad.toml: ", "1 | [http", "`microservice-app settings` shows what a file may have"],
    ),
    (
        "a misspelt key",
        "up --config DIR/key.toml",
        Some(2),
        &["unknown key `http.adr` in ", "did you mean `http.addr`?"],
    ),
    (
        "an unknown key",
        "up --config DIR/keys.toml",
        Some(2),
        &["unknown key `qqq.zzz` in ", "`microservice-app settings` lists all keys"],
    ),
    (
        "a value out of its range",
        "up --config DIR/range.toml",
        Some(2),
        &["`client.deadline_ms` in ", "0 is out of range, want 1 to 600000"],
    ),
    (
        "nobody to ask for the status",
        "status NOBODY",
        Some(2),
        &["Connection refused", "is it running, and is this its admin address (admin.addr, --debug-addr)?"],
    ),
];

/// The same for a user who is not root.
const ROWS_NOT_ROOT: &[Row] = &[
    (
        "a data directory that may not be made",
        "up --free-ports --data-dir DIR/locked/data",
        Some(1),
        &["Permission denied", OTHER_DIR],
    ),
    (
        "a data directory that may not be written to",
        "up --free-ports --data-dir DIR/locked",
        Some(1),
        &["feed.db: ", WRITABLE],
    ),
];

/// Makes the files of the rows.
fn prepare(dir: &Path) {
    // other users may look
    set_permissions(dir, PermissionsExt::from_mode(0o755)).unwrap();
    for directory in ["garbage", "newer", "locked"] {
        create_dir(dir.join(directory)).unwrap();
    }
    set_permissions(dir.join("locked"), PermissionsExt::from_mode(0o555)).unwrap();
    for (name, content) in [
        ("garbage/feed.db", "this is not a database, whatever its name says"),
        ("bad.toml", "[http\naddr = \":1\"\n"),
        ("key.toml", "[http]\nadr = \":1\"\n"),
        ("keys.toml", "[qqq]\nzzz = 1\n"),
        ("range.toml", "[client]\ndeadline_ms = 0\n"),
    ] {
        write(dir.join(name), content).unwrap();
    }
    let newer = Connection::open(dir.join("newer/feed.db")).unwrap();
    let script = "PRAGMA application_id = 1836279297; PRAGMA user_version = 9; CREATE TABLE x (a)";
    newer.execute_batch(script).unwrap();
}

/// Runs the program until it ends, or has said everything that is expected of one that goes on. Returns its exit status and
/// what it has said.
fn run(mut command: Command, goes_on: bool, says: &[String]) -> (Option<i32>, String) {
    let command = command.env_remove("RUST_BACKTRACE").stdin(Stdio::null()).stdout(Stdio::null());
    let mut child = command.stderr(Stdio::piped()).spawn().expect("the program starts");
    let stderr = child.stderr.take().expect("piped");
    let (send, lines) = channel();
    std::thread::spawn(move || {
        BufReader::new(stderr).lines().map_while(Result::ok).all(|line| send.send(line).is_ok());
    });
    let mut said = String::new();
    while let Ok(line) = lines.recv_timeout(SOON) {
        said.extend([line.as_str(), "\n"]);
        if goes_on && says.iter().all(|part| said.contains(part)) {
            let _ = child.kill();
            let _ = child.wait();
            return (None, said);
        }
    }
    // it has ended, or says nothing any more
    std::thread::sleep(std::time::Duration::from_millis(100));
    let _ = child.kill();
    (child.wait().expect("our child").code(), said)
}

#[test]
fn each_error_of_the_first_hour_says_what_to_do_next() {
    let dir = tempfile::tempdir().unwrap();
    prepare(dir.path());
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = (taken.local_addr().unwrap().to_string(), taken);
    let (nobody, place) = (free_addr().to_string(), dir.path().display().to_string());
    let fill = |text: &str| text.replace("TAKEN", &taken.0).replace("NOBODY", &nobody).replace("DIR", &place);
    let check = |(what, arguments, status, says): &Row, mut command: Command| {
        let words = arguments.split(' ').flat_map(|word| match word {
            "UP" => UP.split(' ').collect(),
            "FEED" => FEED.split(' ').collect(),
            word => vec![word],
        });
        command.args(words.map(&fill));
        let says: Vec<_> = says.iter().map(|part| fill(part)).collect();
        let (ended, said) = run(command, status.is_none(), &says);
        assert_eq!(ended, *status, "{what}: {said}");
        for part in &says {
            assert!(said.contains(part), "{what}: {part:?} is not in {said}");
        }
        assert!(!said.contains("panicked"), "{what}: {said}");
    };
    for row in ROWS {
        check(row, Command::new(PROGRAM));
    }
    let root = rustix::process::getuid().is_root();
    if root && Command::new("setpriv").arg("--version").output().is_err() {
        return skip("errors of a user who may not write", "setpriv (util-linux) is not installed");
    }
    for row in ROWS_NOT_ROOT {
        let mut command = Command::new(if root { "setpriv" } else { PROGRAM });
        if root {
            command.args(["--reuid", NOT_ROOT, "--regid", NOT_ROOT, "--clear-groups", PROGRAM]);
        }
        check(row, command);
    }
}

/// Without protoc and without a package manager `make build` and `make up` say what to install.
#[test]
fn without_protoc_the_build_says_what_to_install() {
    let dir = tempfile::tempdir().unwrap();
    let tools =
        ["bash", "env", "dirname", "awk", "sed", "cat", "cc", "sort", "head", "id", "readlink", "sudo"];
    let path = std::env::var_os("PATH").unwrap();
    for tool in tools {
        let found = std::env::split_paths(&path).map(|at| at.join(tool)).find(|at| at.is_file());
        // sudo is not everywhere, and not needed
        if let Some(found) = found {
            symlink(found, dir.path().join(tool)).unwrap();
        }
    }
    let deps = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/deps");
    let output =
        Command::new(deps).arg("build").env("PATH", dir.path()).env_remove("PROTOC").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let next = "deps: missing. On Debian, as root: apt-get install --no-install-recommends";
    assert!(said.contains(next) && said.contains("protobuf-compiler"), "{said}");
}
