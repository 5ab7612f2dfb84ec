//! The handle of a store, by which calls reach its two connections.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::async_trait;

use super::super::database::{Database, Purpose};
use super::super::error::StoreError;
use super::super::metrics::Metrics;
use super::super::progress::Progress;
use super::super::traits::Health;
use super::batch::Write;
use super::dial::Target;
use super::failure::Failure;
use super::keeper::{EXECUTE, Keeper, SLACK};
use super::service::Service;
use super::state::{Away, Links, Ready, State};
use super::writer::{CONNECTION_WAIT, Job, Writer};
use crate::config::{PostgresUrl, Store};
use crate::telemetry::log::LogThrottle;

/// Most writes that wait for their transaction.
const QUEUE: usize = 1024;
/// Most reads that wait or are in progress.
const READS: usize = 1024;
/// Most reads on their way to the server and back. The others wait here, where one that nobody waits for any more drops
/// out: a server that is slow is not kept busy with them.
const IN_FLIGHT: usize = 32;
/// How long a start waits for the database. Then the service starts without it.
const START: Duration = Duration::from_secs(3);

/// A handle to the two connections of a store. They end when it is dropped.
pub struct Postgres {
    service: &'static Service,
    reads: Links,
    writes: Links,
    queue: mpsc::Sender<Job>,
    admitted: Semaphore,
    in_flight: Arc<Semaphore>,
    timeout: Duration,
    progress: Arc<Progress>,
    database: Database,
    _stop: DropGuard,
}

impl Postgres {
    /// Begins to connect, and to migrate what is there. Returns without a connection if the database is away; then calls
    /// are refused until it is there. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// When a file with credentials cannot be used, or the database is not one that this program can work with.
    pub async fn open(
        url: &PostgresUrl,
        settings: &Store,
        service: &'static Service,
        metrics: &Metrics,
    ) -> Result<Self, String> {
        let target = Target::new(url.config(), settings)?;
        let database = Database::new(metrics, service.schema.name, target.hosts());
        let timeout = target.timeout;
        let stop = CancellationToken::new();
        let [(keep_reads, reads), (keep_writes, writes)] = Keeper::pair(&target, service, &database);
        for keeper in [keep_reads, keep_writes] {
            tokio::spawn(stop.clone().run_until_cancelled_owned(keeper.run()));
        }
        let (queue, jobs) = mpsc::channel(QUEUE);
        let progress = Arc::new(Progress::default());
        let commits = Writer {
            links: writes.clone(),
            timeout,
            execute: EXECUTE.min(timeout),
            progress: progress.clone(),
            database: database.clone(),
            late: LogThrottle::default(),
        };
        tokio::spawn(commits.run(jobs));
        let store = Self {
            service,
            reads,
            writes,
            queue,
            admitted: Semaphore::new(READS),
            in_flight: Arc::new(Semaphore::new(IN_FLIGHT)),
            timeout,
            progress,
            database,
            _stop: stop.drop_guard(),
        };
        let begun = tokio::time::Instant::now();
        for links in [&store.writes, &store.reads] {
            // a database that is away is a warning
            let _ = links.wait(START.saturating_sub(begun.elapsed())).await;
            if let State::Unusable(why) = links.state() {
                return Err(why);
            }
        }
        Ok(store)
    }

    /// Makes one write in a group commit; returns once it is committed: whether the record is there, or was until it was
    /// deleted. A write that has not begun by its deadline is not made.
    pub async fn write(&self, deadline: Instant, write: Write) -> Result<bool, StoreError> {
        let (reply, answer) = oneshot::channel();
        let job = Job::new(write, deadline, reply);
        self.database.queued().inc();
        if let Err(error) = self.queue.try_send(job) {
            self.database.queued().dec();
            return Err(match error {
                mpsc::error::TrySendError::Full(_) => StoreError::Busy("writes"),
                mpsc::error::TrySendError::Closed(_) => StoreError::Closed,
            });
        }
        answer.await.map_err(|_| StoreError::Closed)?
    }

