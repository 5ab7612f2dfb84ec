//! What is special about stores in a file: other users of the file, and names that SQLite reads in its own way.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::super::error::StoreError;
use super::super::traits::{FeedStore as _, Health as _};
use super::{FEED, Sqlite};
use crate::api::proto::feed::FeedRecord;

const MS: Duration = Duration::from_millis(1);

struct Fixture {
    store: Sqlite,
    path: PathBuf,
    _dir: tempfile::TempDir,
}

fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("feed.db");
    Fixture { store: Sqlite::open(&path, &FEED).unwrap(), path, _dir: dir }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_mins(1)
}

fn record(content: &str) -> FeedRecord {
    FeedRecord { id: 1, user_id: 7, content: content.to_owned() }
}

async fn content(store: &Sqlite) -> String {
    store.newest(7, 20, 0).await.unwrap().unwrap().feeds[0].content.clone()
}

/// Takes the write lock, as another program.
fn lock(path: &Path) -> Connection {
    let other = Connection::open(path).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    other
}

#[tokio::test]
async fn a_write_that_nobody_waits_for_behind_a_lock_is_not_made() {
    let Fixture { store, path, _dir } = fixture();
    store.create(record("kept"), soon()).await.unwrap();
    let other = lock(&path);
    // the first of a batch waits for the lock, the next one in the queue
    for _ in 0..2 {
        let gone = tokio::time::timeout(20 * MS, store.create(record("gone"), soon())).await;
        assert!(gone.is_err(), "the lock is held");
    }
    let late = store.create(record("late"), Instant::now() + 50 * MS);
    let wanted = store.delete(7, 9, soon());
    let release = async {
        tokio::time::sleep(100 * MS).await;
        other.execute_batch("COMMIT").unwrap();
    };
    let (late, wanted, ()) = tokio::join!(late, wanted, release);
    assert!(matches!(late, Err(StoreError::Late)), "{late:?}");
    assert!(!wanted.unwrap(), "what is still wanted is done");
    assert_eq!(content(&store).await, "kept");
}

/// Begins a future on a thread of its own, which is then kept busy until the second value is dropped.
fn begin_elsewhere<T: Send + 'static>(
    future: impl Future<Output = T> + Send + 'static,
) -> (std::thread::JoinHandle<T>, std::sync::mpsc::Sender<()>) {
    let (release, blocked) = std::sync::mpsc::channel::<()>();
    let (begun, begins) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let task = tokio::spawn(future);
            tokio::task::yield_now().await;
            begun.send(()).unwrap();
            let _ = blocked.recv();
            task.await.unwrap()
        })
    });
    begins.recv().unwrap();
    (thread, release)
}

/// Whether a caller has given up is asked on its own thread. One that stands still delays the others, and no more.
#[tokio::test]
async fn each_thread_is_asked_for_its_own_callers() {
    let Fixture { store, path, _dir } = fixture();
    store.create(record("kept"), soon()).await.unwrap();
    let store = std::sync::Arc::new(store);
    let other = lock(&path);
    let elsewhere = store.clone();
    let write = async move { elsewhere.create(record("stuck"), soon()).await };
    let (stuck, release) = begin_elsewhere(write);
    let begun = Instant::now();
    let wanted = tokio::spawn({
        let store = store.clone();
        async move { store.delete(7, 9, soon()).await }
    });
    tokio::time::sleep(100 * MS).await;
    other.execute_batch("COMMIT").unwrap();
    assert!(!wanted.await.unwrap().unwrap(), "what another thread wants is done");
    assert!(begun.elapsed() < Duration::from_secs(10));
    drop(release);
    let stuck = tokio::task::spawn_blocking(|| stuck.join().unwrap()).await.unwrap();
    assert!(matches!(stuck, Err(StoreError::Late)), "{stuck:?}");
    assert_eq!(content(&store).await, "kept");
}

