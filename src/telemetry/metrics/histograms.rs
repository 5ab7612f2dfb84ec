//! A family of histograms with a part for each thread. Recording a value changes four numbers; if several threads changed
//! the same ones, each would wait for the memory of the other. A page of metrics shows the sums.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus::core::{Collector, Desc};
use prometheus::proto::{Bucket, Histogram as Values, LabelPair, Metric, MetricFamily};
use prometheus::{Histogram, HistogramOpts, HistogramVec};

/// The family, as one thread has it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Histograms {
    own: HistogramVec,
    parts: Arc<Parts>,
}

#[derive(Debug)]
struct Parts {
    opts: HistogramOpts,
    labels: Vec<String>,
    /// By the number of the thread.
    all: Mutex<Vec<HistogramVec>>,
}

impl Parts {
    fn all(&self) -> MutexGuard<'_, Vec<HistogramVec>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Histograms {
    /// Returns a family, as the first thread has it.
    ///
    /// # Errors
    /// When a name is invalid.
    pub fn new(opts: HistogramOpts, labels: &[&str]) -> prometheus::Result<Self> {
        let own = HistogramVec::new(opts.clone(), labels)?;
        let labels = labels.iter().map(|label| (*label).to_owned()).collect();
        Ok(Self { parts: Arc::new(Parts { opts, labels, all: Mutex::new(vec![own.clone()]) }), own })
    }

    /// Returns the same family, as the thread with a number has it.
    #[must_use]
    pub fn of_thread(&self, number: usize) -> Self {
        let mut all = self.parts.all();
        while all.len() <= number {
            let labels: Vec<_> = self.parts.labels.iter().map(String::as_str).collect();
            // what was valid for the first thread is so for all
            let Ok(part) = HistogramVec::new(self.parts.opts.clone(), &labels) else { break };
            all.push(part);
        }
        let own = all.get(number).unwrap_or(&self.own).clone();
        drop(all);
        Self { own, parts: self.parts.clone() }
    }

    /// Returns the histogram of some labels, in which this thread records.
    #[must_use]
    pub fn with_label_values(&self, labels: &[&str]) -> Histogram {
        self.own.with_label_values(labels)
    }

    /// Removes all series of this thread.
    #[cfg(test)]
    pub fn reset(&self) {
        self.own.reset();
    }
}

impl Collector for Histograms {
    fn desc(&self) -> Vec<&Desc> {
        self.own.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let parts = self.parts.all().clone();
        let mut families = parts.iter().flat_map(Collector::collect);
        let Some(mut sum) = families.next() else { return Vec::new() };
        if parts.len() > 1 {
            let others = families.flat_map(|mut family| family.take_metric());
            let metrics = add(sum.take_metric().into_iter().chain(others));
            sum.set_metric(metrics);
        }
        vec![sum]
    }
}

/// Returns the sums of the histograms that have the same labels.
fn add(metrics: impl Iterator<Item = Metric>) -> Vec<Metric> {
    let mut places = HashMap::<String, usize>::new();
    let mut sums = Vec::<Metric>::new();
    for metric in metrics {
        match places.entry(key(metric.get_label())) {
            Entry::Vacant(entry) => {
                entry.insert(sums.len());
                sums.push(metric);
            }
            Entry::Occupied(entry) => {
                if let Some(known) = sums.get_mut(*entry.get()) {
                    let sum = sum(known.get_histogram(), metric.get_histogram());
                    known.set_histogram(sum);
                }
            }
        }
    }
    sums
}

/// Returns a text that tells series of one family apart: their labels are always in the same order.
fn key(labels: &[LabelPair]) -> String {
    let mut key = String::with_capacity(64);
    for label in labels {
        key.push_str(label.value());
        key.push('\0');
    }
    key
}

fn sum(one: &Values, other: &Values) -> Values {
    let buckets = one.get_bucket().iter().zip(other.get_bucket()).map(|(one, other)| {
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(one.upper_bound());
        bucket.set_cumulative_count(one.cumulative_count() + other.cumulative_count());
        bucket
    });
    let mut sum = Values::default();
    sum.set_bucket(buckets.collect());
    sum.set_sample_count(one.get_sample_count() + other.get_sample_count());
    sum.set_sample_sum(one.get_sample_sum() + other.get_sample_sum());
    sum
}

#[cfg(test)]
mod tests {
    use prometheus::Registry;

    use super::*;
    use crate::telemetry::metrics::text;

    #[test]
    fn a_page_shows_the_sums_of_all_threads() {
        let opts = HistogramOpts::new("x_seconds", "x").buckets(vec![0.1, 1.0]);
        let (first, registry) = (Histograms::new(opts, &["a", "b"]).unwrap(), Registry::new());
        registry.register(Box::new(first.clone())).unwrap();
        let second = first.of_thread(1);
        for (thread, labels, value) in [
            (&first, ["1", "2"], 0.05),
            (&second, ["1", "2"], 0.5),
            (&second, ["1", "2"], 5.0),
            (&second, ["3", ""], 0.25),
            (&first.of_thread(0), ["1", "2"], 0.125),
        ] {
            thread.with_label_values(&labels).observe(value);
        }
        // the same part again, whoever asks for it
        second.of_thread(1).with_label_values(&["3", ""]).observe(0.25);
        let page = text(&registry);
        let lines: Vec<_> = page.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(
            lines,
            [
                r#"x_seconds_bucket{a="1",b="2",le="0.1"} 1"#,
                r#"x_seconds_bucket{a="1",b="2",le="1"} 3"#,
                r#"x_seconds_bucket{a="1",b="2",le="+Inf"} 4"#,
                r#"x_seconds_sum{a="1",b="2"} 5.675"#,
                r#"x_seconds_count{a="1",b="2"} 4"#,
                r#"x_seconds_bucket{a="3",b="",le="0.1"} 0"#,
                r#"x_seconds_bucket{a="3",b="",le="1"} 2"#,
                r#"x_seconds_bucket{a="3",b="",le="+Inf"} 2"#,
                r#"x_seconds_sum{a="3",b=""} 0.5"#,
                r#"x_seconds_count{a="3",b=""} 2"#,
            ]
        );
    }
}
