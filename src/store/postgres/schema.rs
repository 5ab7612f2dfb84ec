//! The schema of each service in the database: whose it is, its version, and its migrations.
//!
//! *Shape*: schema `feed` has the table `feeds`, the table `migrations` (one row for each migration that was made), and
//! the table `compatibility` (one row: the version, and the oldest version whose programs can work with it).

use std::time::{Duration, Instant};

use refinery::{Migration, Runner};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{FromSql as _, Type};
use tokio_postgres::{Client, Error, Row, Statement};

use super::failure::{is_away, reason};

/// First key of the advisory locks, "msa"; the second is that of the service.
const LOCK: i32 = 0x006d_7361;
/// Longest wait for another process that migrates, and what the server may take beyond it to say so.
const LOCK_WAIT: Duration = Duration::from_secs(10);
const LOCK_SLACK: Duration = Duration::from_secs(2);
/// Longest wait of one statement of the migrations for a table that others use. Whoever comes later waits behind it, so
/// it is short, and the migrations are tried again.
const TABLE_WAIT: Duration = Duration::from_millis(500);
/// The same when they are tried again while an autovacuum is at work, beyond the server's `deadlock_timeout` (1 s by default):
/// it ends one that others have waited for so long. A table's autovacuum may take hours.
const AUTOVACUUM_WAIT: Duration = Duration::from_millis(200);
/// Longest wait with it. A server whose `deadlock_timeout` is longer is not waited for: the writes of other instances give up
/// after some 0.6 s.
const LONGEST_TABLE_WAIT: Duration = Duration::from_millis(1500);
/// Longest time of one statement of the migrations, on the server.
const STATEMENT: Duration = Duration::from_mins(1);
/// Longest time for all of them.
const LIMIT: Duration = Duration::from_mins(2);
/// Time after which migrations that end with their session are not begun again at once: a limit of the server or of a proxy may
/// have ended them, and would do so again.
const SHORT: Duration = Duration::from_secs(5);
/// Longest pause of this program between two statements of the migrations. Then the server ends the session, and so frees its
/// locks: the host may be gone without a word. A wait for a lock is no pause.
const PAUSE: Duration = Duration::from_secs(10);
/// How often the server looks amid a statement whether its client is still there.
const LOOK: Duration = Duration::from_secs(1);

/// The schema of one service.
#[derive(Debug)]
pub struct Schema {
    /// Its name in the database.
    pub name: &'static str,
    /// Second key of its advisory lock.
    pub lock: i32,
    /// `V<version>__<name>` and the script of each migration, oldest first.
    pub migrations: &'static [(&'static str, &'static str)],
}

/// What was found in the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// No schema, or an empty one.
    Nothing,
    /// The schema of this service.
    Version(i32),
}

/// Why a schema cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unusable {
    /// It is not this service's, or needs a newer program. Waiting does not help.
    Foreign(String),
    /// The migrations want a table that others use. Whoever comes after them waits behind them, so they are not tried again at
    /// once.
    InUse(String),
    /// The migrations fail, take longer than they may, or another process has been making them for long. They keep others out
    /// meanwhile, so they are tried again rarely.
    Slow(String),
    /// The schema is older, and there is no migrating it: the role must not.
    Older(String),
    /// The server failed.
    Failed(String),
}

impl Unusable {
    /// Returns why.
    pub fn reason(&self) -> &str {
        match self {
            Self::Foreign(why)
            | Self::InUse(why)
            | Self::Slow(why)
            | Self::Older(why)
            | Self::Failed(why) => why,
        }
    }
}

impl From<Error> for Unusable {
    fn from(error: Error) -> Self {
        Self::Failed(reason(&error))
    }
}

/// Returns why a table cannot be used, by the error of a statement that names it.
fn unusable(table: &str, error: &Error) -> Unusable {
    let shapes = [
        SqlState::UNDEFINED_TABLE,
        SqlState::UNDEFINED_COLUMN,
        SqlState::UNDEFINED_FUNCTION,
        SqlState::DATATYPE_MISMATCH,
    ];
    let has_other_shape = error.code().is_some_and(|code| shapes.contains(code));
    if has_other_shape {
        return foreign(table, &reason(error));
    }
    // the server has answered, and says the same to every instance of this program
    let refused = error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE);
    if refused { Unusable::Older(reason(error)) } else { Unusable::Failed(reason(error)) }
}

