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

/// What to do about a file that cannot be written to. SQLite makes others beside it.
const WRITABLE: &str = "give this user the right to write to it and to its directory";

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
        return Err("is not a regular file: name one, it is made if it is missing".to_owned());
    }
    let give_up = Instant::now() + BUSY;
    let mut writer = connect(&path).map_err(|e| reason(&e, &path))?;
    // SQLite does not fail if it may not write: it opens the file for reading
    if writer.is_readonly("main").map_err(|e| reason(&e, &path))? {
        return Err(format!("can only be read: {WRITABLE}"));
    }
    let waiting = |step: &mut dyn FnMut() -> rusqlite::Result<()>| waiting(give_up, &path, step);
    let mut prepared = Ok(());
    waiting(&mut || {
        prepared = prepare(&mut writer, schema)?;
        Ok(())
    })?;
    prepared?;
    let reader = connect(&path).map_err(|e| reason(&e, &path))?;
    waiting(&mut || reader.pragma_update(None, "query_only", true))?;
    for db in [&writer, &reader] {
        waiting(&mut || db.pragma_update(None, "synchronous", "FULL"))?;
        // the first transaction opens the files beside the database
        waiting(&mut || db.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(())))?;
        db.busy_timeout(BUSY).map_err(|e| reason(&e, &path))?;
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
fn waiting(
    give_up: Instant,
    path: &Path,
    step: &mut dyn FnMut() -> rusqlite::Result<()>,
) -> Result<(), String> {
    loop {
        match step() {
            Ok(done) => return Ok(done),
            Err(error) if is_busy(&error) && Instant::now() < give_up => std::thread::sleep(LOOK),
            Err(error) if is_busy(&error) => {
                return Err(format!(
                    "is locked by another process for {BUSY:?}: end that process, `fuser` with this path names it"
                ));
            }
            Err(error) => return Err(reason(&error, path)),
        }
    }
}

/// Returns why SQLite cannot use a file, and what to do about it.
fn reason(error: &rusqlite::Error, path: &Path) -> String {
    match error.sqlite_error_code() {
        Some(ErrorCode::CannotOpen) if path.parent().is_some_and(|directory| !directory.is_dir()) => {
            "its directory does not exist: make it, or name another file".to_owned()
        }
        Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => {
            format!("{error}: {WRITABLE}")
        }
        Some(ErrorCode::NotADatabase) => {
            format!("{error}: move it away, a new one is made, or put back a backup")
        }
        _ => error.to_string(),
    }
}

fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
}
