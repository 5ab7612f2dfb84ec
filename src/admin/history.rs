//! What was answered over the last five minutes: a ring of samples, each the difference of two readings of the metrics.
//!
//! A sample is taken every [`PERIOD`], whether or not somebody looks, so that who opens the page sees what has been. It
//! costs less than a millisecond; a process that has answered nothing keeps nothing.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::health::Health;
use crate::client::status::CallTotals;
use crate::client::{Client, status};
use crate::server::totals::{Answered, Totals};

/// Time between two samples.
pub const PERIOD: Duration = Duration::from_secs(5);
/// Samples that are kept: five minutes.
pub const KEPT: usize = 60;
/// The last samples, of which rates are told: a minute.
const RECENT: usize = 12;
/// The last samples that tell whether something goes on now.
const NOW: usize = 2;

/// The quantile that is told of latencies.
const QUANTILE: f64 = 0.99;

/// The samples of a process. Cheap to clone; all clones share them.
#[derive(Clone, Default)]
pub struct History(Arc<Mutex<Ring>>);

#[derive(Default)]
struct Ring {
    /// The last reading, and when it was made.
    last: Option<(Instant, Totals, BTreeMap<&'static str, CallTotals>)>,
    /// The newest is the last one.
    samples: VecDeque<Sample>,
}

/// What happened between two readings.
struct Sample {
    seconds: f64,
    /// By route or rpc; those that were not asked for are left out.
    answered: BTreeMap<Arc<str>, Delta>,
    refused: u64,
    calls: BTreeMap<&'static str, CallTotals>,
}

struct Delta {
    count: u64,
    failed: u64,
    /// Upper edge in microseconds and answers of each bucket that is not empty.
    buckets: Box<[(u64, u64)]>,
}

/// What was answered over the last minute.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Traffic {
    /// Whether it is well: not while requests are refused because of overload, or retries for want of budget.
    pub health: Health,
    /// Why it is not.
    pub reasons: Vec<String>,
    /// Time that the numbers are about, at most a minute.
    pub seconds: u64,
    /// Requests and calls that were refused because of overload.
    pub refused: u64,
    /// The routes and rpcs that were asked for within five minutes.
    pub routes: Vec<Route>,
    /// The calls of each service by this process.
    pub calls: Vec<Calls>,
}

/// The answers of one route or rpc.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Route {
    /// The template of the route, or `package.Service/Method`.
    pub name: String,
    /// Answers per second.
    pub per_second: f64,
    /// Share of them that failed, 0 to 1.
    pub failed: f64,
    /// Time within which 99 % were answered, ms; `None` if nothing was, or above the last bucket.
    pub p99_ms: Option<f64>,
}

/// The calls of one service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Calls {
    /// The service's name.
    pub service: String,
    /// Retries of the last 10 s, by the client that has made the most.
    pub retries: u64,
    /// How many these may be.
    pub budget: u64,
    /// Retries of the last minute that were not made because the budget was used up.
    pub refused_by_budget: u64,
    /// Reads of the last minute that were answered with an earlier answer.
    pub fallbacks: u64,
}

/// Answers and failures per second of one route over the last five minutes, the oldest first.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Line {
    /// All answers.
    pub answers: Vec<f64>,
    /// Those that failed.
    pub failed: Vec<f64>,
}

impl History {
    /// Takes a sample. Returns how many requests were refused because of overload since the one before.
    pub fn sample(&self, totals: Totals, clients: &[Client]) -> u64 {
        // all clients of a process count together
        let calls = clients.iter().flat_map(Client::totals).collect();
        self.ring().add(Instant::now(), totals, calls)
    }

    /// Returns what was answered over the last minute.
    #[must_use]
    pub fn traffic(&self, clients: &[Client]) -> Traffic {
        let mut budgets = BTreeMap::<&str, (u64, u64)>::new();
        let callers = Client::by_caller(clients);
        for (service, (used, size)) in callers.iter().flat_map(|caller| status::budgets(caller)) {
            let fullest = budgets.entry(service).or_insert((used, size));
            // the one of which the larger part is used
            if used * fullest.1 > fullest.0 * size {
                *fullest = (used, size);
            }
        }
        self.ring().traffic(&budgets)
    }

