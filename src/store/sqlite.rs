//! Records in a SQLite file: WAL, `synchronous=FULL`, one thread that writes and one that reads.
//!
//! Writes are group-committed: the writer takes what has queued during the last commit as one
//! transaction, so 64 callers cost one sync to disk and not 64. No timer is needed. Several processes of
//! one host may share the file.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OptionalExtension, params};
use tokio::sync::{mpsc, oneshot};
use tonic::async_trait;

use super::error::StoreError;
use super::records::{FeedPage, Profile, Topic, TopicPage};
use super::traits::{FeedStore, Health, ProfileStore, TopicStore};
use crate::api::proto::feed::FeedRecord;
use crate::api::proto::topic::TopicSummary;
use crate::api::validate::MAX_ANSWER;

/// Length of a thread's queue, operations. Further callers wait until there is room, each for as long as its deadline
/// allows.
const QUEUE: usize = 1024;
/// Most writes in one transaction, so that the first of them does not wait long.
const BATCH: usize = 256;
/// How long a transaction waits for a lock that another process holds on the same file.
const BUSY: Duration = Duration::from_secs(5);

/// The tables of one service, as scripts that migrate its file from version n to n + 1.
#[derive(Debug)]
pub struct Schema {
    /// SQLite's `application_id`, so that no service opens the file of another.
    application_id: i32,
    /// One script for each version. Released scripts never change; new ones are added at the end.
    migrations: &'static [&'static str],
}

/// The tables of the feed service.
pub static FEED: Schema = Schema {
    application_id: 0x6d73_6601,
    migrations: &["CREATE TABLE feeds (
        user_id INTEGER NOT NULL, id INTEGER NOT NULL, content TEXT NOT NULL,
        PRIMARY KEY (user_id, id)) WITHOUT ROWID, STRICT"],
};

/// The tables of the profile service.
pub static PROFILE: Schema = Schema {
    application_id: 0x6d73_7001,
    migrations: &["CREATE TABLE profiles (
        user_id INTEGER PRIMARY KEY, name TEXT NOT NULL, company TEXT NOT NULL, title TEXT NOT NULL) STRICT"],
};

/// The tables of the topic service.
pub static TOPIC: Schema = Schema {
    application_id: 0x6d73_7401,
    migrations: &["CREATE TABLE topics (
        topic_id INTEGER PRIMARY KEY, subject TEXT NOT NULL, content TEXT NOT NULL) STRICT"],
};

type Write = Box<dyn Job>;
type Read = Box<dyn FnOnce(&Connection) + Send>;

/// One write of a group commit.
trait Job: Send {
    /// Runs inside the transaction. Returns the error, which may be why the transaction has ended.
    fn run(&mut self, db: &Connection) -> Option<StoreError>;
    /// Sends the result to the caller, once the transaction has ended.
    fn reply(self: Box<Self>, committed: Result<(), StoreError>);
}

struct WriteJob<F, T> {
    run: Option<F>,
    result: Result<T, StoreError>,
    reply: oneshot::Sender<Result<T, StoreError>>,
}

impl<F, T> Job for WriteJob<F, T>
where
    F: FnOnce(&Connection) -> rusqlite::Result<T> + Send,
    T: Send,
{
    fn run(&mut self, db: &Connection) -> Option<StoreError> {
        let run = self.run.take()?;
        self.result = run(db).map_err(|e| StoreError::from(&e));
        self.result.as_ref().err().cloned()
    }

    fn reply(self: Box<Self>, committed: Result<(), StoreError>) {
        // the caller may no longer wait; the write has happened all the same
        let _ = self.reply.send(committed.and(self.result));
    }
}

/// A handle to the two threads. They end when it has been dropped and their queues are empty.
#[derive(Debug)]
pub struct Sqlite {
    writes: mpsc::Sender<Write>,
    reads: mpsc::Sender<Read>,
    full: Arc<AtomicBool>,
}

impl Sqlite {
    /// Opens or makes the file and migrates it, under SQLite's own lock.
    ///
    /// # Errors
    /// The text says what is wrong with the file.
    pub fn open(path: &Path, schema: &'static Schema) -> Result<Self, String> {
        let mut db = connect(path).map_err(|e| e.to_string())?;
        migrate(&mut db, schema)?;
        let reader = connect(path).map_err(|e| e.to_string())?;
        reader.pragma_update(None, "query_only", true).map_err(|e| e.to_string())?;

        let (writes, queue) = mpsc::channel(QUEUE);
        let (reads, mut read_queue) = mpsc::channel::<Read>(QUEUE);
        let full = Arc::new(AtomicBool::new(false));
        let seen_full = full.clone();
        spawn("store-write", move || run_writes(&db, queue, &seen_full))?;
        spawn("store-read", move || {
            while let Some(read) = read_queue.blocking_recv() {
                read(&reader);
            }
        })?;
        Ok(Self { writes, reads, full })
    }

