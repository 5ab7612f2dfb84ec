//! Processor time: of a process, of everything this test started, and of everybody else on the machine.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

/// Clock ticks a second in /proc; the same on every Linux.
const HERTZ: f64 = 100.0;
/// Share of the cores that others may take before a measurement is void.
const DISTURBED: f64 = 0.2;

/// Ticks of processes below this one that nobody will wait for, see [`note_orphans`].
static ORPHANS: AtomicU64 = AtomicU64::new(0);

/// Counts what these processes have used as ours. To be called before they are killed together with their parent: it can
/// no longer wait for them, and their time would be missing from what this process and all below it have used.
pub fn note_orphans(processes: &[u32]) {
    let ticks: f64 = processes.iter().filter_map(|process| stat(*process)).map(|it| it.own + it.ended).sum();
    ORPHANS.fetch_add(ticks as u64, Relaxed);
}

/// The processor time of one process, user and system, from now on.
pub struct Meter {
    process: u32,
    begun: Instant,
    before: f64,
}

impl Meter {
    pub fn start(process: u32) -> Self {
        Self { process, begun: Instant::now(), before: Self::ticks(process) }
    }

    /// Returns the share of one core that the process has used since.
    pub fn share(&self) -> f64 {
        self.seconds() / self.begun.elapsed().as_secs_f64()
    }

    /// Returns the processor time that the process has used since, seconds.
    pub fn seconds(&self) -> f64 {
        (Self::ticks(self.process) - self.before) / HERTZ
    }

    /// Panics if the process is gone: its share would be below any bound.
    fn ticks(process: u32) -> f64 {
        stat(process).unwrap_or_else(|| panic!("process {process} is gone")).own
    }
}

struct Stat {
    parent: u32,
    own: f64,
    /// Of its children that have ended and were waited for.
    ended: f64,
}

fn stat(process: u32) -> Option<Stat> {
    let text = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // the name, in parentheses, may hold spaces
    let fields: Vec<_> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |n: usize| fields.get(n)?.parse::<f64>().ok();
    let parent = fields.get(1)?.parse().ok()?;
    Some(Stat { parent, own: ticks(11)? + ticks(12)?, ended: ticks(13)? + ticks(14)? })
}

/// Returns the ticks of this process and all below it, and those of the whole machine.
fn ticks() -> (f64, f64) {
    let processes = std::fs::read_dir("/proc").expect("/proc").flatten();
    let all: BTreeMap<u32, Stat> = processes
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|process| Some((process, stat(process)?)))
        .collect();
    let ours = |mut process: u32| {
        while process > 1 {
            if process == std::process::id() {
                return true;
            }
            let Some(stat) = all.get(&process) else { return false };
            process = stat.parent;
        }
        false
    };
    let running: f64 =
        all.iter().filter(|(process, _)| ours(**process)).map(|(_, stat)| stat.own + stat.ended).sum();
    let own = running + ORPHANS.load(Relaxed) as f64;
    let text = std::fs::read_to_string("/proc/stat").expect("/proc/stat");
    let line = text.lines().next().unwrap_or_default();
    let fields: Vec<f64> = line.split_whitespace().skip(1).filter_map(|n| n.parse().ok()).collect();
    // user, nice, system, (idle, iowait), irq, softirq, steal
    let busy = [0, 1, 2, 5, 6, 7].into_iter().filter_map(|n| fields.get(n)).sum();
    (own, busy)
}

/// Watches what others take while a measurement runs.
pub struct Others {
    begun: Instant,
    own: f64,
    busy: f64,
}

impl Others {
    pub fn watch() -> Self {
        let (own, busy) = ticks();
        Self { begun: Instant::now(), own, busy }
    }

    /// Returns the share of all cores that others took since, 0 to 1.
    pub fn share(&self) -> f64 {
        let (own, busy) = ticks();
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let time = self.begun.elapsed().as_secs_f64() * HERTZ * cores as f64;
        (((busy - self.busy) - (own - self.own)) / time).clamp(0.0, 1.0)
    }

    /// Returns true if they took too much for a measurement to count.
    pub fn disturbed(&self) -> bool {
        self.share() > DISTURBED
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_work_is_no_disturbance() {
        let (own, others) = (Meter::start(std::process::id()), Others::watch());
        let until = Instant::now() + std::time::Duration::from_millis(300);
        while Instant::now() < until {
            std::hint::black_box(stat(1));
        }
        assert!(own.share() >= 0.2, "{}", own.share());
        let (ours, _) = ticks();
        assert!(ours - others.own >= 10.0);
    }
}
