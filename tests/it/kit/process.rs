//! Our program as a process of its own.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write as _};
use std::net::SocketAddr;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::SOON;

/// The program under test.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_microservice-app");

/// A running program. Killed when dropped.
pub struct Process {
    child: Child,
    logs: Receiver<Value>,
    /// Log lines seen so far.
    pub seen: Vec<Value>,
}

impl Process {
    /// Starts the program with JSON logs and a clean environment.
    pub fn start(args: &[&str]) -> Self {
        let mut command = Command::new(PROGRAM);
        command.args(args);
        Self::spawn(command)
    }

    /// Starts a command that runs the program.
    pub fn spawn(command: Command) -> Self {
        Self::spawn_with(command, &[])
    }

    /// Starts a command that runs the program, with these variables.
    pub fn spawn_with(mut command: Command, env: &[(&str, &str)]) -> Self {
        for (name, _) in std::env::vars() {
            if name.starts_with("MSA__") {
                command.env_remove(name);
            }
        }
        let mut child = command
            .envs(env.iter().copied())
            .args(["--log-format", "json"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let stderr = child.stderr.take().expect("stderr is piped");
        let (send, logs) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                // whatever is not a log line (a last word, a panic) is kept as a string
                let value = serde_json::from_str(&line).unwrap_or(Value::String(line));
                if send.send(value).is_err() {
                    return;
                }
            }
        });
        Self { child, logs, seen: Vec::new() }
    }

    /// Takes in the log lines that have come, without waiting.
    pub fn poll_logs(&mut self) {
        self.seen.extend(self.logs.try_iter());
    }

    /// Waits for a log line and returns it.
    pub fn wait_for_log(&mut self, what: &str, matches: impl Fn(&Value) -> bool) -> Value {
        if let Some(line) = self.seen.iter().find(|line| matches(line)) {
            return line.clone();
        }
        let begun = Instant::now();
        loop {
            match self.logs.recv_timeout(SOON.saturating_sub(begun.elapsed())) {
                Ok(line) => {
                    self.seen.push(line.clone());
                    if matches(&line) {
                        return line;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    panic!("no log line in {SOON:?}: {what}; saw {:#?}", self.seen)
                }
                Err(RecvTimeoutError::Disconnected) => {
                    panic!("it ended before: {what}; saw {:#?}", self.seen)
                }
            }
        }
    }

    /// Counts the log lines so far.
    pub fn count_logs(&mut self, matches: impl Fn(&Value) -> bool) -> usize {
        self.seen.extend(self.logs.try_iter());
        self.seen.iter().filter(|line| matches(line)).count()
    }

    /// Waits until a role serves; returns its address and that of the admin listener.
    pub fn wait_for_role(&mut self, role: &str) -> (SocketAddr, SocketAddr) {
        let line = self.wait_for_log(role, |line| line["message"] == "serving" && line["service"] == role);
        let addr = |field: &str| line[field].as_str().and_then(|a| a.parse().ok()).expect("an address");
        (addr("addr"), addr("admin"))
    }

    /// Waits until every role of `up` serves; returns their addresses.
    pub fn wait_for_roles(&mut self) -> BTreeMap<&'static str, SocketAddr> {
        let roles = ["feed", "profile", "topic", "apigateway"];
        roles.into_iter().map(|role| (role, self.wait_for_role(role).0)).collect()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        self::signal(&self.child, signal);
    }

    /// Returns its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for its end, at most `limit`.
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("it is our child") {
                while let Ok(line) = self.logs.recv_timeout(Duration::from_secs(1)) {
                    self.seen.push(line);
                }
                return status;
            }
            assert!(begun.elapsed() < limit, "still running after {limit:?}; saw {:#?}", self.seen);
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Asks it to stop and expects exit status 0 within `limit`.
    pub fn stop(&mut self, limit: Duration) {
        self.signal(Signal::TERM);
        let status = self.wait(limit);
        assert!(status.success(), "{status} after SIGTERM; saw {:#?}", self.seen);
    }

    /// Ends it as a crash does.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.wait(SOON);
    }

    /// Returns its resident memory, bytes.
    pub fn resident(&self) -> u64 {
        resident(self.child.id())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            self.seen.extend(self.logs.try_iter());
            eprintln!("log of the program: {:#?}", self.seen);
        }
    }
}

/// Returns the resident memory of a process, bytes.
pub fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kib * 1024
}

/// Sends a signal to a child: `STOP` freezes it, `CONT` lets it go on.
pub fn signal(child: &Child, signal: Signal) {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).expect("a pid");
    kill_process(pid, signal).expect("the process is there");
}

/// Runs the program to its end; returns status, standard output and standard error.
pub fn run(args: &[&str]) -> (ExitStatus, String, String) {
    let mut child = Command::new(PROGRAM)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let (mut out, mut err) = (String::new(), String::new());
    let read = |pipe: &mut dyn Read, text: &mut String| pipe.read_to_string(text).expect("UTF-8");
    read(child.stdout.as_mut().expect("piped"), &mut out);
    read(child.stderr.as_mut().expect("piped"), &mut err);
    (child.wait().expect("it ends"), out, err)
}

/// Runs curl with `-sS` and returns what it prints.
pub fn curl(args: &[&str]) -> String {
    let output = Command::new("curl")
        .args(["-sS", "--max-time", "20"])
        .args(args)
        .output()
        .expect("curl is installed");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "curl {args:?}: {errors}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// Runs a command with a text as its input.
pub fn with_input(command: &mut Command, input: &str) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let mut stdin = child.stdin.take().expect("piped");
    let text = input.to_owned();
    let writer = std::thread::spawn(move || stdin.write_all(text.as_bytes()));
    let output = child.wait_with_output().expect("it ends");
    let _ = writer.join().expect("the writer ends");
    output
}
