//! The thread that writes: group commits, and what is no longer wanted once its turn has come.

use std::collections::HashSet;
use std::sync::mpsc as sync_mpsc;
use std::time::{Duration, Instant};

use rusqlite::Connection;
use tokio::runtime::{Handle, Id};
use tokio::sync::{mpsc, oneshot};

use super::super::error::StoreError;
use super::super::progress::Progress;
use super::file::Files;
use crate::server::input;

/// Most writes in one transaction, so that the first of them does not wait long.
const BATCH: usize = 256;
/// Age from which on a write is made only after the connections of this process were read: its caller may have said
/// meanwhile that it is not wanted, and after a pause of the process this thread may run first.
const OLD: Duration = Duration::from_millis(20);
/// Longest time for that, in which the file stays locked.
const ASK: Duration = Duration::from_secs(1);
/// Time for the connections to be read.
const READ_TIME: Duration = Duration::from_millis(10);

pub type Write = Box<dyn Job>;

/// One write of a group commit.
pub trait Job: Send {
    /// Returns true if nobody waits for the write any more: its caller is gone, or its deadline has passed.
    fn is_abandoned(&self) -> bool;
    /// Returns true if the write is [`OLD`], and still waited for.
    fn is_old(&self) -> bool;
    /// Returns the runtime of the caller.
    fn runtime(&self) -> &Handle;
    /// Runs inside the transaction. Returns the error, which may be why the transaction has ended.
    fn run(&mut self, db: &Connection) -> Option<StoreError>;
    /// Sends the result to the caller, once the transaction has ended.
    fn reply(self: Box<Self>, committed: Result<(), StoreError>);
}

/// A write that is queued.
pub struct WriteJob<F, T> {
    run: Option<F>,
    result: Result<T, StoreError>,
    queued: Instant,
    deadline: Instant,
    runtime: Handle,
    reply: oneshot::Sender<Result<T, StoreError>>,
}

impl<F, T> WriteJob<F, T> {
    /// Returns a write that begins before `deadline` or not at all. Must be called inside the caller's runtime.
    pub fn new(run: F, deadline: Instant, reply: oneshot::Sender<Result<T, StoreError>>) -> Self {
        let (queued, runtime) = (Instant::now(), Handle::current());
        Self { run: Some(run), result: Err(StoreError::Late), queued, deadline, runtime, reply }
    }
}

impl<F, T> Job for WriteJob<F, T>
where
    F: FnOnce(&Connection) -> rusqlite::Result<T> + Send,
    T: Send,
{
    fn is_abandoned(&self) -> bool {
        self.reply.is_closed() || self.deadline <= Instant::now()
    }

    fn is_old(&self) -> bool {
        !self.is_abandoned() && self.queued.elapsed() >= OLD
    }

    fn runtime(&self) -> &Handle {
        &self.runtime
    }

    fn run(&mut self, db: &Connection) -> Option<StoreError> {
        let run = self.run.take()?;
        self.result = run(db).map_err(|e| StoreError::from(&e));
        self.result.as_ref().err().cloned()
    }

    fn reply(self: Box<Self>, committed: Result<(), StoreError>) {
        // the caller may no longer wait
        let _ = self.reply.send(committed.and(self.result));
    }
}

/// Writes what is queued until all senders are gone.
pub fn run(db: &Connection, files: &Files, mut queue: mpsc::Receiver<Write>, progress: &Progress) {
    let mut batch = Vec::with_capacity(BATCH);
    while let Some(first) = queue.blocking_recv() {
        batch.push(first);
        while batch.len() < BATCH
            && let Ok(next) = queue.try_recv()
        {
            batch.push(next);
        }
        progress.begin();
        let committed = commit(db, files, &mut batch);
        progress.end(committed.clone().err());
        for job in batch.drain(..) {
            job.reply(committed.clone());
        }
    }
}

/// Waits until the connections of the callers of old writes were read once more, on each thread that has any. Writes whose
/// callers have given up are then abandoned. Returns the runtimes that have not answered in time.
fn read_connections(batch: &[Write]) -> HashSet<Id> {
    let (send, done) = sync_mpsc::channel();
    let mut silent = HashSet::new();
    for runtime in batch.iter().filter(|job| job.is_old()).map(|job| job.runtime()) {
        let id = runtime.id();
        if silent.insert(id) {
            let send = send.clone();
            runtime.spawn(async move {
                // a timer fires after the runtime has looked at its sockets
                tokio::time::sleep(READ_TIME).await;
                input::read_pending().await;
                let _ = send.send(id);
            });
        }
    }
    drop(send);
    let until = Instant::now() + ASK;
    while !silent.is_empty() {
        match done.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(id) => drop(silent.remove(&id)),
            // a runtime that has ended has dropped its calls
            Err(sync_mpsc::RecvTimeoutError::Disconnected) => silent.clear(),
            Err(sync_mpsc::RecvTimeoutError::Timeout) => break,
        }
    }
    silent
}

/// Runs a statement that is kept compiled.
fn execute(db: &Connection, statement: &str) -> rusqlite::Result<usize> {
    db.prepare_cached(statement)?.execute([])
}

/// Runs the batch as one transaction, without the writes that nobody waits for when the lock is there. A statement
/// that fails undoes only itself; a failure that ends the transaction (disk full, I/O error) fails every write of the
/// batch.
fn commit(db: &Connection, files: &Files, batch: &mut [Write]) -> Result<(), StoreError> {
    files.check()?;
    if !db.is_autocommit() {
        // the end of the last transaction failed, too; without this no other could begin
        execute(db, "ROLLBACK").map_err(|e| StoreError::from(&e))?;
    }
    execute(db, "BEGIN IMMEDIATE").map_err(|e| StoreError::from(&e))?;
    let silent = read_connections(batch);
    if !silent.is_empty() {
        tracing::warn!(threads = silent.len(), "a thread does not answer, its writes are not made");
    }
    // from here on no other process writes: what begins now cannot come after a newer write
    let wanted = |job: &&mut Write| !job.is_abandoned() && !silent.contains(&job.runtime().id());
    for job in batch.iter_mut().filter(wanted) {
        let error = job.run(db);
        if db.is_autocommit() {
            // SQLite rolls back by itself when the disk is full or fails
            return Err(error.unwrap_or_else(|| StoreError::Failed("the transaction was lost".to_owned())));
        }
    }
    execute(db, "COMMIT").map_err(|e| {
        if !db.is_autocommit() {
            let _ = execute(db, "ROLLBACK");
        }
        StoreError::from(&e)
    })?;
    files.check()
}
