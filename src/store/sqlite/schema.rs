//! The tables of each service, and what a file has to be to hold them.
//!
//! A file's version is SQLite's `user_version`: the number of the scripts in `migrations/` that were run on it. The
//! libraries that run such scripts (refinery, rusqlite_migration) want an older rusqlite than ours, and read the version
//! before they take the lock, so that of two instances that start together one would fail.

use rusqlite::{Connection, Transaction};

/// The tables of one service, as scripts that migrate its file from version n to n + 1.
#[derive(Debug)]
pub struct Schema {
    /// SQLite's `application_id`, so that no service opens the file of another.
    application_id: i32,
    /// One script for each version. Released scripts never change; new ones are added at the end.
    migrations: &'static [&'static str],
}

/// The scripts of a service, in the order of the versions in their names.
macro_rules! migrations {
    ($service:literal: $($name:literal),*) => {
        &[$(include_str!(concat!("migrations/", $service, "/", $name, ".sql"))),*]
    };
}

/// The tables of the feed service.
pub static FEED: Schema =
    Schema { application_id: 0x6d73_6601, migrations: migrations!("feed": "V1__feeds") };

/// The tables of the profile service.
pub static PROFILE: Schema =
    Schema { application_id: 0x6d73_7001, migrations: migrations!("profile": "V1__profiles") };

/// The tables of the topic service.
pub static TOPIC: Schema =
    Schema { application_id: 0x6d73_7401, migrations: migrations!("topic": "V1__topics") };

impl Schema {
    /// Returns the version of a file, 0 for a new one. Changes nothing and takes no write lock.
    ///
    /// # Errors
    /// Those of SQLite, and inside them why the file cannot be this service's.
    pub fn version(&self, db: &Connection) -> rusqlite::Result<Result<usize, String>> {
        let owner: i32 = db.pragma_query_value(None, "application_id", |row| row.get(0))?;
        let version: u32 = db.pragma_query_value(None, "user_version", |row| row.get(0))?;
        let tables: u32 = db.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
        let new = (owner, version, tables) == (0, 0, 0);
        if owner != self.application_id && !new {
            return Ok(Err("is not this service's file: name another one".to_owned()));
        }
        if version as usize > self.migrations.len() {
            return Ok(Err(format!(
                "is of schema version {version}, and this program knows versions up to {}: run the newer program, or put back \
                 a backup from before its start",
                self.migrations.len()
            )));
        }
        Ok(Ok(version as usize))
    }

    /// Returns true if a file of this version has to be migrated.
    pub const fn is_older(&self, version: usize) -> bool {
        version < self.migrations.len()
    }

    /// Migrates a file from `version` to the newest one.
    ///
    /// # Errors
    /// Those of SQLite.
    pub fn migrate(&self, tx: &Transaction<'_>, version: usize) -> rusqlite::Result<()> {
        for script in self.migrations.iter().skip(version) {
            tx.execute_batch(script)?;
        }
        tx.pragma_update(None, "application_id", self.application_id)?;
        tx.pragma_update(None, "user_version", u32::try_from(self.migrations.len()).unwrap_or(u32::MAX))
    }
}

#[cfg(test)]
mod tests;
