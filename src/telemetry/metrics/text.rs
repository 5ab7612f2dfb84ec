//! The text format of Prometheus. Every scrape writes a few thousand numbers, so what repeats is made once: the labels
//! of a series, the edges of a family's buckets.

use std::fmt::Write as _;

use prometheus::proto::{Histogram, Metric, MetricFamily, MetricType};

/// Largest number that is written as an integer: beyond it not every integer is a float.
const MAX_INTEGER: f64 = 9_007_199_254_740_992.0;

/// Returns families in the text format, version 0.0.4.
pub fn encode(families: &[MetricFamily]) -> String {
    let mut page = Page { out: String::with_capacity(64 * 1024), ..Page::default() };
    for family in families {
        page.family(family);
    }
    page.out
}

/// The page so far, and what the next lines repeat.
#[derive(Default)]
struct Page {
    out: String,
    /// The labels of the current series, `a="b",c="d"`.
    labels: String,
    /// The edges of buckets and their text.
    edges: Vec<(f64, String)>,
}

impl Page {
    fn family(&mut self, family: &MetricFamily) {
        let (name, kind) = (family.name(), family.get_field_type());
        let shown = match kind {
            MetricType::COUNTER => "counter",
            MetricType::GAUGE => "gauge",
            MetricType::HISTOGRAM => "histogram",
            MetricType::SUMMARY | MetricType::UNTYPED => return, // nothing here has these
        };
        push(&mut self.out, &["# HELP ", name, " "]);
        escape(family.help(), false, &mut self.out);
        push(&mut self.out, &["\n# TYPE ", name, " ", shown, "\n"]);
        for metric in family.get_metric() {
            self.set_labels(metric);
            match kind {
                MetricType::COUNTER => self.sample(name, "", metric.get_counter().get_value()),
                MetricType::GAUGE => self.sample(name, "", metric.get_gauge().get_value()),
                _ => self.histogram(name, metric.get_histogram()),
            }
        }
    }

    fn set_labels(&mut self, metric: &Metric) {
        self.labels.clear();
        for label in metric.get_label() {
            if !self.labels.is_empty() {
                self.labels.push(',');
            }
            self.labels.push_str(label.name());
            self.labels.push_str("=\"");
            escape(label.value(), true, &mut self.labels);
            self.labels.push('"');
        }
    }

    fn sample(&mut self, name: &str, suffix: &str, value: f64) {
        self.series(name, suffix);
        number(value, &mut self.out);
        self.out.push('\n');
    }

    /// Begins a line: the name, the labels, and the space before the value.
    fn series(&mut self, name: &str, suffix: &str) {
        push(&mut self.out, &[name, suffix]);
        if !self.labels.is_empty() {
            push(&mut self.out, &["{", &self.labels, "}"]);
        }
        self.out.push(' ');
    }

    fn histogram(&mut self, name: &str, histogram: &Histogram) {
        let mut infinite = false;
        for (index, bucket) in histogram.get_bucket().iter().enumerate() {
            let edge = bucket.upper_bound();
            infinite |= edge.is_infinite();
            self.bucket(name, index, edge, bucket.cumulative_count());
        }
        if !infinite {
            self.bucket(name, histogram.get_bucket().len(), f64::INFINITY, histogram.get_sample_count());
        }
        self.sample(name, "_sum", histogram.get_sample_sum());
        self.series(name, "_count");
        self.out.push_str(itoa::Buffer::new().format(histogram.get_sample_count()));
        self.out.push('\n');
    }

    fn bucket(&mut self, name: &str, index: usize, edge: f64, count: u64) {
        self.out.push_str(name);
        self.out.push_str("_bucket{");
        if !self.labels.is_empty() {
            self.out.push_str(&self.labels);
            self.out.push(',');
        }
        self.out.push_str("le=\"");
        self.edge(index, edge);
        self.out.push_str("\"} ");
        self.out.push_str(itoa::Buffer::new().format(count));
        self.out.push('\n');
    }

