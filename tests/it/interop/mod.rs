//! Other people's clients, and servers of others that register beside ours: etcd's resolver for Go, grpc-go, Python's
//! grpcio, grpcurl and more. `tests/interop/build` (called by `make deps`) builds what is run here.

mod go;
mod health;
mod python;
mod reflection;
mod tools;

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::kit::{SOON, skip};

/// Returns the path of a file that `tests/interop/build` makes.
fn built(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/interop").join(name)
}

/// Returns the path of a program that `tests/interop/build` makes; `None`, and says so, if it was not built.
fn program(name: &str, check: &str) -> Option<PathBuf> {
    let path = built(name);
    if !path.exists() {
        skip(check, &format!("{name} was not built: see what tests/interop/build says"));
    }
    path.exists().then_some(path)
}

/// A program that prints a JSON object a line. Killed when dropped, its errors shown if the test fails.
struct Program {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<Value>,
    /// The lines so far.
    seen: Vec<Value>,
}

impl Program {
    fn start(command: &mut Command) -> Self {
        let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = spawned.unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take().expect("piped"));
        let (send, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let value = serde_json::from_str(&line).unwrap_or(Value::String(line));
                if send.send(value).is_err() {
                    return;
                }
            }
        });
        Self { child, stdin, lines, seen: Vec::new() }
    }

    /// Waits for the next line.
    fn next(&mut self) -> Value {
        match self.lines.recv_timeout(SOON) {
            Ok(line) => {
                self.seen.push(line.clone());
                line
            }
            Err(RecvTimeoutError::Timeout) => panic!("silent for {SOON:?}; said {:#?}", self.seen),
            Err(RecvTimeoutError::Disconnected) => panic!("it ended; said {:#?}", self.seen),
        }
    }

    /// Takes in the lines that have come, and returns all of them.
    fn said(&mut self) -> &[Value] {
        self.seen.extend(self.lines.try_iter());
        &self.seen
    }

    /// Closes its standard input, waits for its end, which must be a success, and returns its lines.
    fn finish(mut self) -> Vec<Value> {
        self.stdin.take();
        let begun = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("it is our child") {
                break status;
            }
            assert!(begun.elapsed() < Duration::from_mins(1), "it does not end; said {:#?}", self.said());
            std::thread::sleep(Duration::from_millis(5));
        };
        while let Ok(line) = self.lines.recv_timeout(Duration::from_secs(1)) {
            self.seen.push(line);
        }
        assert!(status.success(), "{status}; said {:#?}", self.seen);
        std::mem::take(&mut self.seen)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let mut errors = String::new();
            let _ = self.child.stderr.take().map(|mut pipe| pipe.read_to_string(&mut errors));
            eprintln!("errors of the program: {errors}");
        }
    }
}

/// Runs a program to its end off the runtime's thread; returns its last line.
async fn last_line(mut command: Command) -> Value {
    let lines = tokio::task::spawn_blocking(move || Program::start(&mut command).finish()).await;
    lines.expect("it ends well").pop().expect("it says something")
}

/// Returns the services that a feed server lists.
fn services_of_feed() -> Value {
    json!([
        "feed.Feed",
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection"
    ])
}
