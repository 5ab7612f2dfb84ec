//! Opens the file of a store, makes it if it is not there, and migrates it.
//!
//! A current file is opened without its write lock: another process that holds the lock, and may be stopped, does not
//! keep an instance from starting.

use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior};

use super::file::Files;
use super::schema::Schema;

/// How long a transaction, or the start, waits for a lock that another process holds on the same file.
pub const BUSY: Duration = Duration::from_secs(5);
/// How often the start looks whether the lock is free.
const LOOK: Duration = Duration::from_millis(20);

/// A file that is open.
pub struct Opened {
    pub writer: Connection,
    pub reader: Connection,
    pub files: Files,
}

/// Opens or makes the file of a store and migrates it, under SQLite's own lock.
///
/// # Errors
/// The text says what is wrong with the file.
pub fn open(path: &Path, schema: &Schema) -> Result<Opened, String> {
    // SQLite takes an absolute path as it stands; `:memory:` and `file:x?mode=memory` mean something else to it
    let path = std::path::absolute(path).map_err(|e| e.to_string())?;
    if path.metadata().is_ok_and(|found| !found.is_file()) {
        return Err("is not a regular file".to_owned());
    }
    let give_up = Instant::now() + BUSY;
    let mut writer = connect(&path).map_err(|e| e.to_string())?;
    // SQLite does not fail if it may not write: it opens the file for reading
    if writer.is_readonly("main").map_err(|e| e.to_string())? {
        return Err("can only be read".to_owned());
    }
    waiting(give_up, || prepare(&mut writer, schema))??;
    let reader = connect(&path).map_err(|e| e.to_string())?;
    waiting(give_up, || reader.pragma_update(None, "query_only", true))?;
    for db in [&writer, &reader] {
        waiting(give_up, || db.pragma_update(None, "synchronous", "FULL"))?;
        // the first transaction opens the files beside the database
        waiting(give_up, || db.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(())))?;
        db.busy_timeout(BUSY).map_err(|e| e.to_string())?;
    }
    let files = Files::of(&path).map_err(|e| e.to_string())?;
    Ok(Opened { writer, reader, files })
}

/// Opens a connection that waits for no lock by itself.
fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_EXRESCODE;
    let db = Connection::open_with_flags(path, flags)?;
    db.busy_timeout(Duration::ZERO)?;
    Ok(db)
}

/// Makes a file a store of the newest version, if it is not one yet.
fn prepare(db: &mut Connection, schema: &Schema) -> rusqlite::Result<Result<(), String>> {
    if let Err(foreign) = schema.version(db)? {
        return Ok(Err(foreign));
    }
    let mode = |row: &rusqlite::Row<'_>| row.get::<_, String>(0);
    if db.pragma_query_value(None, "journal_mode", mode)? != "wal" {
        let now = db.pragma_update_and_check(None, "journal_mode", "WAL", mode)?;
        if now != "wal" {
            return Ok(Err(format!("cannot have a write-ahead log, SQLite chose {now:?}")));
        }
    }
    if schema.version(db)?.is_ok_and(|version| !schema.is_older(version)) {
        return Ok(Ok(()));
    }
    let tx = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    // another process may have migrated it meanwhile
    match schema.version(&tx)? {
        Ok(version) => schema.migrate(&tx, version)?,
        Err(foreign) => return Ok(Err(foreign)),
    }
    tx.commit().map(Ok)
}

/// Repeats a step while another process holds the lock that it needs. SQLite's own wait covers only some of them: a
/// change of the journal mode fails at once.
///
/// # Errors
/// Why the step failed.
fn waiting<T>(give_up: Instant, mut step: impl FnMut() -> rusqlite::Result<T>) -> Result<T, String> {
    loop {
        match step() {
            Ok(done) => return Ok(done),
            Err(error) if is_busy(&error) && Instant::now() < give_up => std::thread::sleep(LOOK),
            Err(error) if is_busy(&error) => {
                return Err(format!("is locked by another process for {BUSY:?}"));
            }
            Err(error) => return Err(error.to_string()),
        }
    }
}

fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
}
