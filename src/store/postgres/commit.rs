//! One transaction of the writer: what it may take, how it is sent, and what its answers say.
//!
//! *Time*: a write that was given up must not come after what its caller has written since. So the server makes no write
//! that has not begun [`BEGIN`] after it was sent, and none that has not got all of its records [`EXECUTE`](super::keeper::EXECUTE) after it has
//! begun. Nobody is told of an unknown outcome before that, and no write is sent whose deadline is nearer.

use std::collections::HashSet;
use std::future::poll_fn;
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio_postgres::Error;
use tokio_postgres::types::ToSql;

use super::super::error::StoreError;
use super::batch::{Command, Key, Write, commands};
use super::clock::Clock;
use super::failure::Failure;
use super::rows;
use super::service::{DELETE, PROBE};
use super::state::Ready;

/// Longest time from the sending of a write to its beginning.
pub const BEGIN: Duration = Duration::from_millis(300);
/// The smallest limit of a statement: a write whose deadline is nearer than twice this is not sent.
pub const LEAST: Duration = Duration::from_millis(10);

/// The time that a transaction has.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// Its writes begin before this.
    begin: Instant,
    /// What is known of the server's clock.
    clock: Clock,
    /// Longest time of a statement.
    execute: Duration,
}

impl Times {
    /// Returns the times of a transaction that is sent at `now` and has the records of all of its writes at `deadline`. `usual`
    /// is the session's limit of a statement. Returns `None` if there is not enough time.
    pub fn new(now: Instant, deadline: Instant, usual: Duration, clock: Clock) -> Option<Self> {
        let left = deadline.saturating_duration_since(now);
        let execute = usual.min(left / 2);
        let begin = (now + BEGIN).min(deadline.checked_sub(execute)?);
        (execute >= LEAST).then_some(Self { begin, clock, execute })
    }

    /// Returns the moment after which nothing of the transaction can begin any more, or get a record.
    pub fn over(&self) -> Instant {
        self.begin + self.execute
    }

    /// Returns the time until which its writes may begin, by the server's clock.
    pub fn until(&self) -> SystemTime {
        self.clock.time(self.begin)
    }

    /// Returns true if what was answered at this moment has begun in time, by the server's clock.
    fn began_in_time(&self, answered: Instant) -> bool {
        answered + self.clock.uncertainty() < self.begin
    }

    /// Returns what begins the transaction, if it is not a single statement with the limits of the session.
    fn border(&self, usual: Duration, statements: usize) -> Option<String> {
        if self.execute < usual {
            return Some(self.begin_shortened());
        }
        (statements > 1).then(|| "BEGIN".to_owned())
    }

    /// Returns what begins a transaction with a limit of its own for statements.
    fn begin_shortened(&self) -> String {
        format!("BEGIN; SET LOCAL statement_timeout = {}", self.execute.as_millis())
    }
}

/// The answer to one statement.
struct Answer<'a> {
    command: &'a Command<'a>,
    /// The keys that it returned, sorted.
    keys: Vec<Key>,
    at: Instant,
}

/// What a committed transaction has done with one write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Its record is there, or was until it was deleted.
    Made,
    /// It is a deletion that found no record.
    Unfound,
    /// It began too late, and was not made.
    Late,
}

impl Answer<'_> {
    /// Returns what has become of a write of this statement.
    fn fate(&self, write: &Write, times: &Times) -> Fate {
        if self.keys.binary_search(&write.key()).is_ok() {
            Fate::Made
        } else if self.command.statement != DELETE || !times.began_in_time(self.at) {
            // a deletion that found nothing in time and one that came too late look the same to the server
            Fate::Late
        } else {
            Fate::Unfound
        }
    }
}

