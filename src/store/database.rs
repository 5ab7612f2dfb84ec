//! What a store tells of its shared database, in metrics and in `/status`: its connections, the queue of writes, the
//! transactions. The store says what happens; nothing here acts on it.

use std::fmt::Display;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus::{Histogram, IntCounter, IntGauge};
use serde_json::{Value, json};

use super::metrics::Metrics;

/// A connection to the database: the label `connection`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// Asks.
    Reader,
    /// Writes.
    Writer,
}

impl Link {
    const ALL: [Self; 2] = [Self::Reader, Self::Writer];

    const fn name(self) -> &'static str {
        match self {
            Self::Reader => "reader",
            Self::Writer => "writer",
        }
    }
}

/// How a transaction ended: the label `outcome`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Commit {
    /// It is made.
    Ok,
    /// It is not made.
    Error,
    /// The connection was lost, or the answer did not say for certain that it is made.
    Unknown,
}

/// What is told of the database of one store. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Database(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    hosts: Vec<String>,
    links: [Counters; 2],
    failovers: IntCounter,
    queued: IntGauge,
    batches: Histogram,
    commits: [(Commit, Histogram); 3],
    unknown: IntCounter,
    schema: IntGauge,
    state: Mutex<State>,
}

/// The metrics of one connection.
#[derive(Debug)]
struct Counters {
    /// For each host.
    connected: Vec<IntGauge>,
    ok: IntCounter,
    error: IntCounter,
}

#[derive(Debug, Default)]
struct State {
    links: [LinkState; 2],
    /// The host to which writes went last.
    writes_to: Option<usize>,
}

#[derive(Clone, Debug, Default)]
struct LinkState {
    /// Index of the host to which it is connected.
    host: Option<usize>,
    /// Time of the last change, since 1970; `None` before the first.
    since: Option<Duration>,
    last_error: Option<String>,
}

impl Database {
    /// Returns what is told of the database of a service's store. `hosts` are all that the store may connect to, as
    /// `host:port`.
    #[must_use]
    pub fn new(metrics: &Metrics, store: &str, hosts: Vec<String>) -> Self {
        let families = &metrics.database;
        let links = Link::ALL.map(|link| Counters {
            connected: hosts
                .iter()
                .map(|host| families.connected.with_label_values(&[store, link.name(), host]))
                .collect(),
            ok: families.connects.with_label_values(&[store, link.name(), "ok"]),
            error: families.connects.with_label_values(&[store, link.name(), "error"]),
        });
        let commit = |outcome: &str| families.commits.with_label_values(&[store, outcome]);
        Self(Arc::new(Inner {
            hosts,
            links,
            failovers: families.failovers.with_label_values(&[store]),
            queued: families.queued.with_label_values(&[store]),
            batches: families.batches.with_label_values(&[store]),
            commits: [
                (Commit::Ok, commit("ok")),
                (Commit::Error, commit("error")),
                (Commit::Unknown, commit("unknown")),
            ],
            unknown: families.unknown.with_label_values(&[store]),
            schema: families.schema.with_label_values(&[store]),
            state: Mutex::default(),
        }))
    }

    /// Notes that a connection is open, to the host with this index.
    pub fn connected(&self, link: Link, host: usize) {
        let counters = &self.0.links[link as usize];
        counters.ok.inc();
        for (index, gauge) in counters.connected.iter().enumerate() {
            gauge.set(i64::from(index == host));
        }
        let mut state = self.state();
        if link == Link::Writer && state.writes_to.replace(host).is_some_and(|before| before != host) {
            self.0.failovers.inc();
        }
        state.links[link as usize].change(Some(host));
    }

    /// Notes that a connection is lost.
    pub fn lost(&self, link: Link, error: &dyn Display) {
        for gauge in &self.0.links[link as usize].connected {
            gauge.set(0);
        }
        let mut state = self.state();
        let link = &mut state.links[link as usize];
        link.change(None);
        link.last_error = Some(error.to_string());
    }

    /// Notes that no host could be connected to.
    pub fn connect_failed(&self, link: Link, error: &dyn Display) {
        self.0.links[link as usize].error.inc();
        self.state().links[link as usize].last_error = Some(error.to_string());
    }

    /// Returns the gauge of the writes that wait.
    #[must_use]
    pub fn queued(&self) -> &IntGauge {
        &self.0.queued
    }

