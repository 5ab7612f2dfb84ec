//! Which of several servers that can be written to is the primary: a standby that is promoted begins a new timeline, and one
//! whose place it has taken may not know of it. That one still answers reads, with what is out of date.

use std::fmt;
use std::sync::Arc;

use tokio::sync::watch;
use tokio_postgres::SimpleQueryRow;

/// What a server says of itself, as columns of a question: the identifier that it shares with its standbys, and its
/// timeline unless it is a standby.
pub const COLUMNS: &str = "(SELECT system_identifier FROM pg_control_system()), \
    CASE WHEN NOT pg_is_in_recovery() THEN substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8) END";

/// The timeline of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timeline {
    /// The same for a primary and its standbys.
    system: String,
    number: u32,
}

impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.system, self.number)
    }
}

impl Timeline {
    /// Reads it from an answer, from the column `first` on; `None` if the server does not say.
    pub fn read(row: &SimpleQueryRow, first: usize) -> Option<Self> {
        let column = |at| row.try_get(at).ok().flatten();
        let number = u32::from_str_radix(column(first + 1)?, 16).ok()?;
        Some(Self { system: column(first)?.to_owned(), number })
    }

    /// Returns true if a server with this timeline has taken the place of one with `other`.
    pub fn supersedes(&self, other: &Self) -> bool {
        self.system == other.system && self.number > other.number
    }
}

/// The newest timeline that the connections of a store have seen. Cheap to clone; clones share it.
#[derive(Clone, Debug)]
pub struct Newest(Arc<watch::Sender<Option<Timeline>>>);

impl Default for Newest {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(None)))
    }
}

impl Newest {
    /// Takes note of the timeline of a server that can be written to.
    ///
    /// # Errors
    /// When another server has taken its place.
    pub fn admit(&self, timeline: Option<Timeline>) -> Result<(), String> {
        let Some(timeline) = timeline else { return Ok(()) };
        let mut admitted = true;
        self.0.send_if_modified(|newest| {
            admitted = !newest.as_ref().is_some_and(|newest| newest.supersedes(&timeline));
            let is_new = admitted && newest.as_ref() != Some(&timeline);
            if is_new {
                *newest = Some(timeline.clone());
            }
            is_new
        });
        if admitted { Ok(()) } else { Err(superseded(&timeline)) }
    }

    /// Waits until a server is found that has taken the place of one with this timeline; returns that.
    pub async fn superseded(&self, timeline: Option<Timeline>) -> String {
        let mut newest = self.0.subscribe();
        if let Some(timeline) = timeline {
            let is_newer =
                |newest: &Option<Timeline>| newest.as_ref().is_some_and(|it| it.supersedes(&timeline));
            if newest.wait_for(is_newer).await.is_ok() {
                return superseded(&timeline);
            }
        }
        std::future::pending().await
    }
}

fn superseded(timeline: &Timeline) -> String {
    format!("another server has taken its place, whose timeline was {}", timeline.number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_lower_timeline_of_the_same_system_is_refused() {
        let of = |system: &str, number| Some(Timeline { system: system.to_owned(), number });
        let newest = Newest::default();
        for (timeline, admitted) in [
            (of("1", 1), true),
            (of("1", 1), true),
            (of("1", 2), true),
            (of("1", 1), false),
            (of("1", 2), true),
            (None, true),
            (of("1", 10), true),
            (of("1", 9), false),
            // another database, as after a restore
            (of("2", 1), true),
        ] {
            assert_eq!(newest.admit(timeline.clone()).is_ok(), admitted, "{timeline:?}");
        }
        let (one, other) = (newest.superseded(of("2", 1)), async { newest.admit(of("2", 2)) });
        let (told, admitted) = tokio::join!(one, other);
        assert!(told.contains("taken its place") && admitted.is_ok(), "{told}");
    }
}
