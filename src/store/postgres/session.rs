//! The session of the writer on the server, which can outlive its connection.
//!
//! A commit that waits for a synchronous standby is ended by no time limit, nor by the end of its connection. It keeps its
//! session and the records that it has written. If its store opened another session for each such commit, the server
//! would run out of them.

use std::time::{Duration, SystemTime};

use tokio_postgres::Error;

use super::failure::reason;
use super::link::Link;

/// A session of the server.
#[derive(Clone, Debug)]
pub struct Session {
    /// The process that serves it.
    process: i32,
    begun: SystemTime,
}

impl Session {
    /// Returns the session of a connection. `left` is the one that the store had before.
    ///
    /// # Errors
    /// When a commit of `left` still waits for a standby, or the server does not answer within `limit`.
    pub async fn begin(link: &Link, left: Option<&Self>, limit: Duration) -> Result<Self, String> {
        let begun = async {
            if let Some(left) = left
                && left.waits(link).await?
            {
                return Ok(None);
            }
            let own = "SELECT pid, backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()";
            let row = link.client().query_one(own, &[]).await?;
            Ok(Some(Self { process: row.try_get(0)?, begun: row.try_get(1)? }))
        };
        let begun = tokio::time::timeout(limit, begun).await;
        let session = begun.map_err(|_| format!("no answer within {limit:?}"))?;
        let session = session.map_err(|error: Error| reason(&error))?;
        session.ok_or_else(|| "a commit still waits for a standby".to_owned())
    }

    /// Returns true if its commit waits for a standby.
    async fn waits(&self, link: &Link) -> Result<bool, Error> {
        let question = "SELECT 1 FROM pg_stat_activity
                        WHERE pid = $1 AND backend_start = $2 AND wait_event = 'SyncRep'";
        Ok(!link.client().query(question, &[&self.process, &self.begun]).await?.is_empty())
    }
}