    /// Notes that a transaction with so many writes has ended.
    pub fn committed(&self, outcome: Commit, writes: usize, took: Duration) {
        self.0.batches.observe(writes as f64);
        if let Some((_, histogram)) = self.0.commits.iter().find(|(known, _)| *known == outcome) {
            histogram.observe(took.as_secs_f64());
        }
        if outcome == Commit::Unknown {
            self.0.unknown.inc_by(writes as u64);
        }
    }

    /// Notes the version of the schema.
    pub fn schema(&self, version: i64) {
        self.0.schema.set(version);
    }

    /// Returns the warnings of `/readyz`: a connection that is not open.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let state = self.state();
        let away = Link::ALL.into_iter().zip(&state.links).filter(|(_, state)| state.host.is_none());
        away.map(|(link, state)| {
            let (name, reason) = (link.name(), state.last_error.as_deref().unwrap_or("not connected yet"));
            format!("store: the {name} is not connected to the shared database: {reason}")
        })
        .collect()
    }

    /// Returns its member of `/status`.
    #[must_use]
    pub fn status(&self) -> Value {
        let inner = &*self.0;
        let state = self.state();
        let links = Link::ALL.into_iter().zip(&inner.links).zip(&state.links);
        let connections = links.map(|((link, counters), state)| {
            json!({
                "name": link.name(),
                "host": state.host.and_then(|host| inner.hosts.get(host)),
                "since": state.since.map(|since| since.as_secs()),
                "connects": counters.ok.get(), "failed_connects": counters.error.get(),
                "last_error": state.last_error,
            })
        });
        json!({
            "hosts": inner.hosts, "connections": connections.collect::<Vec<_>>(),
            "failovers": inner.failovers.get(), "writes_queued": inner.queued.get(),
            "unknown_outcomes": inner.unknown.get(), "schema_version": inner.schema.get(),
        })
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LinkState {
    fn change(&mut self, host: Option<usize>) {
        self.host = host;
        self.since = SystemTime::now().duration_since(UNIX_EPOCH).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::metrics::text;

    #[test]
    fn a_failover_is_a_writer_on_another_host() {
        let registry = prometheus::Registry::new();
        let metrics = Metrics::register(&registry).unwrap();
        let hosts = ["a:1", "b:1"].map(str::to_owned).to_vec();
        let database = Database::new(&metrics, "feed", hosts);
        assert_eq!(database.warnings().len(), 2, "{:?}", database.warnings());
        database.connected(Link::Reader, 1);
        database.connected(Link::Writer, 0);
        assert!(database.warnings().is_empty());
        database.lost(Link::Writer, &"gone");
        database.connect_failed(Link::Writer, &"refused");
        assert!(database.warnings()[0].contains("writer") && database.warnings()[0].contains("refused"));
        database.connected(Link::Writer, 0);
        assert_eq!(database.status()["failovers"], 0);
        database.lost(Link::Writer, &"gone");
        database.connected(Link::Writer, 1);
        database.committed(Commit::Unknown, 3, Duration::from_millis(2));
        database.committed(Commit::Ok, 1, Duration::from_millis(2));
        database.schema(4);
        let status = database.status();
        assert_eq!((&status["failovers"], &status["unknown_outcomes"]), (&json!(1), &json!(3)));
        let writer = &status["connections"][1];
        assert_eq!((&writer["name"], &writer["host"]), (&json!("writer"), &json!("b:1")));
        assert_eq!((&writer["connects"], &writer["failed_connects"]), (&json!(3), &json!(1)));
        let page = text(&registry);
        for line in [
            "store_database_connected{connection=\"writer\",host=\"a:1\",store=\"feed\"} 0\n",
            "store_database_connected{connection=\"writer\",host=\"b:1\",store=\"feed\"} 1\n",
            "store_database_connects_total{connection=\"writer\",outcome=\"error\",store=\"feed\"} 1\n",
            "store_database_failovers_total{store=\"feed\"} 1\n",
            "store_batch_writes_bucket{store=\"feed\",le=\"1\"} 1\n",
            "store_batch_writes_sum{store=\"feed\"} 4\n",
            "store_commit_duration_seconds_count{outcome=\"unknown\",store=\"feed\"} 1\n",
            "store_unknown_outcomes_total{store=\"feed\"} 3\n",
            "store_schema_version{store=\"feed\"} 4\n",
        ] {
            assert!(page.contains(line), "{line} is not in\n{page}");
        }
    }
}
