//! What somebody meets in the first hour: each error says what happened and what to do next.

use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;

use rusqlite::Connection;

use crate::kit::process::PROGRAM;
use crate::kit::{SOON, free_addr, skip};

/// The user that cannot write: files of root stop nobody who is root.
const NOBODY: &str = "65534";

/// One error.
struct Case {
    what: &'static str,
    args: Vec<String>,
    /// The exit status; none for a process that goes on, and says in its log what it waits for.
    status: Option<i32>,
    /// What happened, and what to do next.
    says: Vec<String>,
    /// True if another user than root has to run it.
    as_nobody: bool,
}

fn case(what: &'static str, args: &[&str], status: Option<i32>, says: &[&str]) -> Case {
    let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
    Case { what, args: owned(args), status, says: owned(says), as_nobody: false }
}

/// Returns arguments with more arguments.
fn with<'a>(base: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
    [base, more].concat()
}

/// Runs the program until it ends, or has said everything that is expected of one that goes on. Returns its exit status and
/// what it has said.
fn run(case: &Case) -> (Option<i32>, String) {
    let mut command = Command::new(PROGRAM);
    if case.as_nobody {
        command = Command::new("setpriv");
        command.args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", PROGRAM]);
    }
    let mut child = command
        .args(&case.args)
        .env_remove("RUST_BACKTRACE")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let stderr = child.stderr.take().expect("piped");
    let (send, lines) = channel();
    std::thread::spawn(move || {
        BufReader::new(stderr).lines().map_while(Result::ok).all(|line| send.send(line).is_ok());
    });
    let mut said = String::new();
    while let Ok(line) = lines.recv_timeout(SOON) {
        said.extend([line.as_str(), "\n"]);
        if case.status.is_none() && case.says.iter().all(|part| said.contains(part)) {
            let _ = child.kill();
            let _ = child.wait();
            return (None, said);
        }
    }
    // it has closed its output, or says nothing any more
    let _ = child.kill();
    (child.wait().expect("our child").code(), said)
}

