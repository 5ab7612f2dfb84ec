//! A terminal in which the commands of the pages are typed: a directory, a shell, and other ports and paths than the
//! pages have.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use super::blocks::{self, BLOCKS, INLINE, Use, Walk};
use crate::kit::etcd;
use crate::kit::process::PROGRAM;

/// Longest time for a command.
const LIMIT: &str = "60";

/// A terminal.
pub struct Session {
    walk: Walk,
    dir: tempfile::TempDir,
    /// What the pages say, and what stands for it here.
    swaps: Vec<(String, String)>,
    env: Vec<(&'static str, String)>,
    done: BTreeSet<(&'static str, String)>,
}

impl Session {
    pub fn new(walk: Walk) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for (name, curlrc) in [("plain", ""), ("strict", "fail-with-body\n")] {
            let home = dir.path().join(name);
            std::fs::create_dir(&home).unwrap();
            std::fs::write(home.join(".curlrc"), format!("silent\nshow-error\nmax-time = 20\n{curlrc}"))
                .unwrap();
        }
        std::fs::create_dir(dir.path().join("bin")).unwrap();
        let session = Self { walk, dir, swaps: Vec::new(), env: Vec::new(), done: BTreeSet::new() };
        let etcd = etcd::program();
        if etcd.contains('/') {
            session.program("etcd", &format!("exec {etcd} \"$@\""));
        }
        session.program("microservice-app", &format!("exec {PROGRAM} \"$@\""));
        session
    }

    /// Returns the path of a file in its directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a program that is found before all others.
    pub fn program(&self, name: &str, script: &str) {
        use std::os::unix::fs::PermissionsExt as _;
        let path = self.path("bin").join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Lets something here stand for what the pages say.
    pub fn swap(&mut self, shown: &str, here: &str) {
        self.swaps.push((shown.to_owned(), here.to_owned()));
    }

    /// Sets an environment variable of the commands.
    pub fn set(&mut self, name: &'static str, value: &str) {
        self.env.push((name, value.to_owned()));
    }

    /// Returns a text of a page as it is here.
    fn here(&self, text: &str) -> String {
        self.swaps.iter().fold(text.to_owned(), |text, (shown, here)| text.replace(shown, here))
    }

    /// Returns the lines of a block as they are here, and notes that they are run.
    pub fn lines(&mut self, page: &'static str, begin: &str) -> Vec<String> {
        let what = BLOCKS.iter().find(|(p, b, _)| (*p, *b) == (page, begin)).map(|(_, _, what)| what);
        assert!(matches!(what, Some(Use::Run(walk)) if *walk == self.walk), "{page} {begin:?} is {what:?}");
        self.done.insert((page, begin.to_owned()));
        blocks::block(page, begin).lines.iter().map(|line| self.here(line)).collect()
    }

    /// Returns a shell that runs a script here.
    pub fn shell(&self, script: &str) -> Command {
        let mut command = Command::new("timeout");
        command.args([LIMIT, "bash", "-c", script, "bash"]).current_dir(self.dir.path());
        self.environment(&mut command);
        command
    }

    /// Returns a command that becomes a program, for a test that signals it. `timeout`, which bounds the others, would
    /// pass each signal on twice.
    pub fn exec(&self, program: &str) -> Command {
        let mut command = Command::new("bash");
        command.args(["-c", &format!("exec {program}")]).current_dir(self.dir.path());
        self.environment(&mut command);
        command
    }

    /// Gives a command what every command here has.
    pub fn environment(&self, command: &mut Command) {
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{path}", self.path("bin").display()));
        command.env("CURL_HOME", self.path("strict")).env("HOME", self.dir.path());
        command.env("MANPAGER", "cat").env("LC_ALL", "C.UTF-8");
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null());
    }

    /// Runs a script that must succeed; returns what it prints.
    pub fn sh(&self, script: &str) -> String {
        succeeded(script, &self.shell(&format!("set -euo pipefail\n{script}")).output().unwrap())
    }

    /// Runs a block: each command after `$ ` must print what is shown below it; without `$ `, the whole block is a
    /// script that must succeed. Returns all that was printed.
    pub fn run(&mut self, page: &'static str, begin: &str) -> String {
        let lines = self.lines(page, begin);
        if !lines[0].starts_with("$ ") {
            return self.sh(&lines.join("\n"));
        }
        let mut commands: Vec<(String, Vec<String>)> = Vec::new();
        for line in lines {
            match line.strip_prefix("$ ") {
                Some(command) => commands.push((command.to_owned(), Vec::new())),
                None => commands.last_mut().unwrap().1.push(line),
            }
        }
        let mut all = String::new();
        for (command, shown) in commands {
            let output = self.shell(&command).env("CURL_HOME", self.path("plain")).output().unwrap();
            // a terminal shows both
            let printed = text(&output.stdout) + &text(&output.stderr);
            if !shown.is_empty() {
                assert_eq!(forget(&printed), forget(&shown.join("\n")), "{page}: {command}");
            }
            all.push_str(&printed);
        }
        all
    }

    /// Runs a command of a sentence, which must succeed; returns what it prints.
    pub fn say(&mut self, page: &'static str, command: &str) -> String {
        let script = self.said(page, command);
        self.sh(&script)
    }

    /// Returns a command of a sentence as it is here, and notes that it is run.
    pub fn said(&mut self, page: &'static str, command: &str) -> String {
        let what = INLINE.iter().find(|(p, c, _)| (*p, *c) == (page, command)).map(|(_, _, what)| what);
        assert!(matches!(what, Some(Use::Run(walk)) if *walk == self.walk), "{page} {command:?} is {what:?}");
        self.done.insert((page, command.to_owned()));
        self.here(command)
    }

    /// Runs a script at a terminal, where somebody types lines; returns what it shows.
    pub fn typed(&self, script: &str, lines: &[&str]) -> String {
        let file = self.path("typed.sh");
        std::fs::write(&file, format!("set -euo pipefail\n{script}\n")).unwrap();
        let mut command = self.shell(&format!("script -qec 'bash {}' /dev/null", file.display()));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut input = child.stdin.take().unwrap();
        for line in lines {
            writeln!(input, "{line}").unwrap();
        }
        // the terminal stays open until the script has ended
        let output = child.wait_with_output().unwrap();
        drop(input);
        succeeded(script, &output)
    }

    /// Checks that every command of this walk was run.
    pub fn finish(self) {
        let of = |list: &[(&'static str, &'static str, Use)]| -> BTreeSet<_> {
            let own = list.iter().filter(|(_, _, what)| matches!(what, Use::Run(walk) if *walk == self.walk));
            own.map(|(page, begin, _)| (*page, (*begin).to_owned())).collect()
        };
        let listed: BTreeSet<_> = of(BLOCKS).union(&of(INLINE)).cloned().collect();
        let left: Vec<_> = listed.difference(&self.done).collect();
        assert!(left.is_empty(), "{:?} does not run {left:#?}", self.walk);
    }

    /// Returns its directory.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn succeeded(script: &str, output: &Output) -> String {
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{}: {script}\n{out}\n{err}", output.status);
    out
}

/// Replaces what differs from run to run, ids and times, by its kind and length; drops blank lines, and blanks at the
/// ends of lines.
pub fn forget(printed: &str) -> String {
    let lines = printed.lines().map(str::trim_end).filter(|line| !line.is_empty());
    lines.map(forget_in_line).collect::<Vec<_>>().join("\n")
}

fn forget_in_line(line: &str) -> String {
    let (mut out, mut word) = (String::new(), String::new());
    for letter in line.chars().chain([' ']) {
        if letter.is_ascii_alphanumeric() {
            word.push(letter);
            continue;
        }
        out.push_str(&kind(&word, &out));
        word.clear();
        out.push(letter);
    }
    out.trim_end().to_owned()
}

/// Returns what stands for a word, from what is before it.
fn kind(word: &str, before: &str) -> String {
    let hex = word.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let digits = word.bytes().all(|byte| byte.is_ascii_digit());
    match word.len() {
        // a commit, an id, a trace id
        12 | 16 | 32 if hex => format!("<{} hex digits>", word.len()),
        10 if digits => "<seconds>".to_owned(),
        _ if before.ends_with("duration_ms=") && digits => "<ms>".to_owned(),
        // a part of a time of the day
        _ if before.contains("ts=") && !before.contains(' ') => "<time>".to_owned(),
        _ => word.to_owned(),
    }
}

#[test]
fn ids_and_times_are_forgotten_and_their_lengths_are_not() {
    assert_eq!(
        forget("{\"id\": \"463ac35c9f6413ad\"}  \n\n ready\n"),
        "{\"id\": \"<16 hex digits>\"}\n ready"
    );
    assert_ne!(forget("463ac35c9f6413ad"), forget("463ac35c9f6413ad463ac35c9f6413ad"));
    let line = |ts: &str, ms: &str| format!("ts={ts} level=info duration_ms={ms} status=503");
    let forgotten = forget(&line("2026-11-22T23:43:08.411232Z", "1"));
    assert_eq!(forgotten, forget(&line("2027-01-01T00:00:00.000000Z", "250")));
    assert!(forgotten.ends_with("level=info duration_ms=<ms> status=503"), "{forgotten}");
    assert_eq!(forget("\"started_at\":1795369975}"), "\"started_at\":<seconds>}");
    assert_eq!(forget("status=200 id=100"), "status=200 id=100");
}