    /// Runs one write in a group commit; returns once it is on disk.
    async fn write<T: Send + 'static>(
        &self,
        run: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        let job = Box::new(WriteJob { run: Some(run), result: Err(StoreError::Closed), reply });
        self.writes.send(job).await.map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
    }

    /// Runs one read.
    async fn read<T: Send + 'static>(
        &self,
        run: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel::<Result<T, StoreError>>();
        let job: Read = Box::new(move |db| {
            if !reply.is_closed() {
                let _ = reply.send(run(db).map_err(|e| StoreError::from(&e)));
            }
        });
        self.reads.send(job).await.map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), String> {
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(run);
    thread.map(|_| ()).map_err(|e| e.to_string())
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let db = Connection::open(path)?;
    db.busy_timeout(BUSY)?;
    db.pragma_update(None, "journal_mode", "WAL")?;
    db.pragma_update(None, "synchronous", "FULL")?;
    Ok(db)
}

fn migrate(db: &mut Connection, schema: &Schema) -> Result<(), String> {
    let run = |db: &mut Connection| -> rusqlite::Result<Result<(), String>> {
        let tx = db.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        let owner: i32 = tx.pragma_query_value(None, "application_id", |row| row.get(0))?;
        let version: u32 = tx.pragma_query_value(None, "user_version", |row| row.get(0))?;
        if owner != schema.application_id && (owner, version) != (0, 0) {
            return Ok(Err("is not this service's file".to_owned()));
        }
        if version as usize > schema.migrations.len() {
            return Ok(Err(format!(
                "is of version {version}, this program knows versions up to {}",
                schema.migrations.len()
            )));
        }
        for script in schema.migrations.iter().skip(version as usize) {
            tx.execute_batch(script)?;
        }
        tx.pragma_update(None, "application_id", schema.application_id)?;
        tx.pragma_update(None, "user_version", u32::try_from(schema.migrations.len()).unwrap_or(u32::MAX))?;
        tx.commit().map(Ok)
    };
    run(db).map_err(|e| e.to_string())?
}

fn run_writes(db: &Connection, mut queue: mpsc::Receiver<Write>, full: &AtomicBool) {
    let mut batch = Vec::with_capacity(BATCH);
    while let Some(first) = queue.blocking_recv() {
        batch.push(first);
        while batch.len() < BATCH
            && let Ok(next) = queue.try_recv()
        {
            batch.push(next);
        }
        let committed = commit(db, &mut batch);
        full.store(matches!(committed, Err(StoreError::Full)), Relaxed);
        for job in batch.drain(..) {
            job.reply(committed.clone());
        }
    }
}

/// Runs the batch as one transaction. A statement that fails undoes only itself; a failure that ends
/// the transaction (disk full, I/O error) fails every write of the batch.
fn commit(db: &Connection, batch: &mut [Write]) -> Result<(), StoreError> {
    db.execute_batch("BEGIN IMMEDIATE").map_err(|e| StoreError::from(&e))?;
    for job in batch {
        let error = job.run(db);
        if db.is_autocommit() {
            // SQLite rolls back by itself when the disk is full or fails
            return Err(error.unwrap_or_else(|| StoreError::Failed("the transaction was lost".to_owned())));
        }
    }
    db.execute_batch("COMMIT").map_err(|e| {
        if !db.is_autocommit() {
            let _ = db.execute_batch("ROLLBACK");
        }
        StoreError::from(&e)
    })
}

impl From<&rusqlite::Error> for StoreError {
    fn from(error: &rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Self::Full,
            _ => Self::Failed(error.to_string()),
        }
    }
}

#[async_trait]
impl Health for Sqlite {
    async fn readable(&self) -> Result<(), StoreError> {
        self.read(|db| db.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))).await
    }

    fn warnings(&self) -> Vec<String> {
        let full = self.full.load(Relaxed);
        full.then(|| "store sqlite: disk full, writes are refused".to_owned()).into_iter().collect()
    }
}

