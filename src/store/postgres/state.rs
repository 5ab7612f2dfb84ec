//! What is known of the connections of a store, for those who use them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_postgres::Statement;

use super::super::error::StoreError;
use super::link::Link;
use super::session::Session;

/// A connection with its prepared statements.
pub struct Ready {
    pub link: Link,
    /// In the order of [`super::service::Service::statements()`].
    pub statements: Vec<Statement>,
    /// The version of the schema.
    pub version: i32,
    /// That of writes, so that it is found again.
    pub session: Option<Session>,
    /// The number of the host.
    pub host: usize,
    pub opened: Instant,
}

/// The state of a connection.
#[derive(Clone)]
pub enum State {
    /// There is none.
    Away(Away),
    /// It can be used.
    Ready(Arc<Ready>),
    /// The database is there, and is not one that this program can work with.
    Unusable(String),
}

/// Since when there is no connection, and why.
#[derive(Clone)]
pub struct Away {
    pub since: Instant,
    pub why: String,
    /// There has been none yet: the schema is older than this program, and not migrated yet. Instances of an older program may
    /// be able to use it.
    pub outdated: bool,
}

impl State {
    /// Returns that there is no connection from now on, and why.
    pub fn away(why: String) -> Self {
        Self::Away(Away { since: Instant::now(), why, outdated: false })
    }

    /// Returns true if the schema is not migrated yet, as far as is known.
    pub const fn is_outdated(&self) -> bool {
        matches!(self, Self::Away(Away { outdated: true, .. }))
    }

    /// Returns why there is no connection, if there is none.
    fn why(&self) -> Option<&str> {
        match self {
            Self::Away(Away { why, .. }) | Self::Unusable(why) => Some(why),
            Self::Ready(_) => None,
        }
    }

    /// Returns the error of a call that finds no connection.
    fn refusal(&self) -> StoreError {
        StoreError::Away(self.why().unwrap_or("the connection was lost").to_owned())
    }
}

/// The current connection, for those who use it. Cheap to clone.
#[derive(Clone)]
pub struct Links {
    own: watch::Receiver<State>,
    /// The other connection of the store.
    other: watch::Receiver<State>,
}

impl Links {
    pub const fn new(own: watch::Receiver<State>, other: watch::Receiver<State>) -> Self {
        Self { own, other }
    }

    /// Returns the state as it is.
    pub fn state(&self) -> State {
        self.own.borrow().clone()
    }

    /// Returns since when there has been no connection that should be there: not before the other one was opened.
    fn missing(&self, since: Instant) -> Instant {
        let opened = ready(&self.other.borrow()).map(|ready| ready.opened);
        opened.map_or(since, |opened| since.max(opened))
    }

    /// Returns false once nobody keeps the connection any more.
    pub fn is_kept(&self) -> bool {
        self.own.has_changed().is_ok()
    }

    /// Waits for a connection, until there has been none for `limit`: a database that stays away is refused at once.
    ///
    /// # Errors
    /// [`StoreError::Away`] with why there is none.
    pub async fn wait(&self, limit: Duration) -> Result<Arc<Ready>, StoreError> {
        if let Some(ready) = ready(&self.own.borrow()) {
            return Ok(ready.clone());
        }
        let limit = match self.state() {
            State::Away(away) => limit.saturating_sub(self.missing(away.since).elapsed()),
            State::Ready(_) | State::Unusable(_) => limit,
        };
        let mut states = self.own.clone();
        let usable = states.wait_for(|state| match state {
            State::Ready(ready) => !ready.link.is_lost(),
            State::Unusable(_) => true,
            State::Away(_) => false,
        });
        let found = tokio::time::timeout(limit, usable).await.map(|found| found.map(|state| state.clone()));
        match found {
            Ok(Ok(State::Ready(ready))) => Ok(ready),
            Ok(Ok(other)) => Err(other.refusal()),
            Ok(Err(_)) => Err(StoreError::Closed),
            Err(_) => Err(self.state().refusal()),
        }
    }
}

/// Returns the connection that a state stands for, unless it is lost.
pub fn ready(state: &State) -> Option<&Arc<Ready>> {
    match state {
        State::Ready(ready) if !ready.link.is_lost() => Some(ready),
        _ => None,
    }
}

/// Returns why the schema is not up to date, by the state of the connection that migrates it.
pub fn not_migrated(writes: &State) -> String {
    let waits = "the connection for writes has not migrated the schema yet";
    writes.why().map_or_else(|| waits.to_owned(), |why| format!("{waits}: {why}"))
}
