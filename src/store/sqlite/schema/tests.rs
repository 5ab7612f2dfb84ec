//! How files of every version become files of the newest one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::super::open::open;
use super::{FEED, PROFILE, Schema, TOPIC};

/// What a file of version 1 holds, as the first program that had a version wrote it.
const FILES: [(&Schema, &str, &str); 3] = [
    (
        &FEED,
        "PRAGMA application_id = 1836279297;
         CREATE TABLE feeds (
            user_id INTEGER NOT NULL, id INTEGER NOT NULL, content TEXT NOT NULL,
            PRIMARY KEY (user_id, id)) WITHOUT ROWID, STRICT;
         INSERT INTO feeds VALUES (7, 1, 'kept')",
        "SELECT content FROM feeds WHERE user_id = 7 AND id = 1",
    ),
    (
        &PROFILE,
        "PRAGMA application_id = 1836281857;
         CREATE TABLE profiles (
            user_id INTEGER PRIMARY KEY, name TEXT NOT NULL, company TEXT NOT NULL, title TEXT NOT NULL) STRICT;
         INSERT INTO profiles VALUES (7, 'kept', 'c', 't')",
        "SELECT name FROM profiles WHERE user_id = 7",
    ),
    (
        &TOPIC,
        "PRAGMA application_id = 1836282881;
         CREATE TABLE topics (
            topic_id INTEGER PRIMARY KEY, subject TEXT NOT NULL, content TEXT NOT NULL) STRICT;
         INSERT INTO topics VALUES (7, 'kept', 'c')",
        "SELECT subject FROM topics WHERE topic_id = 7",
    ),
];

const APPLICATION: i32 = 0x0074_6573;
const FIRST: &str = "CREATE TABLE notes (text TEXT NOT NULL) STRICT; INSERT INTO notes VALUES ('kept')";
/// Leaves a trace each time that it runs, and takes seconds.
const SLOW: &str = "CREATE TABLE runs (at INTEGER) STRICT; INSERT INTO runs VALUES (1);
    CREATE TABLE filling (n INTEGER) STRICT;
    INSERT INTO filling WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 20000000) SELECT n FROM c";
static OLD: Schema = Schema { application_id: APPLICATION, migrations: &[FIRST] };
static SLOW_TO_MIGRATE: Schema = Schema { application_id: APPLICATION, migrations: &[FIRST, SLOW] };
static NEW: Schema = Schema {
    application_id: APPLICATION,
    migrations: &[FIRST, "CREATE TABLE runs (at INTEGER) STRICT", "INSERT INTO runs VALUES (1)"],
};

/// Returns the only row of a query.
fn one<T: rusqlite::types::FromSql>(path: &Path, query: &str) -> T {
    Connection::open(path).unwrap().query_row(query, [], |row| row.get(0)).unwrap()
}

fn version(path: &Path) -> u32 {
    one(path, "PRAGMA user_version")
}

#[test]
fn the_scripts_that_are_compiled_in_are_those_of_the_directory() {
    for (service, schema) in [("feed", &FEED), ("profile", &PROFILE), ("topic", &TOPIC)] {
        let directory =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("src/store/sqlite/migrations").join(service);
        let mut scripts = BTreeMap::new();
        for file in std::fs::read_dir(&directory).unwrap() {
            let file = file.unwrap();
            let name = file.file_name().into_string().unwrap();
            let version = name.strip_prefix('V').and_then(|name| name.split_once("__")).unwrap().0;
            assert_eq!(Path::new(&name).extension().unwrap(), "sql", "{name}");
            scripts.insert(version.parse::<usize>().unwrap(), std::fs::read_to_string(file.path()).unwrap());
        }
        assert_eq!(scripts.keys().copied().collect::<Vec<_>>(), (1..=scripts.len()).collect::<Vec<_>>());
        assert_eq!(scripts.into_values().collect::<Vec<_>>(), schema.migrations, "{service}");
    }
}

#[test]
fn a_file_of_the_first_version_is_taken_over_with_what_it_holds() {
    for (schema, script, query) in FILES {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("old.db");
        let old = Connection::open(&path).unwrap();
        old.pragma_update(None, "journal_mode", "WAL").unwrap();
        old.execute_batch(script).unwrap();
        old.pragma_update(None, "user_version", 1).unwrap();
        let tables = "SELECT group_concat(sql) FROM sqlite_schema ORDER BY name";
        let before: String = one(&path, tables);
        drop(open(&path, schema).unwrap());
        assert_eq!(one::<String>(&path, query), "kept");

        // what a new file gets is the same, so that both go on alike
        let new = dir.path().join("new.db");
        drop(open(&new, schema).unwrap());
        if schema.migrations.len() == 1 {
            assert_eq!((one::<String>(&path, tables), version(&path)), (before, 1));
        }
        let words = |text: String| text.split_whitespace().collect::<String>();
        assert_eq!(words(one(&path, tables)), words(one(&new, tables)));
        assert_eq!(version(&path), version(&new));
    }
}