#[test]
fn each_error_of_the_first_hour_says_what_to_do_next() {
    let dir = tempfile::tempdir().unwrap();
    // for another user as well
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let file = |name: &str, content: &str| {
        std::fs::create_dir_all(dir.path().join(name).parent().unwrap()).unwrap();
        std::fs::write(dir.path().join(name), content).unwrap();
        path(name)
    };
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let (nobody, data) = (free_addr().to_string(), path("data"));
    let up = ["up", "--free-ports", "--data-dir", &data];
    let feed = ["feed", "--addr", "127.0.0.1:0", "--debug-addr", "127.0.0.1:0", "--etcd-addr", &nobody];

    file("garbage/feed.db", "this is not a database, whatever its name says");
    std::fs::create_dir_all(dir.path().join("newer")).unwrap();
    let newer = Connection::open(path("newer/feed.db")).unwrap();
    newer
        .execute_batch("PRAGMA application_id = 1836279297; PRAGMA user_version = 9; CREATE TABLE x (a)")
        .unwrap();
    drop(newer);
    let in_use = "Address already in use (os error 98); `ss -ltnp` shows the program that has it: end it, or choose another port";
    let cannot_listen = format!("cannot listen on {taken}: {in_use}");
    let no_etcd = "start etcd, or name the one that runs with --etcd-addr (registry.endpoints); `up` without it needs no etcd";
    let up_on = |name: &str, says: &[&str], what| {
        case(what, &["up", "--free-ports", "--data-dir", &path(name)], Some(1), says)
    };
    let mut cases = vec![
        case(
            "the HTTP port is taken",
            &with(&up, &["--http-addr", &taken]),
            Some(1),
            &[&cannot_listen, "(it is set by `http.addr`; `up --free-ports` takes free ones"],
        ),
        case(
            "the admin port is taken",
            &with(&up, &["--debug-addr", &taken]),
            Some(1),
            &[&cannot_listen, "(it is set by `admin.addr`;"],
        ),
        case(
            "a service's port is taken",
            &["feed", "--addr", &taken, "--debug-addr", "127.0.0.1:0", "--etcd-addr", &nobody],
            Some(1),
            &[&cannot_listen, "(it is set by `grpc.addr` or `up.feed_addr`;"],
        ),
        case(
            "an address of another host",
            &with(&up, &["--http-addr", "192.0.2.1:80"]),
            Some(1),
            &[
                "cannot listen on 192.0.2.1:80",
                "`ip address` shows the addresses of this host: choose one of them",
            ],
        ),
        case(
            "a service without etcd",
            &feed,
            None,
            &["not registered, trying until it is", no_etcd, &nobody],
        ),
        case(
            "a gateway without etcd",
            &[
                "apigateway",
                "--http-addr",
                "127.0.0.1:0",
                "--debug-addr",
                "127.0.0.1:0",
                "--etcd-addr",
                &nobody,
            ],
            None,
            &["the registry cannot be reached yet", no_etcd],
        ),
        case(
            "up, told of an etcd that is not there",
            &with(&up, &["--etcd-addr", &nobody]),
            None,
            &["the registry cannot be reached yet", no_etcd],
        ),
        case(
            "a misspelt flag",
            &["up", "--free-port"],
            Some(2),
            &[
                "unexpected argument '--free-port' found",
                "a similar argument exists: '--free-ports'",
                "try '--help'",
            ],
        ),
        case("a misspelt command", &["upp"], Some(2), &["unrecognized subcommand 'upp'", "try '--help'"]),
        case(
            "a flag with a wrong value",
            &["up", "--replicas", "feeds=2"],
            Some(2),
            &["`feeds=2`: want feed=N, profile=N or topic=N"],
        ),
        case(
            "an address without a port",
            &with(&up, &["--http-addr", "localhost"]),
            Some(2),
            &["`http.addr` in flag --http-addr", "want IP:port, localhost:port or :port"],
        ),
        case(
            "a store that is none",
            &with(&feed, &["--store", "feed.db"]),
            Some(2),
            &["`store.url` in flag --store", "want memory:, sqlite:PATH or postgres://USER@HOST:PORT"],
        ),
        case(
            "a data directory that is a file",
            &["up", "--free-ports", "--data-dir", &file("file", "")],
            Some(1),
            &["cannot make the data directory", "choose another one with --data-dir"],
        ),
        up_on(
            "garbage",
            &["feed.db: file is not a database: move it away, a new one is made, or put back a backup"],
            "a file that is no database",
        ),
        up_on(
            "newer",
            &[
                "feed.db: is of schema version 9, and this program knows versions up to 1: run the newer program, or put back a backup from before its start",
            ],
            "a file of a newer version",
        ),
        case(
            "a file of another service",
            &[
                "topic",
                "--addr",
                "127.0.0.1:0",
                "--debug-addr",
                "127.0.0.1:0",
                "--etcd-addr",
                &nobody,
                "--store",
                &format!("sqlite:{}", path("newer/feed.db")),
            ],
            Some(1),
            &["is not this service's file: name another one"],
        ),
        case(
            "a directory that is missing",
            &with(&feed, &["--store", &format!("sqlite:{}", path("none/feed.db"))]),
            Some(1),
            &["none/feed.db: its directory does not exist: make it, or name another file"],
        ),
        case(
            "a settings file that is missing",
            &["up", "--config", &path("none.toml")],
            Some(2),
            &["none.toml: No such file or directory", "--config names a file that can be read"],
        ),
        case(
            "a settings file that is not TOML",
            &["up", "--config", &file("bad.toml", "[http\naddr = \":1\"\n")],
            Some(2),
            &["bad.toml: ", "[http", "`microservice-app settings` shows what a file may have"],
        ),
        case(
            "a misspelt key",
            &["up", "--config", &file("key.toml", "[http]\nadr = \":1\"\n")],
            Some(2),
            &["unknown key `http.adr` in ", "did you mean `http.addr`?"],
        ),
        case(
            "an unknown key",
            &["up", "--config", &file("keys.toml", "[qqq]\nzzz = 1\n")],
            Some(2),
            &["unknown key `qqq.zzz` in ", "`microservice-app settings` lists all keys"],
        ),
        case(
            "a value out of its range",
            &["up", "--config", &file("range.toml", "[client]\ndeadline_ms = 0\n")],
            Some(2),
            &["`client.deadline_ms` in ", "0 is out of range, want 1 to 600000"],
        ),
        case(
            "nobody to ask for the status",
            &["status", &nobody],
            Some(2),
            &[
                "Connection refused",
                "is it running, and is this its admin address (admin.addr, --debug-addr)?",
            ],
        ),
    ];
    let root = rustix::process::getuid().is_root();
    let may_change_user = root && Command::new("setpriv").arg("--version").output().is_ok();
    if may_change_user || !root {
        std::fs::create_dir_all(dir.path().join("locked")).unwrap();
        let mut denied = vec![
            up_on(
                "locked/data",
                &["Permission denied", "choose another one with --data-dir"],
                "a data directory that may not be made",
            ),
            up_on(
                "locked",
                &["feed.db: ", "give this user the right to write to it and to its directory"],
                "a data directory that may not be written to",
            ),
        ];
        std::fs::set_permissions(dir.path().join("locked"), std::fs::Permissions::from_mode(0o555)).unwrap();
        denied.iter_mut().for_each(|case| case.as_nobody = root);
        cases.extend(denied);
    } else {
        skip(
            "errors of a user who may not write",
            "it wants setpriv (util-linux), or another user than root",
        );
    }
    for case in &cases {
        let (status, said) = run(case);
        assert_eq!(status, case.status, "{}: {said}", case.what);
        for part in &case.says {
            assert!(said.contains(part), "{}: {part:?} is not in {said}", case.what);
        }
        assert!(!said.contains("panicked"), "{}: {said}", case.what);
    }
    assert!(cases.len() >= 23);
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
