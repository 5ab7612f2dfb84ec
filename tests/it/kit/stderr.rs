//! The program with a standard error in trouble: one that nobody reads, that is closed, whose disk is full.

use std::io::{self, PipeReader, PipeWriter, Read as _, Write as _};
use std::net::SocketAddr;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::http::{Answer, request, send};
use super::process::{PROGRAM, resident, signal};
use super::{free_addr, wait_for};

/// What is wrong with standard error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// A pipe that is full and that nobody reads.
    Blocked,
    /// The same, but writing fails with EAGAIN instead of waiting: whoever shares the pipe has set `O_NONBLOCK`.
    NonBlocking,
    /// A pipe whose reader is gone: EPIPE.
    Closed,
    /// A file on a full disk: ENOSPC.
    Full,
    /// A file that may not grow: SIGXFSZ, then EFBIG.
    Limited,
    /// No file descriptor 2.
    Absent,
    /// A file that is open for reading only: EBADF.
    ReadOnly,
}

impl Trouble {
    /// Returns what the shell does to standard error before it becomes the program.
    fn redirect(self) -> &'static str {
        match self {
            Self::Blocked | Self::NonBlocking | Self::Closed => "",
            Self::Full => "exec 2>/dev/full;",
            // blocks of 512 bytes; the limit is one for the stores too, which need less
            Self::Limited => "exec 2>log; ulimit -f 512;",
            Self::Absent => "exec 2>&-;",
            Self::ReadOnly => "exec 2</dev/null;",
        }
    }
}

/// Fills a pipe to its last byte; returns how many that took. Leaves it non-blocking or not.
fn fill(pipe: &mut PipeWriter, nonblocking: bool) -> usize {
    rustix::io::ioctl_fionbio(&*pipe, true).expect("a pipe");
    let mut filled = 0;
    for size in [4096, 1] {
        while let Ok(written) = pipe.write(&vec![b'\n'; size]) {
            filled += written;
        }
    }
    rustix::io::ioctl_fionbio(&*pipe, nonblocking).expect("a pipe");
    filled
}

/// The program with a standard error of ours. Killed when dropped.
pub struct Troubled {
    child: Child,
    /// The reading end of its standard error, if that is a pipe which somebody may read; and what was in it before.
    pipe: Option<(PipeReader, usize)>,
    admin: SocketAddr,
    _dir: tempfile::TempDir,
}

impl Troubled {
    /// Starts `up` with JSON lines about every request.
    pub fn up(trouble: Trouble) -> Self {
        Self::start(trouble, &["up", "--free-ports", "--data-dir", "data", "--log-level", "debug"])
    }

    /// Starts the program with these flags, and with JSON lines.
    pub fn start(trouble: Trouble, args: &[&str]) -> Self {
        Self::start_with(trouble, args, |_| ())
    }

    /// As [`Self::start`], with a hand on the pipe and on the command before it runs.
    pub fn start_with(trouble: Trouble, args: &[&str], change: impl FnOnce(&mut Command)) -> Self {
        let (dir, admin) = (tempfile::tempdir().expect("a directory"), free_addr());
        let (reader, mut writer) = io::pipe().expect("a pipe");
        let filled = match trouble {
            Trouble::Blocked => fill(&mut writer, false),
            Trouble::NonBlocking => fill(&mut writer, true),
            _ => 0,
        };
        let mut command = Command::new("sh");
        command.args(["-c", &format!("{} exec \"$@\"", trouble.redirect()), "sh", PROGRAM]).args(args);
        command.args(["--log-format", "json", "--debug-addr", &admin.to_string()]);
        command.current_dir(&dir).stdin(Stdio::null()).stdout(Stdio::null()).stderr(writer);
        change(&mut command);
        let child = command.spawn().expect("the program starts");
        let pipe = (trouble != Trouble::Closed).then_some((reader, filled));
        Self { child, pipe, admin, _dir: dir }
    }

    /// Asks the admin listener.
    pub async fn admin(&self, path: &str) -> io::Result<Answer> {
        send(self.admin, request("GET", path, "")).await
    }

    /// Waits until it is ready; returns the address of its gateway.
    pub async fn ready(&self) -> SocketAddr {
        wait_for("it is ready", || async {
            let answer = self.admin("/readyz").await.ok()?;
            (answer.body == "ready\n").then_some(())
        })
        .await;
        let status = self.admin("/status").await.expect("an answer").json();
        let roles = status["roles"].as_array().expect("roles").iter();
        let mut gateways = roles.filter(|role| role["name"] == "apigateway");
        let addr = gateways.next().and_then(|role| role["addr"].as_str()).expect("a gateway");
        addr.parse().expect("an address")
    }

    /// Returns the sum of the series that begin so.
    pub async fn metric(&self, series: &str) -> f64 {
        super::metrics::metric(self.admin, series).await
    }

    /// Returns its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Returns its resident memory, bytes.
    pub fn resident(&self) -> u64 {
        resident(self.child.id())
    }

    pub fn signal(&self, sent: Signal) {
        signal(&self.child, sent);
    }

    /// Waits for its end, at most `limit`.
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("it is our child") {
                return status;
            }
            assert!(begun.elapsed() < limit, "still running after {limit:?}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Reads what it has written so far and what comes, until the pipe ends: on a thread, so that a pipe that
    /// nobody has read flows again.
    pub fn read(&mut self) -> std::thread::JoinHandle<String> {
        let (mut pipe, filled) = self.pipe.take().expect("a pipe that nobody reads yet");
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            pipe.read_to_end(&mut bytes).expect("a pipe");
            String::from_utf8(bytes.split_off(filled)).expect("UTF-8")
        })
    }

    /// Reads at most so many bytes a second, until the pipe ends.
    pub fn read_slowly(&mut self, rate: usize) -> std::thread::JoinHandle<String> {
        let (mut pipe, filled) = self.pipe.take().expect("a pipe that nobody reads yet");
        std::thread::spawn(move || {
            let (mut bytes, mut part) = (Vec::new(), vec![0; (rate / 50).max(1)]);
            while let Ok(length @ 1..) = pipe.read(&mut part) {
                bytes.extend_from_slice(&part[..length]);
                std::thread::sleep(Duration::from_millis(20));
            }
            String::from_utf8(bytes.split_off(filled)).expect("UTF-8")
        })
    }
}

impl Drop for Troubled {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
