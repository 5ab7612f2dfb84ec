//! The task that writes: group commits, and what is no longer wanted once its turn has come.

use std::collections::{HashSet, VecDeque};
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};
use tokio_postgres::{Error, Row};

use super::super::database::{Commit, Database};
use super::super::error::StoreError;
use super::super::progress::Progress;
use super::batch::{Command, Key, Write, commands};
use super::failure::Failure;
use super::keeper::{Links, Ready, SLACK};
use super::service::DELETE;
use crate::server::input;

/// Most writes in one transaction, so that the first of them does not wait long.
const BATCH: usize = 256;
/// Most text in one transaction, bytes; the last write of it may exceed this.
const BATCH_BYTES: usize = 2 * 1024 * 1024;
/// Age from which on a write is made only after the connections of this process were read: its caller may have said
/// meanwhile that it is not wanted, and after a pause of the process this task may run first.
const OLD: Duration = Duration::from_millis(20);
/// Time for the connections to be read.
const READ_TIME: Duration = Duration::from_millis(10);
/// How long a write or a read waits for a connection.
pub const CONNECTION_WAIT: Duration = Duration::from_secs(1);
/// How often a batch is repeated because other transactions were in the way, or the server could not write any more.
const REPEATS: u32 = 5;

/// A write that is queued.
pub struct Job {
    write: Write,
    queued: Instant,
    deadline: Instant,
    /// Gets whether the record is there, or was until it was deleted.
    reply: oneshot::Sender<Result<bool, StoreError>>,
}

impl Job {
    /// Returns a write that begins before `deadline` or not at all.
    pub fn new(write: Write, deadline: Instant, reply: oneshot::Sender<Result<bool, StoreError>>) -> Self {
        Self { write, queued: Instant::now(), deadline, reply }
    }

    /// Returns true if nobody waits for the write any more: its caller is gone, or its deadline has passed.
    fn is_abandoned(&self) -> bool {
        self.reply.is_closed() || self.deadline <= Instant::now()
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
    /// Longest time of one statement, which the server enforces.
    pub timeout: Duration,
    pub progress: Arc<Progress>,
    pub database: Database,
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
        let mut patience = CONNECTION_WAIT.saturating_sub(waited);
        let mut parts = VecDeque::from([batch]);
        let (mut repeats, mut failed) = (0, None);
        while let Some(part) = parts.pop_front() {
            let ready = match self.links.wait(patience).await {
                Ok(ready) => ready,
                Err(error) => {
                    refuse(part, &error);
                    failed = Some(error);
                    continue;
                }
            };
            let part = wanted(part).await;
            if part.is_empty() {
                continue;
            }
            let begun = Instant::now();
            let committed = self.commit(&ready, &part).await;
            let outcome = match &committed {
                Ok(_) => Commit::Ok,
                Err(Failure::Unknown(_)) => Commit::Unknown,
                Err(_) => Commit::Error,
            };
            self.database.committed(outcome, part.len(), begun.elapsed());
            let failure = match committed {
                Ok(made) => {
                    answer(&ready, part, &made);
                    continue;
                }
                Err(failure) => failure,
            };
            if failure.ends_connection() {
                ready.link.lose(&StoreError::from(failure.clone()).to_string());
                patience = CONNECTION_WAIT;
            }
            match failure {
                // find the bad row, and write the others
                Failure::Row(_) if part.len() > 1 => {
                    let mut first = part;
                    let second = first.split_off(first.len() / 2);
                    parts.push_front(second);
                    parts.push_front(first);
                }
                Failure::Conflict(_) | Failure::Elsewhere(_) if repeats < REPEATS => {
                    repeats += 1;
                    parts.push_front(part);
                }
                failure => {
                    let error = StoreError::from(failure);
                    if let StoreError::Unknown(reason) = &error {
                        tracing::warn!(
                            writes = part.len(),
                            reason,
                            "it is not known whether writes were made"
                        );
                    }
                    refuse(part, &error);
                    failed = Some(error);
                }
            }
        }
        failed
    }

