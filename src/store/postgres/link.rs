//! One open connection, and the task that drives it.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Mutex, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime};

use socket2::Socket;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio_postgres::error::SqlState;
use tokio_postgres::{AsyncMessage, Client, Connection, SimpleQueryMessage};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::clock::Clock;
use super::failure::{is_unreplicated_commit, reason};
use super::timeline::{self, Timeline};
use crate::timeout::timeout_at;

/// Asks whether the server is a standby, whether it can only be read, and for its time, microseconds since 1970; the
/// columns of the timeline follow.
const QUESTION: &str = "SELECT pg_is_in_recovery(), current_setting('transaction_read_only'), \
                        (extract(epoch FROM clock_timestamp()) * 1000000)::bigint, ";

/// What a server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It can be written to.
    Primary,
    /// It can only be read, and why.
    Standby(&'static str),
}

/// A connection to a server that could be written to when it was opened. It ends when this is dropped, when the server
/// ends it, and when somebody calls [`Link::lose`].
pub struct Link {
    client: Client,
    ended: watch::Sender<Option<String>>,
    stop: CancellationToken,
    clock: Mutex<Option<Clock>>,
    timeline: Mutex<Option<Timeline>>,
    /// When the server has last answered.
    heard: Mutex<Instant>,
    /// A second handle to the socket, if it is TCP.
    socket: Mutex<Option<Socket>>,
    _driver: DropGuard,
}