#[tokio::test]
async fn a_lock_that_is_held_for_long_is_told() {
    let Fixture { store, path, _dir } = fixture();
    assert_eq!(store.warnings(), [""; 0]);
    let other = lock(&path);
    let told = async {
        tokio::time::sleep(1100 * MS).await;
        let told = store.warnings();
        other.execute_batch("COMMIT").unwrap();
        told
    };
    let (written, told) = tokio::join!(store.create(record("x"), soon()), told);
    written.unwrap();
    assert_eq!(told, ["store sqlite: a write has waited for 1 s"]);
    assert_eq!(store.warnings(), [""; 0]);
}

#[tokio::test]
async fn a_write_that_failed_is_told_until_one_succeeds() {
    let Fixture { store, path, _dir } = fixture();
    let changed = Connection::open(&path).unwrap();
    changed.pragma_update(None, "max_page_count", 1).unwrap();
    // this store's own connection decides about its size
    store.write(soon(), |db| db.pragma_update(None, "max_page_count", 1)).await.unwrap();
    let large = "x".repeat(100_000);
    assert!(matches!(store.create(record(&large), soon()).await, Err(StoreError::Full)));
    assert_eq!(store.warnings(), ["store sqlite: disk full, writes are refused"]);
    store.write(soon(), |db| db.pragma_update(None, "max_page_count", 1000)).await.unwrap();
    store.create(record(&large), soon()).await.unwrap();
    assert_eq!(store.warnings(), [""; 0]);
}

#[tokio::test]
async fn a_store_without_its_threads_is_not_usable() {
    let Fixture { store, _dir, .. } = fixture();
    store.usable().await.unwrap();
    let ended: Result<(), _> = store.write(soon(), |_| panic!("a defect")).await;
    assert!(matches!(ended, Err(StoreError::Closed)));
    assert!(is_closed_soon(&store).await);

    let Fixture { store, _dir, .. } = fixture();
    let ended: Result<(), _> = store.read(|_| panic!("a defect")).await;
    assert!(matches!(ended, Err(StoreError::Closed)));
    assert!(is_closed_soon(&store).await);
}

/// Waits until the thread that panicked has ended.
async fn is_closed_soon(store: &Sqlite) -> bool {
    for _ in 0..1000 {
        if matches!(store.usable().await, Err(StoreError::Closed)) {
            return true;
        }
        tokio::time::sleep(MS).await;
    }
    false
}

#[test]
fn a_path_is_a_file_whatever_it_is_called() {
    let dir = tempfile::tempdir().unwrap();
    for name in [":memory:", "file:x", "file:x?mode=memory", "a b%20#?.db"] {
        let path = dir.path().join(name);
        Sqlite::open(&path, &FEED).unwrap();
        assert!(path.is_file(), "{name}");
    }
    for special in ["/dev/null", dir.path().to_str().unwrap()] {
        assert_eq!(
            Sqlite::open(Path::new(special), &FEED).unwrap_err(),
            "is not a regular file: name one, it is made if it is missing",
            "{special}"
        );
    }
}

#[test]
fn a_foreign_file_is_refused_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("foreign.db");
    Connection::open(&path).unwrap().execute_batch("CREATE TABLE notes (text)").unwrap();
    let before = std::fs::read(&path).unwrap();
    assert_eq!(Sqlite::open(&path, &FEED).unwrap_err(), "is not this service's file: name another one");
    assert_eq!(std::fs::read(&path).unwrap(), before);
    std::fs::write(&path, "no database at all").unwrap();
    assert!(Sqlite::open(&path, &FEED).unwrap_err().contains("not a database"));
}

#[tokio::test]
async fn a_commit_waits_for_the_disk() {
    let Fixture { store, path: _, _dir } = fixture();
    let settings = |db: &Connection| {
        let synchronous: u32 = db.pragma_query_value(None, "synchronous", |row| row.get(0))?;
        let journal: String = db.pragma_query_value(None, "journal_mode", |row| row.get(0))?;
        Ok((synchronous, journal))
    };
    // 2 is FULL: with NORMAL the last commits are lost when the power fails
    let want = (2, "wal".to_owned());
    assert_eq!(store.write(soon(), settings).await.unwrap(), want);
    assert_eq!(store.read(settings).await.unwrap(), want);
}
