//! Processes: a guard that ends them, their processor time and memory, free ports, and waiting.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Longest wait for the start of a process.
const START: Duration = Duration::from_secs(30);
/// Clock ticks a second in /proc; the same on every Linux.
const HERTZ: f64 = 100.0;

/// A process. Killed when dropped.
pub struct Process(Child);

impl Process {
    /// Starts a program without the settings that this process may have in its environment.
    pub fn start(command: &mut Command) -> Self {
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("MSA__")) {
            command.env_remove(name);
        }
        Self::start_as_it_is(command)
    }

    /// Starts a program. Without input and output, unless the command says otherwise.
    pub fn start_as_it_is(command: &mut Command) -> Self {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        Self(child.unwrap_or_else(|error| panic!("{}: {error}", command.get_program().display())))
    }

    pub fn id(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Returns this program, to be started with other arguments.
pub fn this() -> Command {
    Command::new(std::env::current_exe().expect("its own path"))
}

/// The processor time of a process.
pub struct Clock {
    process: u32,
    /// By thread, nanoseconds.
    threads: BTreeMap<u32, u64>,
    /// Of the process, seconds. Coarser, and with threads that have ended.
    total: f64,
}

impl Clock {
    /// Panics if the process is gone.
    pub fn start(process: u32) -> Self {
        Self { process, threads: threads(process), total: total(process) }
    }

    /// Returns the processor time since the start, seconds.
    pub fn seconds(&self) -> f64 {
        let now = threads(self.process);
        let gone = self.threads.keys().any(|thread| !now.contains_key(thread));
        if now.is_empty() || gone {
            return total(self.process) - self.total;
        }
        let used = |(thread, time): (&u32, &u64)| time - self.threads.get(thread).unwrap_or(&0);
        now.iter().map(used).sum::<u64>() as f64 / 1e9
    }
}

/// Returns the time of each thread, nanoseconds; nothing where the kernel does not keep it.
fn threads(process: u32) -> BTreeMap<u32, u64> {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{process}/task")) else { return BTreeMap::new() };
    let time = |entry: std::fs::DirEntry| {
        let text = std::fs::read_to_string(entry.path().join("schedstat")).ok()?;
        let thread = entry.file_name().to_str()?.parse().ok()?;
        Some((thread, text.split_whitespace().next()?.parse().ok()?))
    };
    tasks.flatten().filter_map(time).collect()
}

/// Returns the time of a process, seconds, in steps of 10 ms.
fn total(process: u32) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{process}/stat"));
    let text = text.unwrap_or_else(|_| panic!("process {process} is gone"));
    // the name, in parentheses, may hold spaces
    let rest = text.rsplit_once(')').expect("a line of stat").1;
    let ticks = |n: usize| rest.split_whitespace().nth(n).and_then(|t| t.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / HERTZ
}

/// Returns the resident memory of a process, MB (10^6 bytes).
pub fn memory(process: u32) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok());
    kib.unwrap_or_else(|| panic!("process {process} is gone")) * 1024.0 / 1e6
}

/// Returns an address that is free, with a port below those that the kernel gives out by itself.
pub fn free_addr() -> SocketAddr {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let step = std::process::id().wrapping_mul(7919).wrapping_add(NEXT.fetch_add(1, Relaxed));
        let port = u16::try_from(10_000 + step % 20_000).expect("below 30000");
        if let Ok(socket) = TcpListener::bind(("127.0.0.1", port)) {
            return socket.local_addr().expect("its address");
        }
    }
}

/// Asks every 5 ms until there is an answer; panics after half a minute with what was waited for.
pub fn wait_for<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(begun.elapsed() < START, "waited {START:?} in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until something listens.
pub fn wait_until_it_listens(addr: SocketAddr) {
    wait_for(&format!("something listens on {addr}"), || std::net::TcpStream::connect(addr).ok());
}
