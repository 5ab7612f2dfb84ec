//! What the servers of a process have answered since the start, by route and rpc: for whoever keeps rates.

use std::collections::BTreeMap;

use prometheus::core::Collector;
use prometheus::proto::{LabelPair, Metric};

use super::metrics::Metrics;

/// gRPC codes that say that a call failed, as opposed to an answer that its caller did not hope for.
const FAILED: [&str; 5] = ["UNAVAILABLE", "DEADLINE_EXCEEDED", "INTERNAL", "UNKNOWN", "DATA_LOSS"];

/// What the servers of a process have answered since the start.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    /// Requests by route, and calls by rpc. Only those that have occurred; the number of names is bounded.
    pub answered: BTreeMap<String, Answered>,
    /// Requests and calls that were refused because of overload.
    pub refused: u64,
}

/// The answers of one route or rpc.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answered {
    /// All of them.
    pub count: u64,
    /// Those with a status of 500 and above, or a code that says that the call failed.
    pub failed: u64,
    /// Those in each bucket of the histogram, by upper edge in microseconds. What is above the last edge is in none.
    pub buckets: BTreeMap<u64, u64>,
}

impl Metrics {
    /// Returns what was answered so far. This costs about a microsecond for each series.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for family in [self.http.collect(), self.grpc.collect()].into_iter().flatten() {
            for metric in family.get_metric() {
                totals.add(metric);
            }
        }
        for family in [self.http_refused.collect(), self.grpc_refused.collect()].into_iter().flatten() {
            for metric in family.get_metric() {
                // a deadline that has passed and a client that sends too much are no overload
                if ["in_flight", "memory"].contains(&label(metric, "reason")) {
                    totals.refused += whole(metric.get_counter().get_value());
                }
            }
        }
        totals
    }
}

impl Totals {
    fn add(&mut self, metric: &Metric) {
        let histogram = metric.get_histogram();
        // health checks are no calls of users
        if histogram.get_sample_count() == 0 || label(metric, "service").starts_with("grpc.") {
            return;
        }
        let (route, code) = (label(metric, "route"), label(metric, "code"));
        let (name, failed) = if route.is_empty() {
            let name = format!("{}/{}", label(metric, "service"), label(metric, "method"));
            (name, FAILED.contains(&code))
        } else {
            (route.to_owned(), code.starts_with('5'))
        };
        let answered = self.answered.entry(name).or_default();
        answered.count += histogram.get_sample_count();
        answered.failed += if failed { histogram.get_sample_count() } else { 0 };
        let mut below = 0;
        for bucket in histogram.get_bucket() {
            let edge = bucket.upper_bound() * 1e6;
            if edge.is_finite() {
                *answered.buckets.entry(whole(edge.round())).or_default() +=
                    bucket.cumulative_count() - below;
                below = bucket.cumulative_count();
            }
        }
    }
}

fn label<'a>(metric: &'a Metric, name: &str) -> &'a str {
    let found = metric.get_label().iter().find(|label| label.name() == name);
    found.map_or("", LabelPair::value)
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a count, or an edge of a bucket"
)]
fn whole(value: f64) -> u64 {
    value as u64
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::{Method, StatusCode};

    use super::*;
    use crate::api::rpc::Rpc;
    use crate::server::metrics::Refused;

    static ROUTES: [(&str, Method); 1] = [("/api/x", Method::GET)];

    #[test]
    fn answers_are_summed_by_route_and_rpc() {
        let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
        let requests = metrics.requests(&ROUTES);
        let target = requests.target(&Method::GET, "/api/x");
        for (status, ms) in [(200, 3), (404, 3), (503, 40)] {
            requests.observe(target, StatusCode::from_u16(status).unwrap(), Duration::from_millis(ms));
        }
        let calls = metrics.handled("feed");
        calls.observe(Rpc::GetFeeds, tonic::Code::NotFound, Duration::from_secs(9));
        calls.observe(Rpc::GetFeeds, tonic::Code::Unavailable, Duration::from_micros(50));
        calls.observe(Rpc::HealthCheck, tonic::Code::Ok, Duration::from_micros(50));
        let refused = metrics.http_refused();
        for reason in [Refused::InFlight, Refused::Memory, Refused::Rate] {
            refused.note(reason);
        }

        let totals = metrics.totals();
        assert_eq!(totals.refused, 2);
        let names: Vec<_> = totals.answered.keys().collect();
        assert_eq!(names, ["/api/x", "feed.Feed/GetFeeds"], "what never occurred is left out");
        let x = &totals.answered["/api/x"];
        assert_eq!((x.count, x.failed, x.buckets[&5000], x.buckets[&50_000]), (3, 1, 2, 1));
        let feeds = &totals.answered["feed.Feed/GetFeeds"];
        assert_eq!((feeds.count, feeds.failed, feeds.buckets[&100]), (2, 1, 1));
        assert_eq!(feeds.buckets.values().sum::<u64>(), 1, "9 s are above the last edge");
    }
}
