//! What a store tells of its shared database, in metrics and in `/status`: its connections, the queue of writes, the
//! transactions. The store says what happens; nothing here acts on it.

use std::fmt::Display;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus::{Histogram, IntCounter, IntGauge};
use serde_json::{Value, json};

use super::metrics::Metrics;
use crate::telemetry::events::{Events, Kind};

/// What a connection to the database is for: the label `connection`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Its statements only ask.
    Reads,
    /// Group commits.
    Writes,
}

impl Purpose {
    const ALL: [Self; 2] = [Self::Reads, Self::Writes];

    /// Returns the word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Reads => "reads",
            Self::Writes => "writes",
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
    store: String,
    hosts: Vec<String>,
    /// Where connections that are lost and come back are noted.
    events: Events,
    links: [Counters; 2],
    failovers: IntCounter,
    queued: IntGauge,
    batches: Histogram,
    commits: [(Commit, Histogram); 3],
    unknown: IntCounter,
    late: IntCounter,
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
    /// Where writes went last.
    writes_to: Option<Server>,
    last: Option<Transaction>,
}

/// A server, as far as it can be told from another.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Server {
    /// Index of its host.
    host: usize,
    /// What it says of itself, if it does: behind one name there may be another server than before.
    identity: Option<String>,
}

impl Server {
    fn differs(&self, other: &Self) -> bool {
        let identities = self.identity.as_ref().zip(other.identity.as_ref());
        self.host != other.host || identities.is_some_and(|(one, other)| one != other)
    }
}

/// The last transaction.
#[derive(Clone, Copy, Debug)]
struct Transaction {
    writes: usize,
    took: Duration,
}

#[derive(Clone, Debug, Default)]
struct LinkState {
    /// Index of the host to which it is connected.
    host: Option<usize>,
    /// Time of the last change, since 1970; `None` before the first.
    since: Option<Duration>,
    last_error: Option<String>,
    /// True from a loss to the next connection.
    away: bool,
}

impl Database {
    /// Returns what is told of the database of a service's store. `hosts` are all that the store may connect to, as
    /// `host:port`.
    #[must_use]
    pub fn new(metrics: &Metrics, store: &str, hosts: Vec<String>) -> Self {
        let families = &metrics.database;
        let links = Purpose::ALL.map(|purpose| Counters {
            connected: hosts
                .iter()
                .map(|host| families.connected.with_label_values(&[store, purpose.name(), host]))
                .collect(),
            ok: families.connects.with_label_values(&[store, purpose.name(), "ok"]),
            error: families.connects.with_label_values(&[store, purpose.name(), "error"]),
        });
        let commit = |outcome: &str| families.commits.with_label_values(&[store, outcome]);
        Self(Arc::new(Inner {
            store: store.to_owned(),
            hosts,
            events: metrics.events.clone(),
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
            late: families.late.with_label_values(&[store]),
            schema: families.schema.with_label_values(&[store]),
            state: Mutex::default(),
        }))
    }

    /// Notes that a connection is open, to the host with this index, and which version of the schema was found there. `identity`
    /// is what the server says of itself: a primary that takes the place of another one says something else.
    pub fn connected(&self, purpose: Purpose, host: usize, identity: Option<String>, schema: i32) {
        self.0.schema.set(schema.into());
        self.0.links[purpose as usize].ok.inc();
        let mut state = self.state();
        if purpose == Purpose::Writes {
            let mut server = Server { host, identity };
            if let Some(before) = state.writes_to.take() {
                if before.differs(&server) {
                    self.0.failovers.inc();
                } else if server.identity.is_none() {
                    server.identity = before.identity;
                }
            }
            state.writes_to = Some(server);
        }
        self.change(&mut state, purpose, Some(host));
        if std::mem::take(&mut state.links[purpose as usize].away) {
            self.note(purpose, "back");
        }
    }

    /// Notes that a connection is lost.
    pub fn lost(&self, purpose: Purpose, error: &dyn Display) {
        let mut state = self.state();
        self.change(&mut state, purpose, None);
        let link = &mut state.links[purpose as usize];
        link.last_error = Some(error.to_string());
        if !std::mem::replace(&mut link.away, true) {
            self.note(purpose, "lost");
        }
    }

    fn note(&self, purpose: Purpose, what: &str) {
        let text = format!(
            "{}: the connection for {} to the shared database is {what}",
            self.0.store,
            purpose.name()
        );
        self.0.events.note(Kind::Database, text);
    }

    /// Counts connections, since two stores of a process may have the same database.
    fn change(&self, state: &mut State, purpose: Purpose, host: Option<usize>) {
        let link = &mut state.links[purpose as usize];
        let gauge = |host: usize| self.0.links[purpose as usize].connected.get(host);
        if let Some(gauge) = link.host.and_then(gauge) {
            gauge.dec();
        }
        if let Some(gauge) = host.and_then(gauge) {
            gauge.inc();
        }
        link.host = host;
        link.since = SystemTime::now().duration_since(UNIX_EPOCH).ok();
    }

    /// Notes that no host could be connected to.
    pub fn connect_failed(&self, purpose: Purpose, error: &dyn Display) {
        self.0.links[purpose as usize].error.inc();
        self.state().links[purpose as usize].last_error = Some(error.to_string());
    }

    /// Returns the gauge of the writes that wait.
    #[must_use]
    pub fn queued(&self) -> &IntGauge {
        &self.0.queued
    }