fn foreign(table: &str, why: &str) -> Unusable {
    Unusable::Foreign(format!("{table} is not as this service makes it: {why}"))
}

impl Schema {
    /// Returns the newest version that this program knows.
    pub fn version(&self) -> i32 {
        i32::try_from(self.migrations.len()).unwrap_or(i32::MAX)
    }

    /// Brings the schema to the version of this program if it is older, once among all processes that try. Returns the
    /// version that is there. A current schema takes no lock, and no rights but to read and write its tables. `limit` is for the look at what is there.
    /// `again` is true if others have used a table until now. The limits of the session are those of the migrations afterwards.
    ///
    /// # Errors
    /// [`Unusable`].
    pub async fn ensure(&self, client: &mut Client, limit: Duration, again: bool) -> Result<i32, Unusable> {
        if let Some(version) = self.current(client, limit).await? {
            return Ok(version);
        }
        let migrated = tokio::time::timeout(LIMIT, self.migrate_locked(client, again)).await;
        migrated.map_err(|_| Unusable::Slow(format!("the migrations took longer than {LIMIT:?}")))?
    }

    /// Returns the version that is there, if it has no need of a migration. Asks for it within `limit`.
    ///
    /// # Errors
    /// [`Unusable`].
    pub async fn current(&self, client: &Client, limit: Duration) -> Result<Option<i32>, Unusable> {
        let found = tokio::time::timeout(limit, self.find(client)).await;
        match found.map_err(|_| Unusable::Failed(format!("no answer within {limit:?}")))?? {
            Found::Version(version) if version >= self.version() => Ok(Some(version)),
            Found::Version(_) | Found::Nothing => Ok(None),
        }
    }

    /// Looks what is in the database, and whether this program can work with it.
    pub async fn find(&self, client: &Client) -> Result<Found, Unusable> {
        let name = self.name;
        let encoding = client.query_one("SELECT current_setting('server_encoding')", &[]).await?;
        let encoding: String = encoding.try_get(0)?;
        if encoding != "UTF8" {
            return Err(Unusable::Foreign(format!(
                "the database has the encoding {encoding}, which cannot hold every text: make it with UTF8"
            )));
        }
        let question = "SELECT c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
                        WHERE n.nspname = $1 AND c.relkind IN ('r', 'p', 'v', 'm', 'f')";
        let tables = client.query(question, &[&name]).await?;
        let tables = tables.iter().map(|row| row.try_get(0)).collect::<Result<Vec<String>, Error>>()?;
        if tables.is_empty() {
            return Ok(Found::Nothing);
        }
        if !tables.iter().any(|table| table == "migrations") {
            return Err(Unusable::Foreign(format!(
                "schema {name} has tables, but none with migrations: it is not this service's"
            )));
        }
        let newest = self.numbers(client, "migrations", ["max(version)"]).await?;
        let version = newest.first().and_then(|[version]| *version).unwrap_or(0);
        if version > self.version() && !self.is_compatible(client, version).await? {
            return Err(Unusable::Foreign(format!(
                "schema {name} is of version {version}, this program knows versions up to {}: run the newer program",
                self.version()
            )));
        }
        Ok(Found::Version(version))
    }

    /// Returns true if a newer version says of itself that programs of this version can work with it.
    async fn is_compatible(&self, client: &Client, version: i32) -> Result<bool, Unusable> {
        let rows = self.numbers(client, "compatibility", ["version", "oldest"]).await?;
        let [[Some(said), Some(oldest)]] = rows.as_slice() else { return Ok(false) };
        Ok(*said == version && *oldest <= self.version())
    }

