//! The task that writes: what has queued goes into one transaction, each write gets its own result, and what is no longer
//! wanted once its turn has come is not made.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::{Handle, Id};
use tokio::sync::{mpsc, oneshot};

use super::super::database::{Commit, Database};
use super::super::error::StoreError;
use super::super::progress::Progress;
use super::batch::Write;
use super::commit::{BEGIN, Fate, LEAST, Times, absent, commit};
use super::failure::Failure;
use super::keeper::SLACK;
use super::state::{Links, Ready};
use crate::server::input;
use crate::telemetry::log::LogThrottle;

/// Most writes in one transaction, so that the first of them does not wait long.
const BATCH: usize = 256;
/// Most text in one transaction, bytes; the last write of it may exceed this.
const BATCH_BYTES: usize = 2 * 1024 * 1024;
/// Age from which on a write is made only after the connections of this process were read: its caller may have said
/// meanwhile that it is not wanted, and after a pause of the process this task may run first.
const OLD: Duration = Duration::from_millis(20);
/// Time for the connections to be read.
const READ_TIME: Duration = Duration::from_millis(10);
/// Longest time for that.
const ASK: Duration = Duration::from_secs(1);
/// How long a write or a read waits for a connection.
pub const CONNECTION_WAIT: Duration = Duration::from_secs(1);
/// How often writes of a batch are sent again because they came too late, or the server could not write any more.
const REPEATS: u32 = 5;
/// How long a write is repeated because another transaction holds its record. Others wait meanwhile.
const BUSY: Duration = Duration::from_millis(500);
/// Into so many parts a batch is divided to find the record that another transaction holds, and for how long.
const DIVIDE: usize = 16;
const SEARCH: Duration = Duration::from_secs(2);

/// A write that is queued.
pub struct Job {
    write: Write,
    queued: Instant,
    deadline: Instant,
    /// That of the caller.
    runtime: Handle,
    /// Gets whether the record is there, or was until it was deleted.
    reply: oneshot::Sender<Result<bool, StoreError>>,
}

impl Job {
    /// Returns a write that begins before `deadline` or not at all. Must be called inside the caller's runtime.
    pub fn new(write: Write, deadline: Instant, reply: oneshot::Sender<Result<bool, StoreError>>) -> Self {
        Self { write, queued: Instant::now(), deadline, runtime: Handle::current(), reply }
    }

    /// Returns true if the write is not to be made any more: its caller is gone, or its deadline has passed or is too near.
    fn is_abandoned(&self) -> bool {
        self.reply.is_closed() || self.deadline <= Instant::now() + 2 * LEAST
    }

    fn is_old(&self) -> bool {
        !self.is_abandoned() && self.queued.elapsed() >= OLD
    }

    /// Sends the result to the caller, who may no longer wait.
    fn reply(self, result: Result<bool, StoreError>) {
        let _ = self.reply.send(result);
    }
}

/// Writes what is queued.
pub struct Writer {
    pub links: Links,
    /// Longest time of one commit.
    pub timeout: Duration,
    /// Longest time of one statement, which the session has as its limit.
    pub execute: Duration,
    pub progress: Arc<Progress>,
    pub database: Database,
    pub late: LogThrottle,
}

impl Writer {
    /// Writes until all senders are gone. What has queued during one commit goes into the next.
    pub async fn run(self, mut queue: mpsc::Receiver<Job>) {
        while let Some(first) = queue.recv().await {
            let (mut batch, mut bytes) = (Vec::new(), first.write.bytes());
            batch.push(first);
            while batch.len() < BATCH
                && bytes < BATCH_BYTES
                && let Ok(next) = queue.try_recv()
            {
                bytes += next.write.bytes();
                batch.push(next);
            }
            self.database.queued().sub(i64::try_from(batch.len()).unwrap_or(i64::MAX));
            self.progress.begin();
            // what the connection is about is told there
            let failure = self.write(batch).await;
            let failure =
                failure.filter(|error| !matches!(error, StoreError::Away(_) | StoreError::Unknown(_)));
            self.progress.end(failure);
        }
    }

