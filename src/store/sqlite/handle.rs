//! The handle of a store, by which calls reach its two threads.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot};
use tonic::async_trait;

use super::super::error::StoreError;
use super::super::progress::Progress;
use super::super::traits::Health;
use super::file::Files;
use super::open::{Opened, open};
use super::schema::Schema;
use super::writer::{self, Write, WriteJob};

/// Length of a thread's queue, operations. Further callers wait until there is room, each for as long as its deadline
/// allows.
const QUEUE: usize = 1024;

type Read = Box<dyn FnOnce(&Connection) + Send>;

/// A handle to the two threads. They end when it has been dropped and their queues are empty.
#[derive(Debug)]
pub struct Sqlite {
    writes: mpsc::Sender<Write>,
    reads: mpsc::Sender<Read>,
    files: Arc<Files>,
    progress: Arc<Progress>,
}

impl Sqlite {
    /// Opens or makes the file and migrates it. Waits for the locks of others, for up to 5 s.
    ///
    /// # Errors
    /// The text says what is wrong with the file.
    pub fn open(path: &Path, schema: &'static Schema) -> Result<Self, String> {
        let Opened { writer, reader, files } = open(path, schema)?;
        let (writes, queue) = mpsc::channel(QUEUE);
        let (reads, mut read_queue) = mpsc::channel::<Read>(QUEUE);
        let (files, progress) = (Arc::new(files), Arc::new(Progress::default()));
        let (watched, told) = (files.clone(), progress.clone());
        spawn("store-write", move || writer::run(&writer, &watched, queue, &told))?;
        spawn("store-read", move || {
            while let Some(read) = read_queue.blocking_recv() {
                read(&reader);
            }
        })?;
        Ok(Self { writes, reads, files, progress })
    }

    /// Runs one write in a group commit; returns once it is on disk. A write that has not begun by its deadline is not
    /// made.
    pub async fn write<T: Send + 'static>(
        &self,
        deadline: Instant,
        run: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        let job = Box::new(WriteJob::new(run, deadline, reply));
        self.writes.send(job).await.map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
    }

    /// Runs one read.
    pub async fn read<T: Send + 'static>(
        &self,
        run: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.on_reader(move |db| run(db).map_err(|e| StoreError::from(&e))).await
    }

    async fn on_reader<T: Send + 'static>(
        &self,
        run: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel::<Result<T, StoreError>>();
        let job: Read = Box::new(move |db| {
            if !reply.is_closed() {
                let _ = reply.send(run(db));
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

#[async_trait]
impl Health for Sqlite {
    async fn usable(&self) -> Result<(), StoreError> {
        if self.writes.is_closed() {
            return Err(StoreError::Closed);
        }
        let files = self.files.clone();
        // looking a name up may hang as reading does
        self.on_reader(move |db| {
            files.check()?;
            let read = db.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()));
            read.map_err(|e| StoreError::from(&e))
        })
        .await
    }

    fn warnings(&self) -> Vec<String> {
        self.progress.warnings().into_iter().map(|warning| format!("store sqlite: {warning}")).collect()
    }
}