    /// Returns columns of one of its tables that are numbers.
    async fn numbers<const N: usize>(
        &self,
        client: &Client,
        table: &str,
        columns: [&str; N],
    ) -> Result<Vec<[Option<i32>; N]>, Unusable> {
        let (table, columns) = (format!("{}.{table}", self.name), columns.join(", "));
        let rows = client.query(&format!("SELECT {columns} FROM {table}"), &[]).await;
        let rows = rows.map_err(|error| unusable(&table, &error))?;
        let numbers = |row: &Row| -> Result<[Option<i32>; N], Error> {
            let mut numbers = [None; N];
            for (at, number) in numbers.iter_mut().enumerate() {
                *number = row.try_get(at)?;
            }
            Ok(numbers)
        };
        let read = rows.iter().map(numbers).collect::<Result<_, _>>();
        read.map_err(|error| foreign(&table, &crate::api::error::chain(&error)))
    }

    /// Looks whether the rows of the migrations that were made are as refinery writes them: it panics on others, such as ones
    /// that somebody has put right by hand.
    async fn check_history(&self, client: &Client) -> Result<(), Unusable> {
        let table = format!("{}.migrations", self.name);
        let rows =
            client.query(&format!("SELECT version, name, applied_on, checksum FROM {table}"), &[]).await;
        for row in rows.map_err(|error| unusable(&table, &error))? {
            check_made(&row).map_err(|why| foreign(&table, &why))?;
        }
        Ok(())
    }

    /// Prepares a statement, and looks whether the columns that it returns have the types that this program reads: then
    /// no answer can be one that it does not understand.
    pub async fn prepare(&self, client: &Client, text: &str) -> Result<Statement, Unusable> {
        let tables = format!("a table of schema {}", self.name);
        let statement = client.prepare(text).await.map_err(|error| unusable(&tables, &error))?;
        let wrong = statement.columns().iter().find(|column| !is_read_as(column.name(), column.type_()));
        wrong.map_or(Ok(statement.clone()), |column| {
            Err(foreign(&tables, &format!("column {} has the type {}", column.name(), column.type_())))
        })
    }

    /// Migrates while no other process does.
    async fn migrate_locked(&self, client: &mut Client, again: bool) -> Result<i32, Unusable> {
        let (wait, limit, pause) = (LOCK_WAIT.as_millis(), STATEMENT.as_millis(), PAUSE.as_millis());
        let lock = async {
            // a server whose client is gone, or has given up, must not go on with the lock
            let session = format!(
                "SET statement_timeout = {limit}; SET lock_timeout = {wait}; \
                 SET idle_session_timeout = {pause}; SET idle_in_transaction_session_timeout = {pause}"
            );
            client.batch_execute(&session).await?;
            // a server on Windows cannot do that
            let check = format!("SET client_connection_check_interval = {}", LOOK.as_millis());
            let _ = client.batch_execute(&check).await;
            let lock = client.execute("SELECT pg_advisory_lock($1, $2)", &[&LOCK, &self.lock]).await;
            lock.map_err(|error| not_locked(&error))
        };
        let locked = tokio::time::timeout(LOCK_WAIT + LOCK_SLACK, lock).await;
        locked.map_err(|_| {
            Unusable::Failed("no answer to the question for the lock of the migrations".to_owned())
        })??;
        let wait = if again { self.autovacuum_wait(client).await? } else { TABLE_WAIT };
        client.batch_execute(&format!("SET lock_timeout = {}", wait.as_millis())).await?;
        let migrated = self.migrate(client).await;
        // the caller gives a failed connection up, and the lock with it
        migrated?;
        client.execute("SELECT pg_advisory_unlock($1, $2)", &[&LOCK, &self.lock]).await?;
        match self.find(client).await? {
            Found::Version(version) => Ok(version),
            Found::Nothing => Err(Unusable::Failed("the migrations left nothing".to_owned())),
        }
    }