    /// Makes the writes of a batch and answers them all. Returns the last failure.
    async fn write(&self, batch: Vec<Job>) -> Option<StoreError> {
        // what has queued while there was no connection has waited already
        let waited = batch.first().map_or(Duration::ZERO, |job| job.queued.elapsed());
        let mut work = Work {
            parts: divide(batch),
            patience: CONNECTION_WAIT.saturating_sub(waited),
            repeats: 0,
            busy: None,
            failed: None,
        };
        while let Some(part) = work.parts.pop_front() {
            let ready = match self.links.wait(work.patience).await {
                Ok(ready) => ready,
                Err(error) => {
                    work.refuse(part, error);
                    continue;
                }
            };
            let part = wanted(part).await;
            if part.is_empty() {
                continue;
            }
            let Some(times) = self.times(&ready, &part).filter(|_| !ready.link.is_lost()) else {
                // nothing was sent: the connection was lost meanwhile, or one of them has no time left
                work.parts.push_front(part);
                continue;
            };
            let (begun, limit) = (Instant::now(), self.timeout + SLACK);
            let writes: Vec<_> = part.iter().map(|job| &job.write).collect();
            let committed = tokio::time::timeout(limit, commit(&ready, &writes, &times, self.execute)).await;
            let silent = |_| Err(Failure::Unknown(format!("no answer within {limit:?}")));
            let committed = committed.unwrap_or_else(silent);
            let outcome = match &committed {
                Ok(_) => Commit::Ok,
                Err(Failure::Unknown(_)) => Commit::Unknown,
                Err(_) => Commit::Error,
            };
            self.database.committed(outcome, part.len(), begun.elapsed());
            match committed {
                Ok(fates) => self.answer(&ready, part, fates, &mut work).await,
                Err(failure) => work.fail(&ready, part, failure, times.over()),
            }
        }
        work.failed
    }

    /// Returns the times of a transaction of these writes that is sent now; `None` if one of them has no time left, or the
    /// server's clock is not known.
    fn times(&self, ready: &Ready, jobs: &[Job]) -> Option<Times> {
        let deadline = jobs.iter().map(|job| job.deadline).min()?;
        Times::new(Instant::now(), deadline, self.execute, ready.link.clock()?)
    }

    /// Answers writes whose transaction was committed, and sees to those of which more has to be known.
    async fn answer(&self, ready: &Ready, jobs: Vec<Job>, fates: Vec<Fate>, work: &mut Work) {
        let (mut again, mut unfound) = (Vec::new(), Vec::new());
        for (job, fate) in jobs.into_iter().zip(fates) {
            match fate {
                Fate::Made => job.reply(Ok(true)),
                Fate::Late => again.push(job),
                Fate::Unfound => unfound.push(job),
            }
        }
        self.note_late(again.len());
        if !again.is_empty()
            && let Ok(Err(why)) = tokio::time::timeout(SLACK, ready.link.check()).await
        {
            // they may have been late because of what was known of the server's clock: it has been asked again
            ready.link.lose(&why);
        }
        if !unfound.is_empty() {
            self.answer_deletions(ready, unfound, work).await;
        }
        work.again(again);
    }

    /// Tells that writes came too late. One is what a pause of a machine costs; if they never end, each write takes several
    /// tries, or fails.
    fn note_late(&self, writes: usize) {
        if writes == 0 {
            return;
        }
        self.database.late(writes);
        if let Some(count) = self.late.note() {
            let limit_ms = BEGIN.as_millis();
            tracing::warn!(writes, limit_ms, count, "writes reach PostgreSQL too late, and are sent again");
        }
    }

    /// Answers deletions that found no record, unless one is about to appear.
    async fn answer_deletions(&self, ready: &Ready, jobs: Vec<Job>, work: &mut Work) {
        let Some(times) = self.times(ready, &jobs) else { return work.parts.push_front(jobs) };
        let deletions: Vec<_> = jobs.iter().map(|job| &job.write).collect();
        let limit = self.timeout + SLACK;
        let absent = tokio::time::timeout(limit, absent(ready, &deletions, &times)).await;
        let absent =
            absent.unwrap_or_else(|_| Err(Failure::Elsewhere(format!("no answer within {limit:?}"))));
        match absent {
            Ok(keys) => {
                let (absent, there): (Vec<_>, Vec<_>) =
                    jobs.into_iter().partition(|job| keys.contains(&job.write.key()));
                for job in absent {
                    job.reply(Ok(false));
                }
                work.again(there);
            }
            // the question changes nothing
            Err(Failure::Unknown(why)) => work.fail(ready, jobs, Failure::Elsewhere(why), times.over()),
            Err(failure) => work.fail(ready, jobs, failure, times.over()),
        }
    }
}

/// What is left to do of a batch.
struct Work {
    /// The writes, in the order in which they are to be made. A deletion is the last write of its key in its part.
    parts: VecDeque<Vec<Job>>,
    /// How long a connection is waited for.
    patience: Duration,
    repeats: u32,
    /// Since when other transactions have held records.
    busy: Option<Instant>,
    failed: Option<StoreError>,
}

impl Work {
    fn refuse(&mut self, jobs: Vec<Job>, error: StoreError) {
        refuse(jobs, &error);
        // a record that is forbidden says nothing of the database
        if !matches!(error, StoreError::Unacceptable(_)) {
            self.failed = Some(error);
        }
    }

