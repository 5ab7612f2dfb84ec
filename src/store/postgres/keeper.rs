//! Keeps one connection open: finds the host that can be written to, prepares the connection, watches it, and looks for
//! another one when it is lost.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_postgres::Statement;

use super::super::database::{Database, Purpose};
use super::super::error::StoreError;
use super::dial::Target;
use super::link::Link;
use super::schema::Unusable;
use super::service::Service;
use super::sql::DURABLE;
use crate::backoff::Backoff;
use crate::telemetry::log::LogThrottle;

/// Waits between two rounds over all hosts.
const FIRST_WAIT: Duration = Duration::from_millis(50);
const LONGEST_WAIT: Duration = Duration::from_secs(1);
/// Time between two checks that the server can still be written to: one that was demoted keeps its connections.
const CHECK: Duration = Duration::from_secs(1);
/// What a statement may take beyond the server's own time limit, before the connection is given up.
pub const SLACK: Duration = Duration::from_millis(500);
/// A connection that lasted so long was a good one: the next attempt follows at once.
const LASTED: Duration = Duration::from_secs(1);

/// A connection with its prepared statements.
pub struct Ready {
    pub link: Link,
    /// In the order of [`Service::statements()`].
    pub statements: Vec<Statement>,
    /// The version of the schema.
    pub version: i32,
}

/// The state of a connection.
#[derive(Clone)]
pub enum State {
    /// There is none, since when and why.
    Away(Instant, String),
    /// It can be used.
    Ready(Arc<Ready>),
    /// The database is there, and is not one that this program can work with.
    Unusable(String),
}

/// Returns the settings of a session. Every statement finds its rows by the index of its table, in order; the server must
/// not choose another plan because it has no statistics yet.
const fn plans(purpose: Purpose) -> &'static str {
    match purpose {
        Purpose::Reads => "SET enable_seqscan = off; SET enable_bitmapscan = off; SET enable_sort = off",
        Purpose::Writes => "SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off",
    }
}

/// The current connection, for those who use it. Cheap to clone.
#[derive(Clone)]
pub struct Links(watch::Receiver<State>);

impl Links {
    /// Returns the state as it is.
    pub fn state(&self) -> State {
        self.0.borrow().clone()
    }

    /// Returns false once nobody keeps the connection any more.
    pub fn is_kept(&self) -> bool {
        self.0.has_changed().is_ok()
    }

    /// Waits for a connection, until there has been none for `limit`: a database that stays away is refused at once.
    ///
    /// # Errors
    /// [`StoreError::Away`] with why there is none.
    pub async fn wait(&self, limit: Duration) -> Result<Arc<Ready>, StoreError> {
        let limit = match self.state() {
            State::Away(since, _) => limit.saturating_sub(since.elapsed()),
            State::Ready(_) | State::Unusable(_) => limit,
        };
        let mut states = self.0.clone();
        let usable = states.wait_for(|state| match state {
            State::Ready(ready) => !ready.link.is_lost(),
            State::Unusable(_) => true,
            State::Away(..) => false,
        });
        let found = tokio::time::timeout(limit, usable).await.map(|found| found.map(|state| state.clone()));
        match found {
            Ok(Ok(State::Ready(ready))) => Ok(ready),
            Ok(Ok(State::Unusable(why) | State::Away(_, why))) => Err(StoreError::Away(why)),
            Ok(Err(_)) => Err(StoreError::Closed),
            Err(_) => Err(StoreError::Away(match self.state() {
                State::Away(_, why) | State::Unusable(why) => why,
                State::Ready(_) => "the connection was lost".to_owned(),
            })),
        }
    }
}

/// Keeps one connection.
pub struct Keeper {
    target: Target,
    service: &'static Service,
    purpose: Purpose,
    database: Database,
    state: watch::Sender<State>,
}

impl Keeper {
    /// Returns a keeper, which does nothing until it runs, and what it keeps.
    pub fn new(
        target: Target,
        service: &'static Service,
        purpose: Purpose,
        database: Database,
    ) -> (Self, Links) {
        let away = State::Away(Instant::now(), "not connected yet".to_owned());
        let (state, links) = watch::channel(away);
        (Self { target, service, purpose, database, state }, Links(links))
    }