    /// Returns how long a statement waits for a table: long enough for the server to end an autovacuum of one, if that is what
    /// may be in the way. Nobody else is ended for who waits, so a longer wait would hold up others for nothing.
    async fn autovacuum_wait(&self, client: &Client) -> Result<Duration, Error> {
        // every role may read this. An autovacuum belongs to no role, unlike a VACUUM by hand; one that prevents a wraparound is
        // not ended
        let question = "SELECT setting::int8 FROM pg_settings WHERE name = 'deadlock_timeout' AND EXISTS (
                            SELECT FROM pg_locks l JOIN pg_class c ON c.oid = l.relation
                                JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_stat_activity a ON a.pid = l.pid
                            WHERE l.granted AND l.mode = 'ShareUpdateExclusiveLock' AND n.nspname = $1
                                AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
                                AND a.usesysid IS NULL
                                AND age(c.relfrozenxid) < current_setting('autovacuum_freeze_max_age')::int8
                                AND mxid_age(c.relminmxid)
                                    < current_setting('autovacuum_multixact_freeze_max_age')::int8)";
        let row = client.query_opt(question, &[&self.name]).await?;
        let timeout: Option<i64> = row.map(|row| row.try_get(0)).transpose()?;
        Ok(table_wait(timeout.map(|timeout| Duration::from_millis(u64::try_from(timeout).unwrap_or(0)))))
    }

    async fn migrate(&self, client: &mut Client) -> Result<(), Unusable> {
        let name = self.name;
        // another process may have done it meanwhile
        match self.find(client).await? {
            Found::Version(version) if version >= self.version() => return Ok(()),
            Found::Version(_) => self.check_history(client).await?,
            Found::Nothing => {
                let there = "SELECT 1 FROM pg_namespace WHERE nspname = $1";
                if client.query(there, &[&name]).await?.is_empty() {
                    let made = client.batch_execute(&format!("CREATE SCHEMA {name}")).await;
                    made.map_err(|error| older(&error, reason(&error)))?;
                }
            }
        }
        let migrations = self.migrations.iter().map(|(name, script)| Migration::unapplied(name, script));
        let migrations: Vec<_> = migrations
            .collect::<Result<_, _>>()
            .map_err(|error: refinery::Error| Unusable::Foreign(error.to_string()))?;
        let mut runner = Runner::new(&migrations).set_grouped(true);
        runner.set_migration_table_name(format!("{name}.migrations"));
        let begun = Instant::now();
        let report = runner.run_async(client).await.map_err(|error| not_migrated(&error, begun.elapsed()))?;
        for migration in report.applied_migrations() {
            tracing::info!(schema = name, %migration, "migrated");
        }
        Ok(())
    }
}

/// Returns how long a statement waits for a table. `ends_vacuum` is after how long the server ends an autovacuum for it, if
/// one is at work.
fn table_wait(ends_vacuum: Option<Duration>) -> Duration {
    let enough = ends_vacuum.map(|timeout| timeout + AUTOVACUUM_WAIT);
    enough.filter(|wait| *wait <= LONGEST_TABLE_WAIT).map_or(TABLE_WAIT, |wait| wait.max(TABLE_WAIT))
}

/// Returns true if a column of an answer has the type that its name stands for: ids are numbers, contents are texts.
fn is_read_as(name: &str, found: &Type) -> bool {
    match name {
        "user_id" | "id" | "topic_id" | "int8" | "count" => *found == Type::INT8,
        "is_rest" => *found == Type::BOOL,
        // SELECT 1
        "?column?" => *found == Type::INT4,
        _ => String::accepts(found),
    }
}

/// Looks whether a row tells of a migration that was made.
///
/// # Errors
/// Which column does not.
fn check_made(row: &Row) -> Result<(), String> {
    let version: i32 = row.try_get("version").map_err(|_| "column version holds no number".to_owned())?;
    let check = |column: &str, what: &str, is_right: fn(&str) -> bool| {
        let text = row.try_get::<_, Option<&str>>(column).ok().flatten();
        let wrong = || format!("column {column} of version {version} holds no {what}");
        text.filter(|text| is_right(text)).map(|_| ()).ok_or_else(wrong)
    };
    check("name", "text", |_| true)?;
    check("applied_on", "time such as 2030-01-01T00:00:00Z", is_time)?;
    check("checksum", "number", |text| text.parse::<u64>().is_ok())
}

fn is_time(text: &str) -> bool {
    OffsetDateTime::parse(text, &Rfc3339).is_ok()
}

