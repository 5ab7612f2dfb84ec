//! The metrics of the process that every Prometheus client exports, by the same names. They are made here and not by the
//! crate `prometheus`, because its own
//!
//! - exports 0 as the start time in a systemd unit with `ProcSubset=pid`: it reads the boot time in `/proc/stat`. Here it
//!   is the time at which the metrics are registered, a few milliseconds after the process has started;
//! - counts CPU time in whole seconds. In a rate over a minute, a process that uses a tenth of a core would seem to jump
//!   between nothing and a quarter of a core;
//! - parses every limit of the process for each page, a tenth of what a page costs.

use std::collections::HashMap;
use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus::core::{Collector, Desc};
use prometheus::proto::{Counter, Gauge, Metric, MetricFamily, MetricType};
use rustix::param::page_size;
use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

/// A metric: its name, its help, and its value, if it can be read.
type Row = (&'static str, &'static str, fn(&Reading) -> Option<f64>);

const CPU: &str = "process_cpu_seconds_total";
const ROWS: [Row; 7] = [
    (CPU, "Total user and system CPU time spent in seconds.", |_| Some(cpu_seconds())),
    ("process_open_fds", "Number of open file descriptors.", |_| open_files()),
    ("process_max_fds", "Maximum number of open file descriptors.", |_| max_files()),
    ("process_virtual_memory_bytes", "Virtual memory size in bytes.", |read| read.field(20)),
    ("process_resident_memory_bytes", "Resident memory size in bytes.", |read| {
        Some(read.field(21)? * to_float(u64::try_from(page_size()).ok()?))
    }),
    ("process_start_time_seconds", "Start time of the process since unix epoch in seconds.", |read| {
        Some(read.started)
    }),
    ("process_threads", "Number of OS threads in the process.", |read| read.field(17)),
];

/// Collects the metrics of this process.
pub struct Process {
    descriptions: Vec<Desc>,
    /// Seconds since 1970.
    started: f64,
}

/// What a page is made from.
struct Reading {
    started: f64,
    /// `/proc/self/stat` behind the name of the process, empty if it cannot be read.
    stat: String,
}

impl Process {
    /// Returns a collector for this process, which begins now.
    pub fn new() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let descriptions = ROWS.iter().filter_map(|(name, help, _)| {
            Desc::new((*name).to_owned(), (*help).to_owned(), Vec::new(), HashMap::new()).ok()
        });
        Self { descriptions: descriptions.collect(), started: now.map_or(0.0, |now| now.as_secs_f64()) }
    }
}

impl Collector for Process {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        // the name, in parentheses, may hold spaces
        let stat = stat.rsplit_once(')').map_or("", |(_, rest)| rest).to_owned();
        let reading = Reading { started: self.started, stat };
        ROWS.iter().filter_map(|(name, help, value)| Some(family(name, help, value(&reading)?))).collect()
    }
}

impl Reading {
    /// Returns a field of `/proc/self/stat`, counted from the state of the process, which is 0 (proc(5) counts it 3).
    fn field(&self, index: usize) -> Option<f64> {
        self.stat.split_ascii_whitespace().nth(index)?.parse().ok()
    }
}

fn family(name: &str, help: &str, value: f64) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    let metric = if name == CPU {
        family.set_field_type(MetricType::COUNTER);
        let (mut counter, mut metric) = (Counter::default(), Metric::default());
        counter.set_value(value);
        metric.set_counter(counter);
        metric
    } else {
        family.set_field_type(MetricType::GAUGE);
        let mut gauge = Gauge::default();
        gauge.set_value(value);
        Metric::from_gauge(gauge)
    };
    family.set_metric(vec![metric]);
    family
}

/// Returns the number of open files. Since Linux 6.2 it is the size of their directory; before that they are counted,
/// but for the one that lists them.
fn open_files() -> Option<f64> {
    let size = fs::metadata("/proc/self/fd").ok()?.len();
    let counted = || u64::try_from(fs::read_dir("/proc/self/fd").ok()?.count()).ok()?.checked_sub(1);
    if size > 0 { Some(to_float(size)) } else { counted().map(to_float) }
}

fn max_files() -> Option<f64> {
    getrlimit(Resource::Nofile).current.map(to_float)
}

/// Returns the time that all threads of this process have spent on a CPU, ended ones too.
fn cpu_seconds() -> f64 {
    let used = clock_gettime(ClockId::ProcessCPUTime);
    Duration::try_from(used).unwrap_or_default().as_secs_f64()
}

#[expect(clippy::cast_precision_loss, reason = "no such count comes near 2^53")]
const fn to_float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: &str = "process_start_time_seconds";

    /// The value of a metric as the program exports it.
    fn value(name: &str) -> f64 {
        let families = Process::new().collect();
        let family = families.iter().find(|family| family.name() == name);
        family.unwrap_or_else(|| panic!("no {name}")).get_metric()[0].get_gauge().get_value()
    }

    #[test]
    fn what_is_read_is_what_the_kernel_says() {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let said = |key: &str| -> f64 {
            let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
            line.split_whitespace().next().unwrap().parse().unwrap()
        };
        let near = |value: f64, said: f64| (value / said - 1.0).abs() < 0.5;
        assert!(near(value("process_resident_memory_bytes"), said("VmRSS:") * 1024.0));
        assert!(near(value("process_virtual_memory_bytes"), said("VmSize:") * 1024.0));
        assert!((1.0..500.0).contains(&value("process_threads")));
        let limits = fs::read_to_string("/proc/self/limits").unwrap();
        let limit = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
        assert_eq!(value("process_max_fds").to_string(), limit.split_whitespace().next().unwrap());
        // other tests open files, too, but not so many
        let before = value("process_open_fds");
        let open: Vec<_> = (0..300).map(|_| fs::File::open("/dev/null").unwrap()).collect();
        let after = value("process_open_fds");
        assert!((200.0..400.0).contains(&(after - before)), "{before} {after} {}", open.len());
    }

    #[test]
    fn the_start_time_is_exported_once_and_is_now() {
        let families = Process::new().collect();
        let starts: Vec<_> = families.iter().filter(|family| family.name() == START).collect();
        let [start] = starts[..] else { panic!("{} families", starts.len()) };
        let value = start.get_metric()[0].get_gauge().get_value();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        assert!((now - 5.0..=now).contains(&value), "{value}");
        assert_eq!(families.len(), 7, "and the others");
    }

    #[test]
    fn cpu_time_is_exported_in_fractions_of_a_second() {
        let used = || {
            let families = Process::new().collect();
            let cpu: Vec<_> = families.iter().filter(|family| family.name() == CPU).collect();
            let [cpu] = cpu[..] else { panic!("{} families", cpu.len()) };
            cpu.get_metric()[0].get_counter().get_value()
        };
        let before = used();
        while cpu_seconds() < before + 0.01 {}
        let after = used();
        assert!(after > before && after < before + 60.0, "{before} {after}");
        assert!(before.fract() > 0.0 || after.fract() > 0.0, "{before} {after}");
    }
}