    /// Connects and stays connected, for ever.
    pub async fn run(self) {
        let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
        let failures = LogThrottle::default();
        let (schema, connection) = (self.service.schema.name, self.purpose.name());
        let mut first = 0;
        loop {
            match self.open(first).await {
                Ok((ready, host, at)) => {
                    // once this one is lost, another host is the likelier one
                    first = at + 1;
                    let (ready, begun) = (Arc::new(ready), Instant::now());
                    tracing::info!(
                        schema,
                        connection,
                        host,
                        version = ready.version,
                        "connected to PostgreSQL"
                    );
                    self.database.connected(self.purpose, at, ready.version);
                    self.state.send_replace(State::Ready(ready.clone()));
                    let why = self.watch(&ready.link).await;
                    self.database.lost(self.purpose, &why);
                    tracing::warn!(
                        schema,
                        connection,
                        host,
                        reason = why,
                        "lost the connection to PostgreSQL"
                    );
                    self.state.send_replace(State::Away(Instant::now(), why));
                    if begun.elapsed() >= LASTED {
                        backoff.reset();
                        continue;
                    }
                }
                Err(unusable) => {
                    let (Unusable::Foreign(reason) | Unusable::Failed(reason)) = &unusable;
                    self.database.connect_failed(self.purpose, reason);
                    if let Some(count) = failures.note() {
                        tracing::warn!(schema, connection, reason, count, "cannot use PostgreSQL, trying on");
                    }
                    self.fail(unusable);
                }
            }
            tokio::time::sleep(backoff.next_wait()).await;
        }
    }

    /// Notes why there is no connection, and keeps the time since when.
    fn fail(&self, unusable: Unusable) {
        self.state.send_modify(|state| {
            let since = if let State::Away(since, _) = state { *since } else { Instant::now() };
            *state = match unusable {
                Unusable::Foreign(why) => State::Unusable(why),
                Unusable::Failed(why) => State::Away(since, why),
            };
        });
    }

    /// Opens a connection, brings the schema up to date, and prepares the statements.
    async fn open(&self, first: usize) -> Result<(Ready, String, usize), Unusable> {
        let (mut link, at) = self.target.connect(first).await.map_err(Unusable::Failed)?;
        let version = self.service.schema.ensure(link.client_mut(), self.target.timeout).await?;
        let prepared = tokio::time::timeout(self.target.timeout, self.prepare(&link)).await;
        let late = |_| Unusable::Failed(format!("no answer within {:?}", self.target.timeout));
        let statements = prepared.map_err(late)??;
        Ok((Ready { link, statements, version }, self.target.host(at), at))
    }

    async fn prepare(&self, link: &Link) -> Result<Vec<Statement>, Unusable> {
        let limit = self.target.timeout.as_millis();
        let plans = plans(self.purpose);
        // Citus needs the values of the parameters for the plan of most statements
        let session = format!(
            "{DURABLE}; SET statement_timeout = {limit}; SET lock_timeout = 0; \
             SET default_transaction_isolation = 'read committed'; \
             SET idle_in_transaction_session_timeout = {limit}; {plans}; \
             SELECT set_config('plan_cache_mode', 'force_generic_plan', false) \
             WHERE NOT EXISTS (SELECT FROM pg_extension WHERE extname = 'citus')"
        );
        link.client().batch_execute(&session).await?;
        let mut statements = Vec::new();
        for text in self.service.statements() {
            statements.push(self.service.schema.prepare(link.client(), &text).await?);
        }
        Ok(statements)
    }

    /// Watches a connection until it is lost; returns why.
    async fn watch(&self, link: &Link) -> String {
        let limit = self.target.timeout + SLACK;
        loop {
            tokio::select! {
                why = link.lost() => return why,
                () = tokio::time::sleep(CHECK) => {}
            }
            match crate::timeout::timeout(limit, link.check()).await {
                Ok(Ok(())) => {}
                Ok(Err(why)) => link.lose(&why),
                Err(_) => link.lose(&format!("no answer within {limit:?}")),
            }
            if matches!(self.purpose, Purpose::Writes) {
                // another setting of the server; if this fails, so does the next check
                let _ = crate::timeout::timeout(limit, link.client().batch_execute(DURABLE)).await;
            }
        }
    }
}
