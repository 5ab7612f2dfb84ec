//! What an error of PostgreSQL says about the statement and about the connection.

use tokio_postgres::Error;
use tokio_postgres::error::{DbError, Severity, SqlState};

use super::super::error::StoreError;

/// Why a statement failed.
#[derive(Clone, Debug)]
pub enum Failure {
    /// The connection ended, or a time limit passed, before the server said how it went: a write may or may not be there.
    Unknown(String),
    /// The server cannot serve any more, or can no longer be written to. Nothing was changed; another connection is needed.
    Elsewhere(String),
    /// Another transaction was in the way. Nothing was changed; a repetition may succeed.
    Conflict(String),
    /// A row is bad, SQLSTATE class 22 or 23. Nothing was changed. Whose fault it is is not known: a schema that is newer than
    /// this program, a trigger and a partition that is missing say so, too.
    Row(String),
    /// A row breaks a CHECK, a rule of its table about what it holds. Nothing was changed.
    Forbidden(String),
    /// The server's disk is full. Nothing was changed.
    Full,
    /// A record that was read holds what this program cannot read, such as no value. The connection is as good as before.
    Unreadable(String),
    /// Anything else that the server said. Nothing was changed.
    Refused(String),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::of(&error)
    }
}

impl Failure {
    /// Classifies an error by its SQLSTATE.
    pub fn of(error: &Error) -> Self {
        let text = reason(error);
        let Some(said) = error.as_db_error() else {
            return Self::Unknown(text);
        };
        if ends_session(said) {
            // what it had committed before is not told
            return Self::Unknown(text);
        }
        match (said.code(), said.code().code().get(..2).unwrap_or_default()) {
            // a deadlock; a record was held for longer than a statement waits
            (
                &SqlState::T_R_SERIALIZATION_FAILURE
                | &SqlState::T_R_DEADLOCK_DETECTED
                | &SqlState::LOCK_NOT_AVAILABLE
                | &SqlState::QUERY_CANCELED,
                _,
            ) => Self::Conflict(text),
            (&SqlState::DISK_FULL, _) => Self::Full,
            // without a constraint: no partition takes it
            (&SqlState::CHECK_VIOLATION, _) if said.constraint().is_some() => Self::Forbidden(text),
            (_, "22" | "23") => Self::Row(text),
            // a feature that is missing stays so, unless it is that the prepared statement is out of date
            (&SqlState::FEATURE_NOT_SUPPORTED, _) if said.routine() != Some("RevalidateCachedQuery") => {
                Self::Refused(text)
            }
            // a pooler between says so when its connection to the server is gone, also if it calls that a mere error
            (_, "08") => Self::Unknown(text),
            // the table or the schema is gone, and the next connection makes it again; read-only transaction, server
            // shutting down; the prepared statement is gone
            (
                &SqlState::UNDEFINED_TABLE
                | &SqlState::INVALID_SCHEMA_NAME
                | &SqlState::FEATURE_NOT_SUPPORTED,
                _,
            )
            | (_, "25" | "26" | "57") => Self::Elsewhere(text),
            _ => Self::Refused(text),
        }
    }

    /// Returns the failure of a read whose answer has come, and does not hold what it should.
    pub fn unreadable(error: &Error) -> Self {
        Self::Unreadable(crate::api::error::chain(error))
    }

    /// Returns true if the connection should be given up.
    pub const fn ends_connection(&self) -> bool {
        matches!(self, Self::Unknown(_) | Self::Elsewhere(_))
    }
}

impl From<Failure> for StoreError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Unknown(why) => Self::Unknown(why),
            Failure::Elsewhere(why) => Self::Away(why),
            Failure::Full => Self::Full,
            Failure::Unreadable(why) => Self::Unreadable(why),
            Failure::Forbidden(why) => Self::Unacceptable(why),
            Failure::Row(why) | Failure::Conflict(why) | Failure::Refused(why) => Self::Failed(why),
        }
    }
}

/// Returns true if the session is over.
fn ends_session(said: &DbError) -> bool {
    match said.parsed_severity() {
        Some(severity) => matches!(severity, Severity::Fatal | Severity::Panic),
        // no server says it so since PostgreSQL 9.6, but a pooler between does, and its words are English
        None => said.severity() != "ERROR",
    }
}

/// Returns true if the server cannot serve any more, or can no longer be written to. Unlike [`Failure::ends_connection`], it is
/// false for a statement that would fail on any connection.
pub fn is_away(error: &Error) -> bool {
    let of_server = |code: &SqlState| {
        // a pooler between may call the end of a server (57P0x) a mere error
        *code == SqlState::READ_ONLY_SQL_TRANSACTION || code.code().starts_with("57P0")
    };
    matches!(Failure::of(error), Failure::Unknown(_)) || error.code().is_some_and(of_server)
}

