//! Keeps one connection open: finds the host that can be written to, prepares the connection, watches it, and looks for
//! another one when it is lost.
//!
//! A store has two of these, and each sees the connection of the other. The host that one has found the other tries at
//! once, and a connection that is lost is a reason to check the other. Reads go to the host of the writes: a primary
//! whose place another one has taken may still answer, with what is out of date, and only its commits hang.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_postgres::Statement;

use super::super::database::{Database, Purpose};
use super::dial::Target;
use super::link::Link;
use super::schema::Unusable;
use super::service::Service;
use super::session::Session;
use super::sql::DURABLE;
use super::state::{Away, Links, Ready, State, not_migrated, ready};
use crate::backoff::Backoff;
use crate::telemetry::log::LogThrottle;

/// Waits between two rounds over all hosts. A round takes [`super::dial::CONNECT`] if a host is silent or a standby.
const FIRST_WAIT: Duration = Duration::from_millis(50);
const LONGEST_WAIT: Duration = Duration::from_millis(250);
/// Waits after migrations that wanted a table that others use. Each try holds up whoever comes after it for 0.5 to 1.5 s:
/// soon that is a small part of the time. Each instance has waits of its own, so the tries of several add up.
const FIRST_IN_USE: Duration = Duration::from_secs(2);
const LONGEST_IN_USE: Duration = Duration::from_secs(20);
/// Waits after migrations that failed or took too long, perhaps a minute or two, in which nobody else could use their tables.
/// Each instance has its own here, too. If another process has made them meanwhile, the connection for reads finds that out.
const FIRST_SLOW: Duration = Duration::from_mins(1);
const LONGEST_SLOW: Duration = Duration::from_mins(30);
/// How long reads wait for the connection for writes, which migrates, before they connect anew.
const MIGRATED: Duration = Duration::from_secs(5);
/// Time between two checks that the server can still be written to: one that was demoted keeps its connections.
const CHECK: Duration = Duration::from_secs(1);
/// At each so many checks it is looked whether another host has taken the place of this one: a primary that was cut off
/// from its cluster may not know it.
const LOOK_BESIDE: u32 = 5;
/// What a statement may take beyond the server's own time limit, before the connection is given up.
pub const SLACK: Duration = Duration::from_millis(500);
/// A connection that lasted so long was a good one: the next attempt follows at once.
const LASTED: Duration = Duration::from_secs(1);

/// Longest time of a statement that writes, its waits for records that others hold included; its commit is not.
pub const EXECUTE: Duration = Duration::from_millis(500);
/// Longest wait of a write for one record that another transaction holds.
const LOCK: Duration = Duration::from_millis(100);

/// Returns the settings of a session. Every statement finds its rows by the index of its table, in order; the server must
/// not choose another plan because it has no statistics yet.
const fn plans(purpose: Purpose) -> &'static str {
    match purpose {
        Purpose::Reads => "SET enable_seqscan = off; SET enable_bitmapscan = off; SET enable_sort = off",
        Purpose::Writes => "SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off",
    }
}

/// Keeps one connection.
pub struct Keeper {
    target: Target,
    service: &'static Service,
    purpose: Purpose,
    database: Database,
    state: watch::Sender<State>,
    /// The other connection of the store.
    other: watch::Receiver<State>,
}

impl Keeper {
    /// Returns the keepers of a store's two connections, which do nothing until they run, and what they keep: that for
    /// reads, then that for writes.
    ///
    /// Both begin as if the database were away, and that is no reason to leave the registry: a store opens without it. That
    /// the schema is not migrated is known once a server is reached.
    pub fn pair(target: &Target, service: &'static Service, database: &Database) -> [(Self, Links); 2] {
        let away = || watch::channel(State::away("not connected yet".to_owned()));
        let (reads, writes) = (away(), away());
        let keeper = |purpose,
                      state: watch::Sender<State>,
                      own: &watch::Receiver<State>,
                      other: &watch::Receiver<State>| {
            let (target, database) = (target.clone(), database.clone());
            let links = Links::new(own.clone(), other.clone());
            (Self { target, service, purpose, database, state, other: other.clone() }, links)
        };
        [
            keeper(Purpose::Reads, reads.0, &reads.1, &writes.1),
            keeper(Purpose::Writes, writes.0, &writes.1, &reads.1),
        ]
    }

