//! The metrics of the process, as every Prometheus client has them. The crate's collector reads them from
//! `/proc`; only the start time it counts from the boot time in `/proc/stat`, which a unit with
//! `ProcSubset=pid` cannot see, and then says 0. Here the start time is the clock's when the metrics are made,
//! a few milliseconds after the process began.

use std::time::{SystemTime, UNIX_EPOCH};

use prometheus::core::{Collector, Desc};
use prometheus::process_collector::ProcessCollector;
use prometheus::proto::{Gauge, Metric, MetricFamily, MetricType};

const START: &str = "process_start_time_seconds";

/// Collects them.
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
        self.collector.desc() // the start time is among them
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut families = self.collector.collect();
        families.retain(|family| family.name() != START);
        let mut value = Gauge::default();
        value.set_value(self.started);
        let mut start = MetricFamily::default();
        start.set_name(START.to_owned());
        start.set_help("Start time of the process since unix epoch in seconds.".to_owned());
        start.set_field_type(MetricType::GAUGE);
        start.set_metric(vec![Metric::from_gauge(value)]);
        families.push(start);
        families
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_is_told_once_and_is_now() {
        let families = Process::new().collect();
        let starts: Vec<_> = families.iter().filter(|family| family.name() == START).collect();
        let [start] = starts[..] else { panic!("{} families", starts.len()) };
        let value = start.get_metric()[0].get_gauge().get_value();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        assert!((now - 5.0..=now).contains(&value), "{value}");
        assert_eq!(families.len(), 7, "and the others");
    }
}