/// Makes writes in one transaction. Returns the fate of each, in their order.
///
/// # Errors
/// Why the transaction failed.
pub async fn commit(
    ready: &Ready,
    writes: &[&Write],
    times: &Times,
    usual: Duration,
) -> Result<Vec<Fate>, Failure> {
    let statements = commands(writes, times.until());
    let begin = times.border(usual, statements.len());
    let end = begin.is_some().then_some("COMMIT");
    let mut fates = vec![Fate::Late; writes.len()];
    for answer in execute(ready, begin, &statements, end).await? {
        for number in &answer.command.writes {
            if let (Some(fate), Some(write)) = (fates.get_mut(*number), writes.get(*number)) {
                *fate = answer.fate(write, times);
            }
        }
    }
    Ok(fates)
}

/// Returns those of these keys that no record has, not even one whose transaction has still to commit: a deletion does not
/// see that one. Changes nothing.
///
/// # Errors
/// Why that is not known. [`Failure::Conflict`] if a transaction that is about to write such a record does not end.
pub async fn absent(ready: &Ready, deletions: &[&Write], times: &Times) -> Result<HashSet<Key>, Failure> {
    let mut probes = commands(deletions, times.until());
    for probe in &mut probes {
        probe.statement = PROBE;
    }
    // not one is sent before the transaction has begun: it would make a record
    let begun = ready.link.client().batch_execute(&times.begin_shortened()).await;
    if let Err(error) = begun {
        // it may have begun, and failed behind that
        let _ = ready.link.client().batch_execute("ROLLBACK").await;
        return Err(failed(ready, Failure::of(&error)));
    }
    // an insertion waits for that transaction
    let answers = execute(ready, None, &probes, Some("ROLLBACK")).await?;
    Ok(answers.into_iter().flat_map(|answer| answer.keys).collect())
}