    /// Connects and stays connected, for ever.
    pub async fn run(self) {
        let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
        let mut tables = Backoff::new(FIRST_IN_USE, LONGEST_IN_USE);
        let mut slow = Backoff::new(FIRST_SLOW, LONGEST_SLOW);
        let failures = LogThrottle::default();
        let (schema, connection) = (self.service.schema.name, self.purpose.name());
        let (mut lost, mut left, mut other) = (None, None, self.other.clone());
        // the migrations wanted a table that others used
        let mut in_use = false;
        loop {
            let opened = self.open(lost, left.as_ref(), in_use, &mut other).await;
            in_use = matches!(opened, Err(Unusable::InUse(_)));
            let wait = match opened {
                Ok(ready) => {
                    lost = Some(ready.host);
                    left.clone_from(&ready.session);
                    let host = self.target.host(ready.host);
                    let ready = Arc::new(ready);
                    tracing::info!(
                        schema,
                        connection,
                        host,
                        version = ready.version,
                        "connected to PostgreSQL"
                    );
                    let identity = ready.link.timeline().map(|timeline| timeline.to_string());
                    self.database.connected(self.purpose, ready.host, identity, ready.version);
                    self.state.send_replace(State::Ready(ready.clone()));
                    let why = self.watch(&ready).await;
                    self.database.lost(self.purpose, &why);
                    tracing::warn!(
                        schema,
                        connection,
                        host,
                        reason = why,
                        "lost the connection to PostgreSQL"
                    );
                    self.state.send_replace(State::away(why));
                    if ready.opened.elapsed() >= LASTED {
                        for waits in [&mut backoff, &mut tables, &mut slow] {
                            waits.reset();
                        }
                        continue;
                    }
                    backoff.next_wait()
                }
                Err(unusable) => {
                    let reason = unusable.reason();
                    self.database.connect_failed(self.purpose, &reason);
                    if let Some(count) = failures.note() {
                        tracing::warn!(schema, connection, reason, count, "cannot use PostgreSQL, trying on");
                    }
                    let wait = match unusable {
                        Unusable::InUse(_) => tables.next_wait(),
                        Unusable::Slow(_) => slow.next_wait(),
                        Unusable::Foreign(_) | Unusable::Older(_) | Unusable::Failed(_) => {
                            backoff.next_wait()
                        }
                    };
                    self.fail(unusable, lost.is_none());
                    wait
                }
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                _ = found(&mut other) => {}
            }
        }
    }

    /// Notes why there is no connection, and keeps the time since when. `fresh` is true if there has been none yet: what was
    /// then found in the database counts until a connection is opened.
    fn fail(&self, unusable: Unusable, fresh: bool) {
        self.state.send_modify(|state| {
            let (since, outdated) = match state {
                State::Away(away) => (away.since, away.outdated),
                State::Ready(_) | State::Unusable(_) => (Instant::now(), false),
            };
            *state = match unusable {
                Unusable::Foreign(why) => State::Unusable(why),
                // nobody has put it right or migrated it meanwhile, as far as is known
                Unusable::Failed(_) if fresh && matches!(state, State::Unusable(_)) => return,
                Unusable::Failed(why) => State::Away(Away { since, why, outdated }),
                Unusable::InUse(why) | Unusable::Slow(why) | Unusable::Older(why) => {
                    State::Away(Away { since, why, outdated: fresh })
                }
            };
        });
    }

    /// Opens a connection, brings the schema up to date, and prepares the statements. The host of the other connection is
    /// tried first, also if it is found meanwhile. But writes do not begin with the host that they have lost: one whose
    /// commits hang still answers reads. `left` is the session that writes had before, and
    /// `in_use` is true if others have used a table that the migrations want.
    async fn open(
        &self,
        lost: Option<usize>,
        left: Option<&Session>,
        in_use: bool,
        other: &mut watch::Receiver<State>,
    ) -> Result<Ready, Unusable> {
        let known = ready(&other.borrow_and_update()).map(|ready| ready.host);
        let known = known.filter(|host| self.purpose == Purpose::Reads || lost != Some(*host));
        // once a connection is lost, another host is the likelier one
        let first = known.unwrap_or_else(|| lost.map_or(0, |lost| lost + 1));
        let connected = tokio::select! {
            biased;
            connected = self.target.connect(first) => connected,
            host = found(other) => self.target.connect(host).await,
        };
        let (mut link, host) = connected.map_err(Unusable::Failed)?;
        let session = match self.purpose {
            Purpose::Reads => None,
            Purpose::Writes => {
                Some(Session::begin(&link, left, self.target.timeout).await.map_err(Unusable::Failed)?)
            }
        };
        let version = self.schema(&mut link, host, lost.is_none(), in_use, other).await?;
        let prepared = tokio::time::timeout(self.target.timeout, self.prepare(&link)).await;
        let late = |_| Unusable::Failed(format!("no answer within {:?}", self.target.timeout));
        let statements = prepared.map_err(late)??;
        Ok(Ready { link, statements, version, session, host, opened: Instant::now() })
    }

