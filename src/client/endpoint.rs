//! One instance as a caller sees it: a connection that a task keeps open, and whether it is.
//!
//! tonic's channel hides what matters here: whether the connection is up, and whether a failed call ever
//! left this host. So the connection is hyper's, and a task of ours opens it, watches it, and opens it
//! again with backoff.

use std::sync::Arc;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};
use std::sync::atomic::{AtomicU8, AtomicUsize};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::health;
use crate::backoff::Backoff;
use crate::config;
use crate::error::chain;
use crate::registry::Instance;

/// The first wait before connecting again.
const FIRST_WAIT: Duration = Duration::from_millis(50);
/// A connection that lasted this long was a good one: the next tries begin with the first wait again.
const STEADY: Duration = Duration::from_secs(1);
/// Calls that were given up and whose late answers are still recognised, per connection. h2 remembers 50
/// by default and, after 1024 answers to calls that it forgot, ends the connection for everyone on it.
const MAX_RESETS: usize = 10_000;
/// HTTP/2 windows: a largest answer fits without a round trip.
const WINDOW: u32 = 4 * 1024 * 1024;

/// Whether an instance can be called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// The first connection is being opened.
    Connecting = 0,
    /// Connected.
    Up = 1,
    /// The last try to connect failed, or the connection broke.
    Down = 2,
    /// Connected, but its health says that it does not serve.
    NotServing = 3,
    /// Connected, but another service answers at this address.
    WrongService = 4,
}

impl State {
    /// Every state.
    pub const ALL: [Self; 5] = [Self::Connecting, Self::Up, Self::Down, Self::NotServing, Self::WrongService];

    const fn of(number: u8) -> Self {
        match number {
            0 => Self::Connecting,
            1 => Self::Up,
            3 => Self::NotServing,
            4 => Self::WrongService,
            _ => Self::Down,
        }
    }

    /// Returns the word for it in `/status` and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Up => "up",
            Self::Down => "down",
            Self::NotServing => "not_serving",
            Self::WrongService => "wrong_service",
        }
    }
}

/// Why a request got no response.
#[derive(Debug)]
pub enum SendError {
    /// It never reached a handler: no connection, or the peer said that it did not process it. Sending
    /// it elsewhere cannot double anything.
    NotSent(String),
    /// The connection broke; what the peer did is unknown.
    Broken(hyper::Error),
}

/// One instance and the connection to it.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// What the registry says of it.
    pub instance: Arc<Instance>,
    /// Which service it must be, `<key prefix><service>`.
    pub identity: HeaderValue,
    connection: Arc<Connection>,
}

/// Ends when the last endpoint that shares it is dropped; calls in flight still finish.
#[derive(Debug)]
struct Connection {
    link: Arc<Link>,
    _task: DropGuard,
}

/// What the task that keeps the connection shares with those who use it.
#[derive(Debug, Default)]
pub struct Link {
    sender: ArcSwapOption<SendRequest<Full<Bytes>>>,
    state: AtomicU8,
    in_flight: AtomicUsize,
    last_error: ArcSwapOption<String>,
    /// The id that answered last, if it is not the registered one: it restarted while etcd was away.
    adopted: ArcSwapOption<String>,
    changed: Arc<Notify>,
}

impl Link {
    /// See [`Endpoint::is_another_service`].
    pub fn wrong_service(&self, addr: &str, wanted: &HeaderValue, found: &HeaderValue) {
        if self.set(State::WrongService) != State::WrongService {
            tracing::warn!(addr, ?wanted, ?found, "another service answers at this address");
        }
    }

    /// Notes what the instance says of its health.
    pub fn health(&self, serving: bool) {
        if State::of(self.state.load(Acquire)) != State::WrongService {
            self.set(if serving { State::Up } else { State::NotServing });
        }
    }

    fn set(&self, state: State) -> State {
        let before = self.state.swap(state as u8, AcqRel);
        if before != state as u8 {
            self.changed.notify_one();
        }
        State::of(before)
    }
}

impl Endpoint {
    /// Begins to connect. `changed` is notified whenever the state changes.
    #[must_use]
    pub fn open(
        instance: Arc<Instance>,
        identity: HeaderValue,
        settings: &Arc<config::Client>,
        changed: Arc<Notify>,
    ) -> Self {
        let link = Arc::new(Link { changed, ..Link::default() });
        let stop = CancellationToken::new();
        let task = keep_connected(instance.addr.clone(), identity.clone(), settings.clone(), link.clone());
        tokio::spawn(stop.clone().run_until_cancelled_owned(task));
        let connection = Connection { link, _task: stop.drop_guard() };
        Self { instance, identity, connection: Arc::new(connection) }
    }

    /// Returns the same connection under newer attributes. Only for the same process (the same id): a
    /// new one at an old address wants a connection of its own, without the old one's backoff.
    #[must_use]
    pub fn renamed(&self, instance: Arc<Instance>) -> Self {
        Self { instance, identity: self.identity.clone(), connection: self.connection.clone() }
    }

    /// Returns whether it can be called.
    #[must_use]
    pub fn state(&self) -> State {
        State::of(self.connection.link.state.load(Acquire))
    }