/// Sends the statements at once, between those that begin and end a transaction, and waits for every answer.
async fn execute<'a>(
    ready: &'a Ready,
    begin: Option<String>,
    commands: &'a [Command<'a>],
    end: Option<&'static str>,
) -> Result<Vec<Answer<'a>>, Failure> {
    type Sent<'a> = BoxFuture<'a, Result<Option<Answer<'a>>, Error>>;
    if let ([command], None, None) = (commands, &begin, end) {
        let answer = run(ready, command).await.map_err(|error| failed(ready, Failure::of(&error)))?;
        return Ok(vec![answer]);
    }
    let client = ready.link.client();
    let border = |text: String| -> Sent<'a> {
        async move { client.batch_execute(&text).await.map(|()| None) }.boxed()
    };
    let mut running: Vec<Option<Sent<'a>>> = Vec::with_capacity(commands.len() + 2);
    let begins = begin.is_some();
    running.extend(begin.map(|text| Some(border(text))));
    for command in commands {
        running.push(Some(async { run(ready, command).await.map(Some) }.boxed()));
    }
    running.extend(end.map(|text| Some(border(text.to_owned()))));
    let mut answers = Vec::with_capacity(running.len());
    // the first round sends the statements in their order
    poll_fn(|context| {
        for (number, slot) in running.iter_mut().enumerate() {
            if let Some(future) = slot
                && let Poll::Ready(answer) = future.as_mut().poll(context)
            {
                answers.push((number, answer));
                *slot = None;
            }
        }
        if running.iter().all(Option::is_none) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    answers.sort_unstable_by_key(|(number, _)| *number);
    let answers = answers.into_iter().map(|(_, answer)| answer.map_err(|error| Failure::of(&error)));
    outcome(answers, begins).map_err(|failure| failed(ready, failure))
}

/// Returns what the statements of a transaction have answered, by the answers in their order. `begins` is true if the first
/// is that of its BEGIN.
///
/// # Errors
/// Why it failed. Unless that is [`Failure::Unknown`], nothing was changed.
fn outcome<T>(
    answers: impl Iterator<Item = Result<Option<T>, Failure>>,
    begins: bool,
) -> Result<Vec<T>, Failure> {
    let mut found = Vec::new();
    // the first error is the reason of the others
    let (mut not_begun, mut refused, mut unknown) = (None, None, None);
    for (number, answer) in answers.enumerate() {
        match answer {
            Ok(answer) => found.extend(answer),
            Err(failure) if begins && number == 0 => not_begun = Some(failure),
            Err(failure @ Failure::Unknown(_)) => unknown = unknown.or(Some(failure)),
            Err(failure) => refused = refused.or(Some(failure)),
        }
    }
    match (not_begun, refused, unknown) {
        // each of the others was a transaction of its own
        (Some(failure), ..) if !found.is_empty() => {
            let why = StoreError::from(failure);
            Err(Failure::Unknown(format!("a transaction did not begin, but its statements were made: {why}")))
        }
        (Some(failure), _, unknown) => Err(unknown.unwrap_or(failure)),
        // an error that the server has told is certain, whatever happened to the connection afterwards
        (None, Some(failure), _) | (None, None, Some(failure)) => Err(failure),
        (None, None, None) => Ok(found),
    }
}

/// Runs one statement.
async fn run<'a>(ready: &Ready, command: &'a Command<'a>) -> Result<Answer<'a>, Error> {
    let parameters: Vec<&(dyn ToSql + Sync)> = command.parameters.iter().map(|p| p as _).collect();
    let rows = ready.link.client().query(&ready.statements[command.statement], &parameters).await?;
    Ok(Answer { command, keys: rows::keys(&rows)?, at: Instant::now() })
}

/// Returns a failure with the reason of the connection, if its outcome is unknown and the connection was given up.
fn failed(ready: &Ready, failure: Failure) -> Failure {
    match (failure, ready.link.reason()) {
        (Failure::Unknown(_), Some(reason)) => Failure::Unknown(reason),
        (failure, _) => failure,
    }
}

#[cfg(test)]
mod tests {
    use super::super::keeper::EXECUTE;
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn times(left: Duration) -> Option<(Duration, Times)> {
        let now = Instant::now();
        let clock = Clock::new(now, now, SystemTime::UNIX_EPOCH);
        Times::new(now, now + left, EXECUTE, clock).map(|times| (times.begin - now, times))
    }

    #[test]
    fn a_transaction_has_its_records_before_the_deadline() {
        for (left, begin, execute) in [
            (60_000, 300, 500),
            (2000, 300, 500),
            (1000, 300, 500),
            (600, 300, 300),
            (400, 200, 200),
            (50, 25, 25),
        ] {
            let (began, times) = times(left * MS).unwrap();
            assert_eq!((began, times.execute), (begin * MS, execute * MS), "{left}");
            assert!(began + times.execute <= left * MS, "{left}: {times:?}");
            assert_eq!(times.border(EXECUTE, 1).is_some(), left < 1000, "{left}: {times:?}");
        }
        assert!(times(15 * MS).is_none());
        assert!(times(Duration::ZERO).is_none());
    }

    #[test]
    fn statements_behind_a_begin_that_failed_may_have_been_made() {
        let unknown = || Err(Failure::Unknown("lost".to_owned()));
        let refused = || Err(Failure::Refused("no".to_owned()));
        let (done, made) = (|| Ok(None), || Ok(Some(())));
        let cases = [
            // BEGIN, two writes, COMMIT: is it certain that nothing was changed?
            ([done(), made(), refused(), done()], true),
            ([done(), made(), refused(), unknown()], true),
            ([refused(), refused(), refused(), done()], true),
            ([unknown(), unknown(), unknown(), unknown()], false),
            ([unknown(), made(), refused(), done()], false),
            ([unknown(), refused(), refused(), done()], false),
            ([refused(), made(), refused(), done()], false),
            ([refused(), made(), made(), done()], false),
            ([refused(), refused(), unknown(), unknown()], false),
            ([done(), made(), made(), unknown()], false),
        ];
        for (answers, certain) in cases {
            let told = format!("{answers:?}");
            let failure = outcome(answers.into_iter(), true).unwrap_err();
            assert_eq!(!matches!(failure, Failure::Unknown(_)), certain, "{told}: {failure:?}");
        }
        assert_eq!(outcome([done(), made(), made(), done()].into_iter(), true).unwrap().len(), 2);
        // without a BEGIN of its own, as in a transaction that has begun
        let failure = outcome([refused(), refused(), done()].into_iter(), false).unwrap_err();
        assert!(matches!(failure, Failure::Refused(_)), "{failure:?}");
    }
}