    /// Notes that a transaction with so many writes has ended.
    pub fn committed(&self, outcome: Commit, writes: usize, took: Duration) {
        self.0.batches.observe(u32::try_from(writes).map_or(f64::INFINITY, f64::from));
        if let Some((_, histogram)) = self.0.commits.iter().find(|(known, _)| *known == outcome) {
            histogram.observe(took.as_secs_f64());
        }
        self.state().last = Some(Transaction { writes, took });
        if outcome == Commit::Unknown {
            self.0.unknown.inc_by(writes as u64);
        }
    }

    /// Notes that so many writes reached the server too late to be made.
    pub fn late(&self, writes: usize) {
        self.0.late.inc_by(writes as u64);
    }

    /// Returns its member of `/status`.
    #[must_use]
    pub fn status(&self) -> Value {
        let inner = &*self.0;
        let state = self.state();
        let links = Purpose::ALL.into_iter().zip(&inner.links).zip(&state.links);
        let connections = links.map(|((purpose, counters), state)| {
            json!({
                "name": purpose.name(),
                "host": state.host.and_then(|host| inner.hosts.get(host)),
                "since": state.since.map(|since| since.as_secs()),
                "connects": counters.ok.get(), "failed_connects": counters.error.get(),
                "last_error": state.last_error,
            })
        });
        json!({
            "hosts": inner.hosts, "connections": connections.collect::<Vec<_>>(),
            "failovers": inner.failovers.get(), "writes_queued": inner.queued.get(),
            "unknown_outcomes": inner.unknown.get(), "late_writes": inner.late.get(), "schema_version": inner.schema.get(),
            "transactions": self.transactions(state.last),
        })
    }

    /// Returns what is told of transactions: how many there were, and the writes and the time of one, on average and the last.
    fn transactions(&self, last: Option<Transaction>) -> Value {
        let batches = &self.0.batches;
        let seconds: f64 = self.0.commits.iter().map(|(_, commits)| commits.get_sample_sum()).sum();
        #[expect(clippy::cast_precision_loss, reason = "exact to 2^53")]
        let mean = |sum: f64| rounded(sum / batches.get_sample_count() as f64);
        json!({
            "count": batches.get_sample_count(),
            "mean": {"writes": mean(batches.get_sample_sum()), "seconds": mean(seconds)},
            "last": last.map(|last| json!({"writes": last.writes, "seconds": rounded(last.took.as_secs_f64())})),
        })
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns a number with six digits behind the point; one that is no number is null in JSON.
fn rounded(number: f64) -> f64 {
    (number * 1e6).round() / 1e6
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
        assert_eq!(
            database.status()["transactions"],
            json!({"count": 0, "mean": {"writes": null, "seconds": null}, "last": null})
        );
        database.connected(Purpose::Reads, 1, None, 3);
        database.connected(Purpose::Writes, 0, None, 3);
        database.lost(Purpose::Writes, &"gone");
        database.connect_failed(Purpose::Writes, &"refused");
        let away = &database.status()["connections"][1];
        assert_eq!((&away["host"], &away["last_error"]), (&Value::Null, &json!("refused")));
        database.connected(Purpose::Writes, 0, None, 3);
        assert_eq!(database.status()["failovers"], 0);
        database.lost(Purpose::Writes, &"gone");
        database.connected(Purpose::Writes, 1, None, 4);
        database.committed(Commit::Unknown, 3, Duration::from_millis(2));
        database.committed(Commit::Ok, 1, Duration::from_millis(4));

        let status = database.status();
        assert_eq!((&status["failovers"], &status["unknown_outcomes"]), (&json!(1), &json!(3)));
        assert_eq!(
            status["transactions"],
            json!({
                "count": 2, "mean": {"writes": 2.0, "seconds": 0.003}, "last": {"writes": 1, "seconds": 0.004}
            })
        );
        let writes = &status["connections"][1];
        assert_eq!((&writes["name"], &writes["host"]), (&json!("writes"), &json!("b:1")));
        assert_eq!((&writes["connects"], &writes["failed_connects"]), (&json!(3), &json!(1)));
        let events: Vec<_> =
            metrics.events.latest().into_iter().map(|event| event.text.into_owned()).collect();
        let writes = |what| format!("feed: the connection for writes to the shared database is {what}");
        assert_eq!(events, ["back", "lost", "back", "lost"].map(writes));
        let page = text(&registry);
        for line in [
            "store_database_connections{connection=\"writes\",host=\"a:1\",store=\"feed\"} 0\n",
            "store_database_connections{connection=\"writes\",host=\"b:1\",store=\"feed\"} 1\n",
            "store_database_connects_total{connection=\"writes\",outcome=\"error\",store=\"feed\"} 1\n",
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

    #[test]
    fn another_server_behind_the_same_name_is_a_failover() {
        let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
        let database = Database::new(&metrics, "feed", vec!["a:1".to_owned()]);
        for (identity, failovers) in
            [(None, 0), (Some("5/1"), 0), (Some("5/1"), 0), (Some("5/2"), 1), (None, 1), (Some("6/1"), 2)]
        {
            database.connected(Purpose::Writes, 0, identity.map(str::to_owned), 1);
            assert_eq!(database.status()["failovers"], failovers, "{identity:?}");
        }
    }
}