    /// Returns the lines of every route that was asked for within five minutes.
    #[must_use]
    pub fn lines(&self) -> BTreeMap<String, Line> {
        let ring = self.ring();
        let mut lines = BTreeMap::<String, Line>::new();
        for (place, sample) in ring.samples.iter().enumerate() {
            for (name, delta) in &sample.answered {
                let line = lines.entry(name.to_string()).or_default();
                line.answers.resize(place, 0.0);
                line.failed.resize(place, 0.0);
                line.answers.push(rate(delta.count, sample.seconds));
                line.failed.push(rate(delta.failed, sample.seconds));
            }
        }
        for line in lines.values_mut() {
            line.answers.resize(ring.samples.len(), 0.0);
            line.failed.resize(ring.samples.len(), 0.0);
        }
        lines
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ring {
    fn add(&mut self, now: Instant, totals: Totals, calls: BTreeMap<&'static str, CallTotals>) -> u64 {
        let Some((before, old, old_calls)) = self.last.replace((now, totals, calls)) else { return 0 };
        let Some((_, totals, calls)) = &self.last else { return 0 };
        let known: BTreeSet<Arc<str>> =
            self.samples.iter().flat_map(|sample| sample.answered.keys().cloned()).collect();
        let mut answered = BTreeMap::new();
        for (name, new) in &totals.answered {
            if let Some(delta) = delta(old.answered.get(name), new) {
                let shared = known.get(name.as_str()).cloned();
                answered.insert(shared.unwrap_or_else(|| name.as_str().into()), delta);
            }
        }
        let refused = totals.refused.saturating_sub(old.refused);
        let calls = calls.iter().map(|(service, new)| {
            let old = old_calls.get(service).copied().unwrap_or_default();
            let since = CallTotals {
                retries: new.retries.saturating_sub(old.retries),
                refused_by_budget: new.refused_by_budget.saturating_sub(old.refused_by_budget),
                fallbacks: new.fallbacks.saturating_sub(old.fallbacks),
            };
            (*service, since)
        });
        let sample = Sample {
            seconds: now.saturating_duration_since(before).as_secs_f64(),
            answered,
            refused,
            calls: calls.collect(),
        };
        if self.samples.len() >= KEPT {
            self.samples.pop_front();
        }
        self.samples.push_back(sample);
        refused
    }

    fn recent(&self, samples: usize) -> impl Iterator<Item = &Sample> {
        self.samples.iter().rev().take(samples)
    }

    fn traffic(&self, budgets: &BTreeMap<&str, (u64, u64)>) -> Traffic {
        let seconds: f64 = self.recent(RECENT).map(|sample| sample.seconds).sum();
        let names = self.samples.iter().flat_map(|sample| sample.answered.keys());
        let names: BTreeSet<_> = names.collect();
        let routes = names.into_iter().map(|name| self.route(name, seconds));
        let mut calls = BTreeMap::<&str, Calls>::new();
        for (service, (retries, budget)) in budgets {
            let entry = calls.entry(service).or_default();
            (entry.service, entry.retries, entry.budget) = ((*service).to_owned(), *retries, *budget);
        }
        for (service, since) in self.recent(RECENT).flat_map(|sample| &sample.calls) {
            if let Some(entry) = calls.get_mut(service) {
                entry.refused_by_budget += since.refused_by_budget;
                entry.fallbacks += since.fallbacks;
            }
        }
        let mut reasons = Vec::new();
        let refused_now: u64 = self.recent(NOW).map(|sample| sample.refused).sum();
        if refused_now > 0 {
            reasons.push(format!("overloaded: {refused_now} requests were refused in the last 10 s"));
        }
        for service in calls.keys() {
            let of = |sample: &Sample| sample.calls.get(service).map_or(0, |calls| calls.refused_by_budget);
            let refused: u64 = self.recent(NOW).map(of).sum();
            if refused > 0 {
                reasons.push(format!("{service}: the budget of retries is used up, {refused} were not made"));
            }
        }
        Traffic {
            health: if reasons.is_empty() { Health::Ok } else { Health::Warn },
            reasons,
            seconds: Duration::from_secs_f64(seconds).as_secs(),
            refused: self.recent(RECENT).map(|sample| sample.refused).sum(),
            routes: routes.collect(),
            calls: calls.into_values().collect(),
        }
    }

    fn route(&self, name: &Arc<str>, seconds: f64) -> Route {
        let (mut count, mut failed, mut buckets) = (0, 0, BTreeMap::<u64, u64>::new());
        for delta in self.recent(RECENT).filter_map(|sample| sample.answered.get(name)) {
            count += delta.count;
            failed += delta.failed;
            for (edge, answers) in &delta.buckets {
                *buckets.entry(*edge).or_default() += answers;
            }
        }
        Route {
            name: name.to_string(),
            per_second: round(rate(count, seconds)),
            failed: round(rate(failed, count_as_f64(count).max(1.0))),
            p99_ms: quantile(&buckets, count, QUANTILE).map(round),
        }
    }
}

fn delta(old: Option<&Answered>, new: &Answered) -> Option<Delta> {
    let none = Answered::default();
    let old = old.unwrap_or(&none);
    let count = new.count.saturating_sub(old.count);
    let buckets = new.buckets.iter().filter_map(|(edge, answers)| {
        let since = answers.saturating_sub(old.buckets.get(edge).copied().unwrap_or_default());
        (since > 0).then_some((*edge, since))
    });
    let failed = new.failed.saturating_sub(old.failed);
    (count > 0).then(|| Delta { count, failed, buckets: buckets.collect() })
}

/// Returns a quantile of answers, ms, as Prometheus estimates it: as if the answers of a bucket were spread evenly.
fn quantile(buckets: &BTreeMap<u64, u64>, count: u64, quantile: f64) -> Option<f64> {
    let rank = count_as_f64(count) * quantile;
    let mut below = 0;
    // an empty bucket is not there, so the lower edge is that of the one before or less
    for (edge, answers) in buckets {
        let at = below + answers;
        if count > 0 && count_as_f64(at) >= rank {
            let lower = crate::telemetry::metrics::lower_edge(*edge);
            let part = (rank - count_as_f64(below)) / count_as_f64((*answers).max(1));
            let edge = count_as_f64(*edge);
            return Some((edge - lower).mul_add(part, lower) / 1000.0);
        }
        below = at;
    }
    None
}

fn rate(count: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { count_as_f64(count) / seconds } else { 0.0 }
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
const fn count_as_f64(count: u64) -> f64 {
    count as f64
}

/// Rounds to three decimals: enough for people.
fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

#[cfg(test)]
#[path = "history_tests.rs"]
mod tests;