    /// Takes writes that came too late, and may have time for another try.
    fn again(&mut self, jobs: Vec<Job>) {
        if jobs.is_empty() {
            return;
        }
        if self.repeats < REPEATS {
            self.repeats += 1;
            self.parts.push_front(jobs);
        } else {
            refuse(jobs, &StoreError::Late);
        }
    }

    /// Takes the writes of a transaction that has failed: they are repeated, or answered. Nothing of it begins after `over`.
    fn fail(&mut self, ready: &Ready, jobs: Vec<Job>, failure: Failure, over: Instant) {
        if failure.ends_connection() {
            ready.link.lose(&StoreError::from(failure.clone()).to_string());
            self.patience = CONNECTION_WAIT;
        }
        match failure {
            // find the bad row, and write the others
            Failure::Row(_) | Failure::Forbidden(_) if jobs.len() > 1 => self.divide(jobs, 2),
            Failure::Conflict(_) if self.has_patience(jobs.len()) => self.divide(jobs, DIVIDE),
            Failure::Elsewhere(_) if self.repeats < REPEATS => {
                self.repeats += 1;
                self.parts.push_front(jobs);
            }
            Failure::Unknown(reason) => {
                tracing::warn!(writes = jobs.len(), reason, "it is not known whether writes were made");
                let error = StoreError::Unknown(reason);
                self.failed = Some(error.clone());
                // who is told writes again, and that must be the later one
                tokio::spawn(async move {
                    tokio::time::sleep_until(over.into()).await;
                    refuse(jobs, &error);
                });
            }
            failure => self.refuse(jobs, failure.into()),
        }
    }

    /// Returns true if so many writes are tried again although another transaction holds a record of theirs.
    fn has_patience(&mut self, writes: usize) -> bool {
        let held = self.busy.get_or_insert_with(Instant::now).elapsed();
        held < if writes == 1 { BUSY } else { SEARCH }
    }

    /// Puts writes back in so many parts.
    fn divide(&mut self, mut jobs: Vec<Job>, parts: usize) {
        let size = jobs.len().div_ceil(parts).max(1);
        while !jobs.is_empty() {
            let last = jobs.split_off((jobs.len() - 1) / size * size);
            self.parts.push_front(last);
        }
    }
}

/// Divides a batch, so that a deletion is the last write of its key in its part: if it finds nothing, it is repeated.
fn divide(batch: Vec<Job>) -> VecDeque<Vec<Job>> {
    if batch.len() == 1 {
        return VecDeque::from([batch]);
    }
    let (mut parts, mut deleted) = (VecDeque::new(), HashSet::new());
    let mut part = Vec::with_capacity(batch.len());
    for job in batch {
        if deleted.contains(&job.write.key()) {
            deleted.clear();
            parts.push_back(std::mem::take(&mut part));
        }
        if matches!(job.write, Write::DeleteFeed { .. }) {
            deleted.insert(job.write.key());
        }
        part.push(job);
    }
    parts.push_back(part);
    parts
}

/// Returns the writes that are still wanted now that their transaction begins, and answers the others.
async fn wanted(mut jobs: Vec<Job>) -> Vec<Job> {
    let silent = read_connections(&jobs).await;
    let is_abandoned = |job: &Job| job.is_abandoned() || silent.contains(&job.runtime.id());
    if jobs.iter().any(is_abandoned) {
        let abandoned: Vec<_> = jobs.extract_if(.., |job| is_abandoned(job)).collect();
        refuse(abandoned, &StoreError::Late);
    }
    jobs
}

/// Waits until the connections of the callers of old writes were read once more, on each thread that has any. Returns the
/// runtimes that have not answered in time.
async fn read_connections(jobs: &[Job]) -> HashSet<Id> {
    let (mut silent, mut asked) = (HashSet::new(), Vec::new());
    for runtime in jobs.iter().filter(|job| job.is_old()).map(|job| &job.runtime) {
        if silent.insert(runtime.id()) {
            let read = runtime.spawn(async {
                // a timer fires after the runtime has looked at its sockets
                tokio::time::sleep(READ_TIME).await;
                input::read_pending().await;
            });
            asked.push((runtime.id(), read));
        }
    }
    let until = tokio::time::Instant::now() + ASK;
    for (id, read) in asked {
        // a runtime that has ended has dropped its calls
        if tokio::time::timeout_at(until, read).await.is_ok() {
            silent.remove(&id);
        }
    }
    silent
}

/// Answers writes that were not made, or of which nobody knows.
fn refuse(jobs: Vec<Job>, error: &StoreError) {
    for job in jobs {
        job.reply(Err(error.clone()));
    }
}

#[cfg(test)]
#[path = "writer_tests.rs"]
mod tests;