#[test]
fn a_newer_file_is_refused_as_it_is_with_both_versions() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("feed.db");
    drop(open(&path, &FEED).unwrap());
    let ours = version(&path);
    Connection::open(&path).unwrap().pragma_update(None, "user_version", ours + 3).unwrap();
    let before = std::fs::read(&path).unwrap();
    assert_eq!(
        open(&path, &FEED).err().unwrap(),
        format!(
            "is of schema version {}, and this program knows versions up to {ours}: run the newer program, or put back a \
             backup from before its start",
            ours + 3
        )
    );
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

#[test]
fn instances_that_start_together_migrate_once() {
    for round in 0..10 {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notes.db");
        if round % 2 == 1 {
            drop(open(&path, &OLD).unwrap());
        }
        let together = std::sync::Barrier::new(3);
        std::thread::scope(|scope| {
            let start = || {
                together.wait();
                open(&path, &NEW).map(drop)
            };
            let starts = [(); 3].map(|()| scope.spawn(start));
            assert_eq!(starts.map(|start| start.join().unwrap()), [const { Ok(()) }; 3]);
        });
        assert_eq!(version(&path), 3);
        assert_eq!(one::<u32>(&path, "SELECT count(*) FROM runs"), 1);
        assert_eq!(one::<u32>(&path, "SELECT count(*) FROM notes"), 1);
    }
}

#[test]
fn a_script_that_fails_leaves_the_old_version() {
    static BROKEN: Schema = Schema {
        application_id: APPLICATION,
        migrations: &[FIRST, "CREATE TABLE runs (at INTEGER) STRICT", "INSERT INTO nowhere VALUES (1)"],
    };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notes.db");
    drop(open(&path, &OLD).unwrap());
    let error = open(&path, &BROKEN).err().unwrap();
    assert!(error.contains("nowhere"), "{error}");
    unchanged(&path);
}

/// Expects a file of version 1 with its row, which the program of that version opens.
fn unchanged(path: &Path) {
    assert_eq!(one::<String>(path, "PRAGMA integrity_check"), "ok");
    assert_eq!((version(path), one::<u32>(path, "SELECT count(*) FROM sqlite_schema")), (1, 1));
    drop(open(path, &OLD).unwrap());
    assert_eq!(one::<String>(path, "SELECT text FROM notes"), "kept");
}

/// Killed when dropped.
struct Migrating(Child);

impl Drop for Migrating {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Migrates the file that the variable names. Another test runs this one in a process of its own.
#[test]
#[ignore = "is a part of another test"]
fn migrate_slowly() {
    let path = PathBuf::from(std::env::var_os("MIGRATE").expect("a file"));
    drop(open(&path, &SLOW_TO_MIGRATE).unwrap());
}

#[test]
fn a_migration_that_is_killed_halfway_leaves_the_old_version() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notes.db");
    drop(open(&path, &OLD).unwrap());
    let name = module_path!().split_once("::").unwrap().1;
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--ignored", "--exact", &format!("{name}::migrate_slowly")]).env("MIGRATE", &path);
    let mut migrating = Migrating(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    // pages that no longer fit into memory go to the log while the transaction runs
    let log = dir.path().join("notes.db-wal");
    let begun = Instant::now();
    while log.metadata().map_or(0, |found| found.len()) < 20 << 20 {
        assert!(begun.elapsed() < Duration::from_secs(20), "it migrates");
        assert!(migrating.0.try_wait().unwrap().is_none(), "it ended too soon");
        std::thread::sleep(Duration::from_millis(2));
    }
    drop(migrating);
    unchanged(&path);
    drop(open(&path, &NEW).unwrap());
    assert_eq!((version(&path), one::<u32>(&path, "SELECT count(*) FROM runs")), (3, 1));
}

/// A file that has run a script never runs it again: a script never changes once it is released; a change is a new one.
#[test]
fn released_migrations_stay_as_they_are() {
    let first = [&FEED, &PROFILE, &TOPIC]
        .map(|schema| refinery::Migration::unapplied("V1__first", schema.migrations[0]).unwrap().checksum());
    assert_eq!(first, [7_913_460_226_557_024_482, 10_203_122_614_378_477_753, 17_026_322_049_889_079_191]);
}