    /// Writes the edge of the bucket at `index`. All series of a family have the same, and many families.
    fn edge(&mut self, index: usize, edge: f64) {
        match self.edges.get(index) {
            Some((known, text)) if known.to_bits() == edge.to_bits() => self.out.push_str(text),
            _ => {
                let text = if edge.is_infinite() { "+Inf".to_owned() } else { edge.to_string() };
                self.out.push_str(&text);
                self.edges.truncate(index);
                self.edges.push((edge, text));
            }
        }
    }
}

fn push(out: &mut String, parts: &[&str]) {
    for part in parts {
        out.push_str(part);
    }
}

/// Writes a number, an integer without a fraction.
fn number(value: f64, out: &mut String) {
    #[expect(clippy::cast_possible_truncation, reason = "it is an integer below 2^53")]
    if value.fract() == 0.0 && value.abs() < MAX_INTEGER {
        out.push_str(itoa::Buffer::new().format(value as i64));
    } else {
        let _ = write!(out, "{value}"); // a String takes everything
    }
}

/// Writes a text with `\` and line ends escaped, and `"` too if `quotes`.
fn escape(text: &str, quotes: bool, out: &mut String) {
    let mut rest = text;
    // almost always there is nothing to escape, and bytes are looked at more quickly than characters
    if !text.bytes().any(|byte| matches!(byte, b'\\' | b'\n' | b'"')) {
        return out.push_str(text);
    }
    while let Some(at) = rest.find(['\\', '\n', '"']) {
        let (plain, special) = rest.split_at(at);
        let (special, after) = special.split_at(1);
        out.push_str(plain);
        out.push_str(match special {
            "\\" => "\\\\",
            "\n" => "\\n",
            _ if quotes => "\\\"",
            _ => special,
        });
        rest = after;
    }
    out.push_str(rest);
}

#[cfg(test)]
mod tests {
    use prometheus::{Encoder as _, HistogramOpts, HistogramVec, IntCounterVec, Opts, Registry, TextEncoder};

    use super::*;

    /// The crate's own writer is the judge.
    #[test]
    fn it_writes_what_the_crate_writes() {
        let registry = Registry::new();
        let counters = IntCounterVec::new(Opts::new("c_total", "a \\ \n \" help"), &["a", "b"]).unwrap();
        counters.with_label_values(&["x\"y\\z\n", "é"]).inc_by(3);
        counters.with_label_values(&["", ""]).inc_by(1 << 60);
        registry.register(Box::new(counters)).unwrap();
        let plain = prometheus::IntCounter::new("plain_total", "plain").unwrap();
        registry.register(Box::new(plain)).unwrap();
        for (name, value) in
            [("g1", 0.1 + 0.2), ("g2", -7.0), ("g3", f64::INFINITY), ("g4", 1e300), ("g5", 1e-9)]
        {
            let gauge = prometheus::Gauge::new(name, "a gauge").unwrap();
            gauge.set(value);
            registry.register(Box::new(gauge)).unwrap();
        }
        for (name, edges) in [("h1", vec![0.25, 0.5, 1.0]), ("h2", vec![0.25, 2.5]), ("h3", vec![0.5, 1e10])]
        {
            let opts = HistogramOpts::new(name, "a histogram").buckets(edges);
            let family = HistogramVec::new(opts, &["code"]).unwrap();
            family.with_label_values(&["200"]).observe(0.3);
            family.with_label_values(&["503"]).observe(1e11);
            registry.register(Box::new(family)).unwrap();
        }
        let single = prometheus::Histogram::with_opts(HistogramOpts::new("h4", "one")).unwrap();
        registry.register(Box::new(single)).unwrap();

        let families = registry.gather();
        let mut judged = Vec::new();
        TextEncoder::new().encode(&families, &mut judged).unwrap();
        let judged = String::from_utf8(judged).unwrap();
        let written = encode(&families);
        for (ours, theirs) in written.lines().zip(judged.lines()) {
            assert_eq!(ours, theirs);
        }
        assert_eq!(written.lines().count(), judged.lines().count());
    }
}
