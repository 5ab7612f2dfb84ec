//! The command line: flags, exit statuses, and what the program prints.

use std::io::Read as _;
use std::process::{Command, Stdio};

use crate::kit::free_addr;
use crate::kit::process::{PROGRAM, Process, run};

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
    assert!(out.contains("client.deadline_ms = 500\n") && out.contains("http.addr = [::]:8080\n"), "{out}");
}

/// A gateway that has not heard of etcd yet lives and is not ready; `up` is ready.
#[test]
fn check_health_says_what_the_process_says() {
    let data = tempfile::tempdir().unwrap();
    let dir = data.path().display().to_string();
    let mut up = Process::start(&["up", "--free-ports", "--data-dir", &dir]);
    let ready = up.wait_for_role("apigateway").1.to_string();
    let etcd = free_addr().to_string();
    let mut gateway = Process::start(&[
        "apigateway",
        "--http-addr",
        "127.0.0.1:0",
        "--debug-addr",
        "127.0.0.1:0",
        "--etcd-addr",
        &etcd,
    ]);
    let waiting = gateway.wait_for_role("apigateway").1.to_string();
    let nobody = free_addr().to_string();
    for (args, status, out, err) in [
        (&["--addr", ready.as_str()][..], 0, "ready\n", ""),
        (&["--addr", &waiting], 1, "not ready\nfail: registry: never heard from yet\n", ""),
        (&["--addr", &waiting, "--live"], 0, "ok", ""),
        (&["--addr", &nobody], 1, "", "Connection refused"),
        (&["--addr", "127.0.0.1:0"], 1, "", "admin.addr has port 0"),
        (&["--addr", "nowhere"], 2, "", "is not an address to listen on"),
        (&["--role", "feed", "--config", "/nonexistent.toml"], 2, "", "nonexistent.toml"),
    ] {
        let (ended, said, errors) = run(&[&["check-health"], args].concat());
        assert_eq!(ended.code(), Some(status), "{args:?}: {said}{errors}");
        assert!(said.starts_with(out) && (!said.is_empty() || out.is_empty()), "{args:?}: {said}");
        assert!(errors.contains(err) && (errors.is_empty() == err.is_empty()), "{args:?}: {errors}");
    }
    // by the settings of a role, as in an image: an address of every interface is asked over loopback
    let port = ready.rsplit_once(':').unwrap().1;
    let output = Command::new(PROGRAM)
        .args(["check-health", "--role", "feed"])
        .env("MSA__ADMIN__ADDR", format!(":{port}"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// A process that takes connections and says nothing is not healthy, and is not waited for.
#[test]
fn check_health_gives_up_after_two_seconds() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = silent.local_addr().unwrap().to_string();
    let begun = std::time::Instant::now();
    let (ended, _, errors) = run(&["check-health", "--addr", &addr]);
    assert_eq!(ended.code(), Some(1));
    assert!(errors.contains("no answer within 2s"), "{errors}");
    assert!(begun.elapsed() < std::time::Duration::from_secs(10), "{:?}", begun.elapsed());
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
    for command in
        ["apigateway", "feed", "profile", "topic", "up", "check-config", "check-health", "copy-store"]
    {
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