    /// Returns the calls in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.connection.link.in_flight.load(Relaxed)
    }

    /// Returns why it was last down.
    #[must_use]
    pub fn last_error(&self) -> Option<Arc<String>> {
        self.connection.link.last_error.load_full()
    }

    /// Returns the id that answered last, if it is not the registered one: the instance was restarted at
    /// its address while the registry was away.
    #[must_use]
    pub fn adopted_id(&self) -> Option<Arc<String>> {
        self.connection.link.adopted.load_full()
    }

    /// Notes which instance answered.
    pub fn answered_as(&self, id: &HeaderValue) {
        let link = &self.connection.link;
        let (id, known) = (id.to_str().unwrap_or_default(), link.adopted.load());
        let registered = id == self.instance.id || self.instance.id.is_empty();
        match known.as_deref() {
            Some(adopted) if adopted == id => {}
            None if registered => {}
            _ if registered => link.adopted.store(None),
            _ => {
                tracing::info!(addr = self.instance.addr, id, "another instance of the service answers here");
                link.adopted.store(Some(Arc::new(id.to_owned())));
            }
        }
    }

    /// Notes that the peer is another service: no call goes there until its connection is a new one.
    pub fn is_another_service(&self, other: &HeaderValue) {
        self.connection.link.wrong_service(&self.instance.addr, &self.identity, other);
    }

    /// Sends one request and returns the head of its response.
    ///
    /// *Cancellation*: dropping the future resets the stream, which cancels the handler; the connection
    /// stays usable for others.
    ///
    /// # Errors
    /// [`SendError`].
    pub async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, SendError> {
        let link = &self.connection.link;
        let Some(sender) = link.sender.load_full() else {
            return Err(SendError::NotSent("not connected".to_owned()));
        };
        let mut sender = SendRequest::clone(&sender);
        sender.try_send_request(request).await.map_err(|mut error| {
            if error.take_message().is_some() || unprocessed(error.error()) {
                return SendError::NotSent(chain(error.error()));
            }
            SendError::Broken(error.into_error())
        })
    }

    /// Counts a call as in flight until the guard is dropped.
    #[must_use]
    pub fn begin(&self) -> InFlight {
        let link = self.connection.link.clone();
        link.in_flight.fetch_add(1, Relaxed);
        InFlight(link)
    }
}

/// A call in flight.
#[derive(Debug)]
pub struct InFlight(Arc<Link>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Relaxed);
    }
}

/// Returns true if the peer promised not to have processed the request (RFC 9113, 6.8 and 8.7): it
/// refused the stream, or its GOAWAY without error left the stream out.
fn unprocessed(error: &hyper::Error) -> bool {
    let h2 = std::error::Error::source(error).and_then(|e| e.downcast_ref::<h2::Error>());
    h2.is_some_and(|e| {
        e.is_remote()
            && (e.reason() == Some(h2::Reason::REFUSED_STREAM)
                || (e.is_go_away() && e.reason() == Some(h2::Reason::NO_ERROR)))
    })
}

/// Keeps a connection open, for ever, and follows the instance's health on it.
async fn keep_connected(addr: String, identity: HeaderValue, settings: Arc<config::Client>, link: Arc<Link>) {
    let mut backoff = Backoff::new(FIRST_WAIT, settings.reconnect_cap);
    loop {
        let error = match connect(&addr, &settings).await {
            Ok((sender, connection)) => {
                // a task of its own: it outlives this one, so that calls in flight finish
                let ended = tokio::spawn(connection);
                let begun = Instant::now();
                link.sender.store(Some(Arc::new(sender.clone())));
                link.set(State::Up);
                let result = tokio::select! {
                    result = ended => result,
                    never = health::watch(sender, &addr, &identity, &link) => match never {},
                };
                link.sender.store(None);
                if begun.elapsed() > STEADY {
                    backoff.reset();
                }
                match result {
                    Ok(Ok(())) => "closed by the peer".to_owned(),
                    Ok(Err(error)) => chain(&error),
                    Err(error) => chain(&error),
                }
            }
            Err(error) => error,
        };
        if link.set(State::Down) != State::Down {
            tracing::info!(addr, error, "instance is down");
        }
        link.last_error.store(Some(Arc::new(error)));
        tokio::time::sleep(backoff.next_wait()).await;
    }
}

/// Drives a connection; ends with it.
pub type Connecting = hyper::client::conn::http2::Connection<TokioIo<TcpStream>, Full<Bytes>, TokioExecutor>;

/// Opens one HTTP/2 connection, within the time limit of the settings.
pub async fn connect(
    addr: &str,
    settings: &config::Client,
) -> Result<(SendRequest<Full<Bytes>>, Connecting), String> {
    let open = async {
        let stream = dial(addr).await.map_err(|e| chain(&e))?;
        let handshake = Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(settings.keepalive)
            .keep_alive_timeout(settings.keepalive_timeout)
            .max_concurrent_reset_streams(MAX_RESETS)
            .max_local_error_reset_streams(None)
            .initial_connection_window_size(WINDOW)
            .initial_stream_window_size(WINDOW)
            .handshake(TokioIo::new(stream));
        handshake.await.map_err(|e| chain(&e))
    };
    let limit = settings.connect_timeout;
    let opened = tokio::time::timeout(limit, open).await;
    opened.unwrap_or_else(|_| Err(format!("no connection within {limit:?}")))
}

/// Opens a TCP connection with TCP_NODELAY: without it small requests wait 40 ms for an ack.
async fn dial(addr: &str) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect(addr).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn dialled_connections_have_nodelay() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = dial(&listener.local_addr().unwrap().to_string()).await.unwrap();
        assert!(stream.nodelay().unwrap());
    }
}