/// Returns what the server said, or what happened to the connection. Never a value of a record.
pub fn reason(error: &Error) -> String {
    let Some(said) = error.as_db_error() else {
        return crate::api::error::chain(error);
    };
    let code = said.code().code();
    match (code.get(..2), said.constraint()) {
        (Some("22" | "23"), Some(constraint)) => format!("a row breaks {constraint} (SQLSTATE {code})"),
        (Some("22" | "23"), None) => format!("a row is not accepted (SQLSTATE {code})"),
        _ => format!("{} (SQLSTATE {code})", said.message()),
    }
}

/// Returns true for the warning that a commit is durable on this server only: the wait for a synchronous standby was
/// given up. The statement then succeeds, but a failover may lose it. It names no statement.
pub fn is_unreplicated_commit(notice: &DbError) -> bool {
    // the text is in the language of the server
    notice.routine() == Some("SyncRepWaitForLSN") || notice.message().contains("synchronous replication")
}

#[cfg(test)]
pub mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio_postgres::{Config, NoTls};

    use super::*;

    /// Returns an error as the server tells it. `fields` are those of its message, each with its letter.
    pub async fn told(fields: &[&str]) -> Error {
        let (ours, mut theirs) = tokio::io::duplex(1024);
        let said = [fields.join("\0").as_bytes(), b"\0\0"].concat();
        let length = u8::try_from(4 + said.len()).unwrap();
        let answer = async {
            let asked = theirs.read(&mut [0; 1024]).await.unwrap();
            assert!(asked > 0);
            theirs.write_all(&[b"E\0\0\0", &[length][..], &said].concat()).await.unwrap();
        };
        let mut config = Config::new();
        config.user("app");
        let (refused, ()) = futures_util::join!(config.connect_raw(ours, NoTls), answer);
        refused.err().unwrap()
    }

    /// Returns what an error is taken for.
    async fn failure(fields: &[&str]) -> Failure {
        Failure::of(&told(fields).await)
    }

    #[tokio::test]
    async fn what_was_committed_before_the_end_of_a_session_is_not_known() {
        for fields in [
            &["SFATAL", "VFATAL", "C57P01", "Mterminating connection"][..],
            // in the language of the server
            &["SFATALE", "VFATAL", "C57P01", "Mterminating connection"],
            &["SPANIC", "VPANIC", "CXX000", "Mpanic"],
            // PgBouncer, whose server has died before it could answer; older versions call it an error
            &["SFATAL", "C08P01", "Mserver conn crashed?"],
            &["SERROR", "C08P01", "Mserver conn crashed?"],
            &["SFATAL", "C57P01", "Mserver shutting down"],
            &["SERROR", "VERROR", "C08006", "Mconnection to the node lost"],
        ] {
            let failure = failure(fields).await;
            assert!(matches!(failure, Failure::Unknown(_)), "{fields:?}: {failure:?}");
        }
    }

    #[tokio::test]
    async fn an_error_within_a_session_is_certain() {
        for (code, elsewhere) in
            [("C57P01", true), ("C25006", true), ("C26000", true), ("C42P01", true), ("C42501", false)]
        {
            for fields in [&["SFEHLER", "VERROR", code, "Mno"][..], &["SERROR", code, "Mno"]] {
                let failure = failure(fields).await;
                let certain = if elsewhere {
                    matches!(failure, Failure::Elsewhere(_))
                } else {
                    matches!(failure, Failure::Refused(_))
                };
                assert!(certain, "{fields:?}: {failure:?}");
            }
        }
    }

    #[tokio::test]
    async fn a_statement_that_fails_everywhere_does_not_tell_that_the_server_is_away() {
        for (severity, code, away) in [
            ("FATAL", "25P03", true),
            ("ERROR", "08006", true),
            ("ERROR", "25006", true),
            ("ERROR", "57P01", true),
            ("ERROR", "57P03", true),
            ("ERROR", "57014", false),
            ("ERROR", "42P01", false),
            ("ERROR", "3F000", false),
            ("ERROR", "25001", false),
            ("ERROR", "26000", false),
            ("ERROR", "0A000", false),
        ] {
            let error = told(&[&format!("S{severity}"), &format!("C{code}"), "Mno"]).await;
            assert_eq!(is_away(&error), away, "{code}");
        }
    }
}
