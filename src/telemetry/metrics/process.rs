//! The metrics of the process that every Prometheus client exports. They are those of the crate `prometheus`, except for
//! two:
//!
//! - Start time: the crate derives it from the boot time in `/proc/stat`, and exports 0 in a systemd unit with
//!   `ProcSubset=pid`, which cannot read that file. Here it is the time at which the metrics are registered, a few
//!   milliseconds after the process has started.
//! - CPU time: the crate counts whole seconds. In a rate over a minute, a process that uses a tenth of a core would
//!   seem to jump between nothing and a quarter of a core. Here it is exact.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus::core::{Collector, Desc};
use prometheus::process_collector::ProcessCollector;
use prometheus::proto::{Counter, Gauge, Metric, MetricFamily, MetricType};
use rustix::time::{ClockId, clock_gettime};

const START: &str = "process_start_time_seconds";
const CPU: &str = "process_cpu_seconds_total";

/// Collects the metrics of this process.
pub struct Process {
    collector: ProcessCollector,
    /// Seconds since 1970.
    started: f64,
}

impl Process {
    /// Returns a collector for this process, which begins now.
    pub fn new() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Self { collector: ProcessCollector::for_self(), started: now.map_or(0.0, |now| now.as_secs_f64()) }
    }
}

impl Collector for Process {
    fn desc(&self) -> Vec<&Desc> {
        self.collector.desc() // includes the two that are replaced
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut families = self.collector.collect();
        families.retain(|family| ![START, CPU].contains(&family.name()));
        let mut started = Gauge::default();
        started.set_value(self.started);
        let help = "Start time of the process since unix epoch in seconds.";
        families.push(family(START, help, MetricType::GAUGE, Metric::from_gauge(started)));
        let (mut used, mut metric) = (Counter::default(), Metric::default());
        used.set_value(cpu_seconds());
        metric.set_counter(used);
        families.push(family(
            CPU,
            "Total user and system CPU time spent in seconds.",
            MetricType::COUNTER,
            metric,
        ));
        families
    }
}

fn family(name: &str, help: &str, kind: MetricType, metric: Metric) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    family.set_metric(vec![metric]);
    family
}

/// Returns the time that all threads of this process have spent on a CPU, ended ones too.
fn cpu_seconds() -> f64 {
    let used = clock_gettime(ClockId::ProcessCPUTime);
    Duration::try_from(used).unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

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