/// Returns why the lock of the migrations was not got.
fn not_locked(error: &Error) -> Unusable {
    let why = format!("another process migrates: {}", reason(error));
    match error.code() {
        // the connection for reads finds out when that one has done it
        Some(&SqlState::LOCK_NOT_AVAILABLE) => Unusable::Slow(why),
        _ => older(error, why),
    }
}

/// Returns why the migrations have failed, after so long.
fn not_migrated(error: &refinery::Error, took: Duration) -> Unusable {
    let why = crate::api::error::chain(error);
    let refinery::error::Kind::Connection(_, cause) = error.kind() else { return Unusable::Foreign(why) };
    let Some(error) = cause.downcast_ref::<Error>() else { return Unusable::Failed(why) };
    statement_failed(error, why, took)
}

/// Returns why the migrations have failed, by the error of a statement.
fn statement_failed(error: &Error, why: String, took: Duration) -> Unusable {
    match error.code() {
        Some(&SqlState::LOCK_NOT_AVAILABLE) => Unusable::InUse(format!("others use a table: {why}")),
        Some(&SqlState::QUERY_CANCELED) => {
            Unusable::Slow(format!("a migration took longer than {STATEMENT:?}, or was cancelled: {why}"))
        }
        // it may be the migrations that cost the server its time, or the session its life
        _ if is_away(error) && took < SHORT => Unusable::Failed(why),
        // others were kept out meanwhile
        _ => Unusable::Slow(why),
    }
}

/// Returns why the schema stays as it is. `error` is what was said, if the server is still there.
fn older(error: &Error, why: String) -> Unusable {
    if is_away(error) { Unusable::Failed(why) } else { Unusable::Older(why) }
}

#[cfg(test)]
mod tests {
    use super::super::failure::tests::told;
    use super::*;

    #[tokio::test]
    async fn whoever_has_waited_long_for_another_that_migrates_asks_again_rarely() {
        let timeout = told(&["SERROR", "C55P03", "Mcanceling statement due to lock timeout"]).await;
        let why = "another process migrates: canceling statement due to lock timeout (SQLSTATE 55P03)";
        assert_eq!(not_locked(&timeout), Unusable::Slow(why.to_owned()));
        let refused = told(&["SERROR", "C42501", "Mpermission denied"]).await;
        assert!(matches!(not_locked(&refused), Unusable::Older(_)));
        let gone = told(&["SFATAL", "C57P01", "Mterminating connection"]).await;
        assert!(matches!(not_locked(&gone), Unusable::Failed(_)));
    }

    #[tokio::test]
    async fn migrations_that_cost_the_server_time_are_not_begun_again_at_once() {
        let failed = async |severity: &str, code: &str, took: u64| {
            let error = told(&[&format!("S{severity}"), &format!("C{code}"), "Mno"]).await;
            statement_failed(&error, String::new(), Duration::from_secs(took))
        };
        assert!(matches!(failed("FATAL", "57P01", 1).await, Unusable::Failed(_)));
        assert!(matches!(failed("FATAL", "57P01", 30).await, Unusable::Slow(_)));
        // `transaction_timeout` of PostgreSQL 17, `query_timeout` of PgBouncer
        assert!(matches!(failed("FATAL", "25P04", 30).await, Unusable::Slow(_)));
        assert!(matches!(failed("FATAL", "08P01", 30).await, Unusable::Slow(_)));
        assert!(matches!(failed("ERROR", "42P01", 0).await, Unusable::Slow(_)));
        assert!(matches!(failed("ERROR", "55P03", 0).await, Unusable::InUse(_)));
    }

    #[test]
    fn a_statement_waits_longer_only_where_that_ends_an_autovacuum() {
        let ms = Duration::from_millis;
        assert_eq!(table_wait(None), ms(500));
        for (deadlock_timeout, wait) in [(10, 500), (1000, 1200), (1300, 1500), (1301, 500), (10_000, 500)] {
            assert_eq!(table_wait(Some(ms(deadlock_timeout))), ms(wait), "{deadlock_timeout}");
        }
    }
}