    /// Makes writes in one transaction. Returns the keys that are there, or were until they were deleted, by statement.
    ///
    /// # Errors
    /// Why the transaction failed.
    async fn commit(&self, ready: &Ready, jobs: &[Job]) -> Result<Made, Failure> {
        let writes: Vec<_> =
            jobs.iter().map(|job| (&job.write, ready.link.server_time(job.deadline))).collect();
        let commands = commands(&writes);
        let limit = self.timeout + SLACK;
        let answers = tokio::time::timeout(limit, execute(ready, &commands)).await;
        let answers = answers.map_err(|_| Failure::Unknown(format!("no answer within {limit:?}")))?;
        // an error that the server has told is certain, whatever happened to the connection afterwards
        let mut unknown = None;
        let mut made = Made { writes: HashSet::with_capacity(jobs.len()), late: HashSet::new() };
        for answer in answers {
            match answer {
                Ok((command, rows)) => made.note(command, &rows, jobs),
                Err(error) => match Failure::of(&error) {
                    failure @ Failure::Unknown(_) => unknown = unknown.or(Some(failure)),
                    failure => return Err(failure),
                },
            }
        }
        match unknown {
            None => Ok(made),
            Some(failure) => Err(ready.link.reason().map_or(failure, Failure::Unknown)),
        }
    }
}

/// What a transaction has done.
struct Made {
    /// The numbers of the writes whose record is there, or was until it was deleted.
    writes: HashSet<usize>,
    /// The numbers of the writes that came too late for the server's clock.
    late: HashSet<usize>,
}

impl Made {
    /// Takes in the keys that one statement returned.
    fn note(&mut self, command: Option<&Command>, rows: &[Row], jobs: &[Job]) {
        let Some(command) = command else { return };
        let keys: HashSet<Key> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        for number in &command.writes {
            if jobs.get(*number).is_some_and(|job| keys.contains(&job.write.key())) {
                self.writes.insert(*number);
            } else if command.statement != DELETE {
                self.late.insert(*number);
            }
        }
    }
}

/// Sends the statements at once, as one transaction, and waits for every answer. A single statement is its own transaction.
async fn execute<'a>(
    ready: &'a Ready,
    commands: &'a [Command],
) -> Vec<Result<(Option<&'a Command>, Vec<Row>), Error>> {
    type Answer<'a> = Result<(Option<&'a Command>, Vec<Row>), Error>;
    let client = ready.link.client();
    let border = |text: &'static str| -> BoxFuture<'a, Answer<'a>> {
        async move { client.batch_execute(text).await.map(|()| (None, Vec::new())) }.boxed()
    };
    let mut running: Vec<Option<BoxFuture<'a, Answer<'a>>>> = Vec::with_capacity(commands.len() + 2);
    if commands.len() > 1 {
        running.push(Some(border("BEGIN")));
    }
    for command in commands {
        let statement = &ready.statements[command.statement];
        running.push(Some(
            async move {
                let parameters: Vec<&(dyn tokio_postgres::types::ToSql + Sync)> =
                    command.parameters.iter().map(|p| p.as_ref() as _).collect();
                let rows = client.query(statement, &parameters).await?;
                Ok((Some(command), rows))
            }
            .boxed(),
        ));
    }
    if commands.len() > 1 {
        running.push(Some(border("COMMIT")));
    }
    let mut answers = Vec::with_capacity(running.len());
    // the first round sends the statements in their order
    poll_fn(|context| {
        for slot in &mut running {
            if let Some(future) = slot
                && let Poll::Ready(answer) = future.as_mut().poll(context)
            {
                answers.push(answer);
                *slot = None;
            }
        }
        if running.iter().all(Option::is_none) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    answers
}

/// Returns the writes that are still wanted now that their transaction begins, and answers the others.
async fn wanted(mut jobs: Vec<Job>) -> Vec<Job> {
    if jobs.iter().any(Job::is_old) {
        // a timer fires after the runtime has looked at its sockets
        tokio::time::sleep(READ_TIME).await;
        input::read_pending().await;
    }
    let abandoned: Vec<_> = jobs.extract_if(.., |job| job.is_abandoned()).collect();
    refuse(abandoned, &StoreError::Late);
    jobs
}

/// Answers writes that were not made, or of which nobody knows.
fn refuse(jobs: Vec<Job>, error: &StoreError) {
    for job in jobs {
        job.reply(Err(error.clone()));
    }
}

/// Answers writes whose transaction was committed.
fn answer(ready: &Ready, jobs: Vec<Job>, made: &Made) {
    let uncertainty = ready.link.uncertainty();
    for (number, job) in jobs.into_iter().enumerate() {
        let found = made.writes.contains(&number);
        // a deletion that found nothing in time and one that came too late look the same to the server
        let late = !found && job.deadline <= Instant::now() + uncertainty;
        if made.late.contains(&number) || late {
            job.reply(Err(StoreError::Late));
        } else {
            job.reply(Ok(found));
        }
    }
}