#[async_trait]
impl FeedStore for Sqlite {
    async fn create(&self, feed: FeedRecord) -> Result<(), StoreError> {
        self.write(move |db| {
            db.prepare_cached(
                "INSERT INTO feeds (user_id, id, content) VALUES (?1, ?2, ?3)
                 ON CONFLICT (user_id, id) DO UPDATE SET content = excluded.content",
            )?
            .execute(params![feed.user_id, feed.id, feed.content])
            .map(|_| ())
        })
        .await
    }

    async fn newest(&self, user_id: i64, size: u32, before: i64) -> Result<Option<FeedPage>, StoreError> {
        let highest = if before == 0 { i64::MAX } else { before - 1 };
        self.read(move |db| {
            let mut page = FeedPage::default();
            let mut bytes = 0;
            let mut query = db.prepare_cached(
                "SELECT id, content FROM feeds WHERE user_id = ?1 AND id <= ?2 ORDER BY id DESC LIMIT ?3",
            )?;
            let mut rows = query.query(params![user_id, highest, size])?;
            while let Some(row) = rows.next()? {
                let content: String = row.get(1)?;
                bytes += content.len();
                if bytes > MAX_ANSWER && !page.feeds.is_empty() {
                    page.shortened = true;
                    break;
                }
                page.feeds.push(FeedRecord { id: row.get(0)?, user_id, content });
            }
            page.feeds.reverse();
            if page.feeds.is_empty() {
                let mut any = db.prepare_cached("SELECT 1 FROM feeds WHERE user_id = ?1 LIMIT 1")?;
                if !any.exists(params![user_id])? {
                    return Ok(None);
                }
            }
            Ok(Some(page))
        })
        .await
    }

    async fn delete(&self, user_id: i64, id: i64) -> Result<bool, StoreError> {
        self.write(move |db| {
            db.prepare_cached("DELETE FROM feeds WHERE user_id = ?1 AND id = ?2")?
                .execute(params![user_id, id])
                .map(|rows| rows > 0)
        })
        .await
    }
}

#[async_trait]
impl ProfileStore for Sqlite {
    async fn put(&self, profile: Profile) -> Result<(), StoreError> {
        self.write(move |db| {
            db.prepare_cached(
                "INSERT INTO profiles (user_id, name, company, title) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (user_id) DO UPDATE
                 SET name = excluded.name, company = excluded.company, title = excluded.title",
            )?
            .execute(params![profile.user_id, profile.name, profile.company, profile.title])
            .map(|_| ())
        })
        .await
    }

    async fn get(&self, user_id: i64) -> Result<Option<Profile>, StoreError> {
        self.read(move |db| {
            db.prepare_cached("SELECT name, company, title FROM profiles WHERE user_id = ?1")?
                .query_row(params![user_id], |row| {
                    Ok(Profile { user_id, name: row.get(0)?, company: row.get(1)?, title: row.get(2)? })
                })
                .optional()
        })
        .await
    }
}

#[async_trait]
impl TopicStore for Sqlite {
    async fn put(&self, topic: Topic) -> Result<(), StoreError> {
        self.write(move |db| {
            db.prepare_cached(
                "INSERT INTO topics (topic_id, subject, content) VALUES (?1, ?2, ?3)
                 ON CONFLICT (topic_id) DO UPDATE SET subject = excluded.subject, content = excluded.content",
            )?
            .execute(params![topic.topic_id, topic.subject, topic.content])
            .map(|_| ())
        })
        .await
    }

    async fn get(&self, topic_id: i64) -> Result<Option<Topic>, StoreError> {
        self.read(move |db| {
            db.prepare_cached("SELECT subject, content FROM topics WHERE topic_id = ?1")?
                .query_row(params![topic_id], |row| {
                    Ok(Topic { topic_id, subject: row.get(0)?, content: row.get(1)? })
                })
                .optional()
        })
        .await
    }

    async fn list(&self, after: i64, size: u32) -> Result<TopicPage, StoreError> {
        self.read(move |db| {
            let mut query = db.prepare_cached(
                "SELECT topic_id, subject FROM topics WHERE topic_id > ?1 ORDER BY topic_id LIMIT ?2",
            )?;
            let rows = query.query_map(params![after, size.saturating_add(1)], |row| {
                Ok(TopicSummary { topic_id: row.get(0)?, subject: row.get(1)? })
            })?;
            Ok(TopicPage::of(rows.collect::<Result<_, _>>()?, size))
        })
        .await
    }
}