    /// Returns the version of the schema of a host once it is up to date. The connection for writes migrates, and that for reads
    /// waits for it; unless that one is open, and so does not migrate: somebody has dropped the tables meanwhile. `fresh` is
    /// true if there has been no connection yet.
    async fn schema(
        &self,
        link: &mut Link,
        host: usize,
        fresh: bool,
        in_use: bool,
        other: &mut watch::Receiver<State>,
    ) -> Result<i32, Unusable> {
        let (schema, limit) = (&self.service.schema, self.target.timeout);
        if let Some(version) = schema.current(link.client(), limit).await? {
            return Ok(version);
        }
        if self.purpose == Purpose::Reads && ready(&other.borrow_and_update()).is_none() {
            match tokio::time::timeout(MIGRATED, found(other)).await {
                Ok(migrated) if migrated == host => {}
                Ok(_) => return Err(Unusable::Failed("writes go to another host".to_owned())),
                Err(_) => return Err(Unusable::Failed(not_migrated(&other.borrow()))),
            }
        }
        // this may take minutes, and older instances go on meanwhile
        if fresh && self.purpose == Purpose::Writes && !self.state.borrow().is_outdated() {
            self.fail(Unusable::Older("the schema is being migrated".to_owned()), fresh);
        }
        let timeline = link.timeline();
        // the server may hang in the midst of it
        tokio::select! {
            version = schema.ensure(link.client_mut(), limit, in_use) => version,
            why = self.target.superseded(timeline) => Err(Unusable::Failed(why)),
        }
    }

    async fn prepare(&self, link: &Link) -> Result<Vec<Statement>, Unusable> {
        let limit = self.target.timeout.as_millis();
        let (execute, lock) = match self.purpose {
            Purpose::Reads => (limit, 0),
            Purpose::Writes => (EXECUTE.as_millis().min(limit), LOCK.as_millis()),
        };
        let plans = plans(self.purpose);
        // Citus needs the values of the parameters for the plan of most statements
        let session = format!(
            "{DURABLE}; SET statement_timeout = {execute}; SET lock_timeout = {lock}; \
             SET default_transaction_isolation = 'read committed'; \
             SET idle_in_transaction_session_timeout = {limit}; RESET idle_session_timeout; \
             RESET client_connection_check_interval; {plans}; \
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

    /// Watches a connection until it is lost, gives it up if it is no good any more; returns why.
    async fn watch(&self, ready: &Ready) -> String {
        let why = tokio::select! {
            why = ready.link.lost() => return why,
            why = self.check(ready) => why,
            why = self.target.superseded(ready.link.timeline()) => why,
            why = self.overtaken(ready.host) => why,
        };
        ready.link.lose(&why);
        why
    }

    /// Checks a connection now and then, and at each change of the other; returns why it cannot be used.
    async fn check(&self, ready: &Ready) -> String {
        let limit = self.target.timeout + SLACK;
        let (mut other, mut checks) = (self.other.clone(), 0_u32);
        other.mark_unchanged();
        loop {
            tokio::select! {
                () = tokio::time::sleep(CHECK) => {}
                Ok(()) = other.changed() => {}
            }
            checks = checks.wrapping_add(1);
            // one of the two connections does it for both
            if self.purpose == Purpose::Reads && checks.is_multiple_of(LOOK_BESIDE) {
                self.target.look_beside(ready.host).await;
            }
            if let Ok(Err(why)) | Err(why) = ready.link.answered(limit, self.target.check(&ready.link)).await
            {
                return why;
            }
            if matches!(self.purpose, Purpose::Writes) {
                // another setting of the server; if this fails, so does the next check
                let _ = crate::timeout::timeout(limit, ready.link.client().batch_execute(DURABLE)).await;
            }
        }
    }

    /// Waits until reads from this host are out of date, because writes go to another one; returns that. Writes stay.
    async fn overtaken(&self, host: usize) -> String {
        if self.purpose == Purpose::Writes {
            return std::future::pending().await;
        }
        let mut other = self.other.clone();
        loop {
            let primary = ready(&other.borrow_and_update()).map(|ready| ready.host);
            if let Some(primary) = primary.filter(|primary| *primary != host) {
                return format!("writes go to {}", self.target.host(primary));
            }
            if other.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }
}

/// Waits until a connection is opened that was not seen yet, and returns the number of its host.
async fn found(state: &mut watch::Receiver<State>) -> usize {
    while state.changed().await.is_ok() {
        if let Some(ready) = ready(&state.borrow_and_update()) {
            return ready.host;
        }
    }
    std::future::pending().await
}

#[cfg(test)]
#[path = "keeper_tests.rs"]
mod tests;