    /// Runs one read. It is repeated once on another connection if its own is lost.
    ///
    /// *Cancellation*: what was sent is answered, and the answer ignored.
    pub async fn read<T, F, R>(&self, run: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: Fn(Arc<Ready>) -> R,
        R: Future<Output = Result<T, Failure>> + Send + 'static,
    {
        let admitted = self.admitted.try_acquire();
        let _admitted = admitted.map_err(|_| StoreError::Busy("reads"))?;
        let (mut repeated, mut begun) = (false, Instant::now());
        loop {
            let permit = self.in_flight.clone().acquire_owned().await.map_err(|_| StoreError::Closed)?;
            // those behind others that waited for a connection have waited, too
            let ready = self.reads.wait(CONNECTION_WAIT.saturating_sub(begun.elapsed())).await?;
            let (read, limit) = (run(ready.clone()), self.timeout + SLACK);
            // a task of its own, so that the permit is held until the server has answered
            let task = tokio::spawn(async move {
                let _permit = permit;
                let failure = match ready.link.answered(limit, read).await {
                    Ok(Ok(answer)) => return Ok(answer),
                    Ok(Err(failure)) => failure,
                    Err(silent) => Failure::Unknown(silent),
                };
                if failure.ends_connection() {
                    ready.link.lose(&StoreError::from(failure.clone()).to_string());
                }
                Err(failure)
            });
            match task.await.map_err(|_| StoreError::Closed)? {
                Ok(answer) => return Ok(answer),
                Err(failure) if failure.ends_connection() && !repeated => {
                    (repeated, begun) = (true, Instant::now());
                }
                Err(Failure::Unknown(why)) => return Err(StoreError::Away(why)),
                Err(failure) => return Err(failure.into()),
            }
        }
    }
}

#[async_trait]
impl Health for Postgres {
    /// Fails for a database that this program cannot work with, or not until it is migrated, and when a task of the store
    /// has ended. One that is away is away for every instance, and leaving the registry would help nobody. So a store
    /// that is opened meanwhile passes until a server is reached and its schema is found not to be migrated.
    async fn usable(&self) -> Result<(), StoreError> {
        for links in [&self.writes, &self.reads] {
            if let State::Unusable(why) | State::Away(Away { outdated: true, why, .. }) = links.state() {
                return Err(StoreError::Failed(why));
            }
        }
        let runs = self.writes.is_kept() && self.reads.is_kept() && !self.queue.is_closed();
        if runs { Ok(()) } else { Err(StoreError::Closed) }
    }

    fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        for (links, what) in [(&self.writes, Purpose::Writes), (&self.reads, Purpose::Reads)] {
            match links.state() {
                State::Away(Away { since, why, .. }) => {
                    let (what, s) = (what.name(), since.elapsed().as_secs());
                    warnings.push(format!("no connection for {what} for {s} s: {why}"));
                }
                State::Ready(ready) if ready.version > self.service.schema.version() => {
                    warnings.push(format!(
                        "schema {} is of version {}, newer than this program's {}",
                        self.service.schema.name,
                        ready.version,
                        self.service.schema.version()
                    ));
                }
                State::Ready(_) | State::Unusable(_) => {}
            }
        }
        warnings.extend(self.progress.warnings());
        warnings.dedup();
        warnings.into_iter().map(|warning| format!("store postgres: {warning}")).collect()
    }

    fn database(&self) -> Value {
        self.database.status()
    }
}

#[cfg(test)]
mod tests {
    use super::super::service::FEED;
    use super::*;

    #[tokio::test]
    #[expect(clippy::used_underscore_binding, reason = "it is held for its end, which is what is tested")]
    async fn a_store_whose_connections_nobody_keeps_is_not_usable() {
        // nothing listens there
        let url = "postgres://app@127.0.0.1:1/msa".parse().unwrap();
        let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
        let store = Postgres::open(&url, &Store::default(), &FEED, &metrics).await.unwrap();
        store.usable().await.unwrap();
        // the keepers end, as by a panic; the writer goes on
        store._stop.token().cancel();
        let closed = async {
            while !matches!(store.usable().await, Err(StoreError::Closed)) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), closed).await.unwrap();
    }
}