impl Link {
    /// Begins to drive a connection. Must be called inside a tokio runtime.
    pub fn new<S, T>(client: Client, connection: Connection<S, T>) -> Self
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (ended, stop) = (watch::Sender::new(None), CancellationToken::new());
        tokio::spawn(drive(connection, ended.clone(), stop.clone()));
        Self {
            client,
            ended,
            clock: Mutex::default(),
            timeline: Mutex::default(),
            heard: Mutex::new(Instant::now()),
            socket: Mutex::default(),
            _driver: stop.clone().drop_guard(),
            stop,
        }
    }

    /// Returns the client. Statements whose futures run at the same time are pipelined. One whose future is dropped is
    /// still executed, and its answer ignored.
    pub const fn client(&self) -> &Client {
        &self.client
    }

    /// As [`Self::client`], for what nobody else may do at the same time.
    pub const fn client_mut(&mut self) -> &mut Client {
        &mut self.client
    }

    /// Takes a second handle to the socket, so that [`Self::lose`] can throw away what the kernel has still to send.
    pub fn reset_with(&mut self, socket: Socket) {
        *self.socket.get_mut().unwrap_or_else(PoisonError::into_inner) = Some(socket);
    }

    /// Gives the connection up. What is in flight on it fails, and what has not been sent yet is not sent any more.
    pub fn lose(&self, why: &str) {
        end(&self.ended, why.to_owned());
        if let Some(socket) = self.socket.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // closing it is a reset then; if that fails, the time limit of each write is what is left
            let _ = socket.set_linger(Some(Duration::ZERO));
        }
        self.stop.cancel();
    }

    /// Returns true if the connection has ended.
    pub fn is_lost(&self) -> bool {
        self.ended.borrow().is_some()
    }

    /// Returns why the connection has ended, if it has.
    pub fn reason(&self) -> Option<String> {
        self.ended.borrow().clone()
    }

    /// Waits for the end of the connection and returns why.
    pub async fn lost(&self) -> String {
        let mut ended = self.ended.subscribe();
        let found = ended.wait_for(Option::is_some).await;
        found.ok().and_then(|why| why.clone()).unwrap_or_default()
    }

    /// Checks that the server can be written to, and reads its clock.
    ///
    /// # Errors
    /// Why it cannot.
    pub async fn check(&self) -> Result<(), String> {
        match self.ask().await? {
            Role::Primary => Ok(()),
            Role::Standby(why) => Err(why.to_owned()),
        }
    }

    /// Asks the server what it is, and reads its clock if it can be written to.
    ///
    /// # Errors
    /// Why it does not say.
    pub async fn ask(&self) -> Result<Role, String> {
        let asked = Instant::now();
        let answer = match self.client.simple_query(&[QUESTION, timeline::COLUMNS].concat()).await {
            // the question came between the statements of a transaction, of which one had failed
            Err(error) if error.code() == Some(&SqlState::IN_FAILED_SQL_TRANSACTION) => {
                return Ok(Role::Primary);
            }
            other => other.map_err(|error| reason(&error))?,
        };
        let read = Instant::now();
        let row = answer.into_iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        });
        let row = row.ok_or("the server answers nothing")?;
        let column = |at| row.try_get(at).ok().flatten();
        if column(0) == Some("t") {
            return Ok(Role::Standby("it is a standby"));
        }
        if column(1) != Some("off") {
            return Ok(Role::Standby("it can only be read"));
        }
        let micros = column(2).and_then(|text| text.parse().ok()).ok_or("the server has no clock")?;
        let server = SystemTime::UNIX_EPOCH + Duration::from_micros(micros);
        self.told(Clock::new(asked, read, server));
        *self.timeline.lock().unwrap_or_else(PoisonError::into_inner) = Timeline::read(&row, 3);
        Ok(Role::Primary)
    }

    /// Takes in what an answer tells of the server's clock.
    fn told(&self, newer: Clock) {
        let mut clock = self.clock.lock().unwrap_or_else(PoisonError::into_inner);
        *clock = Some(clock.map_or(newer, |known| known.and(newer)));
    }

    /// Returns the timeline of the server when it was last checked, if it has told it.
    pub fn timeline(&self) -> Option<Timeline> {
        self.timeline.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns what is known of the server's clock; `None` before the first answer.
    pub fn clock(&self) -> Option<Clock> {
        *self.clock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for an answer of the server for as long as it answers anything at all: until `limit` has passed without an
    /// answer to anybody.
    ///
    /// # Errors
    /// That there was none.
    pub async fn answered<T>(&self, limit: Duration, question: impl Future<Output = T>) -> Result<T, String> {
        let mut question = pin!(question);
        let mut silent_since = Instant::now();
        loop {
            if let Ok(answer) = timeout_at((silent_since + limit).into(), question.as_mut()).await {
                *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
                return Ok(answer);
            }
            let heard = *self.heard.lock().unwrap_or_else(PoisonError::into_inner);
            if heard <= silent_since {
                return Err(format!("no answer within {limit:?}"));
            }
            silent_since = heard;
        }
    }
}

fn end(ended: &watch::Sender<Option<String>>, why: String) {
    ended.send_if_modified(|told| {
        let first = told.is_none();
        if first {
            *told = Some(why);
        }
        first
    });
}

/// Moves bytes and messages until the connection ends or is given up. Dropping it then fails what is in flight.
async fn drive<S, T>(
    mut connection: Connection<S, T>,
    ended: watch::Sender<Option<String>>,
    stop: CancellationToken,
) where
    S: AsyncRead + AsyncWrite + Unpin,
    T: AsyncRead + AsyncWrite + Unpin,
{
    let until_end = poll_fn(|context| {
        loop {
            match connection.poll_message(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) => return Poll::Ready("it was closed".to_owned()),
                // no message comes after this
                Poll::Ready(Some(Err(error))) => return Poll::Ready(reason(&error)),
                // the warning precedes the answer of the statement and names none: nothing in flight is acknowledged
                Poll::Ready(Some(Ok(AsyncMessage::Notice(notice)))) if is_unreplicated_commit(&notice) => {
                    return Poll::Ready(format!("a commit was not replicated: {}", notice.message()));
                }
                Poll::Ready(Some(Ok(_))) => {}
            }
        }
    });
    if let Some(why) = stop.run_until_cancelled(until_end).await {
        end(&ended, why);
    }
}
