//! The server's side of a handshake. It runs in the task of its connection, so that no peer holds up another one, and is
//! bounded in time and in number.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::server::TlsStream;

use super::leaf::Leaf;
use super::metrics::{ConnectionMetrics, Open, Refused};
use super::mutual::Mutual;
use super::outcome;
use super::stream::Stream;
use super::validity::Validity;
use crate::api::error::chain;
use crate::config::Identity;
use crate::telemetry::log::LogThrottle;

/// Time for a handshake, with the wait for its turn.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Most handshakes at once. Each holds some 20 KB.
const MAX_HANDSHAKES: usize = 512;
/// A handshake may be ended for another one after this time: an honest peer takes two round trips.
const OLD: Duration = Duration::from_millis(500);
/// Time between two looks for an old handshake while one waits.
const RETRY: Duration = Duration::from_millis(20);
/// Longest time in which a peer that is refused may still send. Closing at once could destroy the alert with the reason on
/// its way.
const LINGER: Duration = Duration::from_millis(200);
/// The first byte of TLS: a record of the handshake. HTTP/2 begins with `P`, HTTP/1 with a letter.
const HANDSHAKE_RECORD: u8 = 0x16;

/// Returns the configuration for the next connection.
type Config = dyn Fn() -> Arc<ServerConfig> + Send + Sync;

/// Takes connections with TLS at one listener. Cheap to clone.
#[derive(Clone)]
pub struct Acceptor(Arc<Inner>);

struct Inner {
    config: Box<Config>,
    /// Tells how long a caller's certificate counts, where callers show one.
    mutual: Option<Mutual>,
    /// True if plaintext is taken as well.
    plaintext: bool,
    metrics: ConnectionMetrics,
    handshakes: Handshakes,
    lines: LogThrottle,
}

impl std::fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Acceptor").field("plaintext", &self.0.plaintext).finish_non_exhaustive()
    }
}

/// A connection that was taken.
pub struct Accepted {
    /// Its bytes.
    pub stream: Stream,
    /// Who the peer is, where peers show certificates.
    pub caller: Option<Authenticated>,
    /// Counts it as open.
    pub open: Open,
}

impl Accepted {
    /// Returns a connection without TLS, at a listener that has none.
    #[must_use]
    pub fn plain(tcp: TcpStream) -> Self {
        Self { stream: Stream::Plain(tcp), caller: None, open: Open::default() }
    }
}

/// A peer whose certificate was verified.
pub struct Authenticated {
    /// The first identity of its certificate, that of SPIFFE if it has one.
    pub identity: Option<Identity>,
    /// How long the certificate counts.
    pub validity: Validity,
}

impl Acceptor {
    /// Returns one whose peers show certificates.
    #[must_use]
    pub fn mutual(mutual: Mutual) -> Self {
        let (plaintext, metrics) = (mutual.is_permissive(), mutual.server_metrics().clone());
        let config = {
            let mutual = mutual.clone();
            move || mutual.server_config()
        };
        Self::new(Box::new(config), Some(mutual), plaintext, metrics)
    }

    /// Returns one whose peers show no certificates; `config` returns the configuration for the next connection.
    #[must_use]
    pub fn server_only(
        config: impl Fn() -> Arc<ServerConfig> + Send + Sync + 'static,
        metrics: ConnectionMetrics,
    ) -> Self {
        Self::new(Box::new(config), None, false, metrics)
    }

    fn new(config: Box<Config>, mutual: Option<Mutual>, plaintext: bool, metrics: ConnectionMetrics) -> Self {
        let handshakes = Handshakes::new(MAX_HANDSHAKES);
        let lines = LogThrottle::default();
        Self(Arc::new(Inner { config, mutual, plaintext, metrics, handshakes, lines }))
    }

    /// Takes one connection; `None` if there is none. What went wrong is counted, and said once in a while.
    ///
    /// *Cancellation*: the connection is closed.
    pub async fn accept(&self, tcp: TcpStream, peer: SocketAddr) -> Option<Accepted> {
        let refused = match tokio::time::timeout(HANDSHAKE, self.handshake(tcp)).await {
            Ok(Ok(accepted)) => return Some(accepted),
            Ok(Err(Failure::Tls(error, tcp))) => {
                if let Some(reason) = outcome::reason(&error) {
                    self.note(reason, peer, &chain(&error));
                }
                linger(tcp).await;
                return None;
            }
            Ok(Err(Failure::Crowded)) => Refused::Overload,
            Ok(Err(Failure::Closed)) => Refused::Broken,
            Err(_) => Refused::Timeout,
        };
        self.note(refused, peer, "");
        None
    }

    fn note(&self, reason: Refused, peer: SocketAddr, error: &str) {
        self.0.metrics.refuse(reason);
        if reason != Refused::Broken
            && let Some(times) = self.0.lines.note()
        {
            let reason = reason.name();
            tracing::warn!(%peer, reason, error, times, "a connection is refused");
        }
    }

    async fn handshake(&self, tcp: TcpStream) -> Result<Accepted, Failure> {
        let this = &self.0;
        let turn = this.handshakes.turn().await;
        let work = async {
            if this.plaintext {
                let mut first = [0];
                match tcp.peek(&mut first).await {
                    Ok(0) | Err(_) => return Err(Failure::Closed),
                    Ok(_) if first != [HANDSHAKE_RECORD] => {
                        let open = this.metrics.open(false);
                        return Ok(Accepted { stream: Stream::Plain(tcp), caller: None, open });
                    }
                    Ok(_) => {}
                }
            }
            let acceptor = TlsAcceptor::from((this.config)());
            let tls = acceptor.accept(tcp).into_fallible().await;
            let tls = tls.map_err(|(error, tcp)| Failure::Tls(error, tcp))?;
            let caller = this.mutual.as_ref().map(|mutual| authenticated(&tls, mutual));
            let open = this.metrics.open(true);
            Ok(Accepted { stream: Stream::Tls(Box::new(tls.into())), caller, open })
        };
        tokio::select! {
            done = work => done,
            () = turn.ended.notified() => Err(Failure::Crowded),
        }
    }
}

fn authenticated(tls: &TlsStream<TcpStream>, mutual: &Mutual) -> Authenticated {
    let chain = tls.get_ref().1.peer_certificates().unwrap_or_default();
    let leaf = chain.first().and_then(|certificate| Leaf::read(certificate).ok());
    let identity = leaf.and_then(|leaf| leaf.identities().next());
    Authenticated { identity, validity: mutual.validity_of_caller(chain) }
}

/// Why there is no connection.
enum Failure {
    Tls(io::Error, TcpStream),
    Crowded,
    Closed,
}

/// Closes a connection on which an alert was sent, so that the peer can read it.
async fn linger(mut tcp: TcpStream) {
    let drain = async {
        let mut space = [0; 1024];
        tcp.shutdown().await?;
        while tcp.read(&mut space).await? > 0 {}
        io::Result::Ok(())
    };
    let _ = tokio::time::timeout(LINGER, drain).await;
}

/// By number, when each began, and what ends it.
type UnderWay = Arc<Mutex<BTreeMap<u64, (Instant, Arc<Notify>)>>>;

/// The handshakes that are under way. At their limit the next one waits, and the oldest one ends if it is old.
struct Handshakes {
    turns: Arc<Semaphore>,
    /// Held by the first of those that wait.
    first: tokio::sync::Mutex<()>,
    next: AtomicU64,
    under_way: UnderWay,
}

/// The turn of one handshake; it ends when this is dropped.
struct Turn {
    number: u64,
    /// Notified when it has to end.
    ended: Arc<Notify>,
    under_way: UnderWay,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Handshakes {
    fn new(most: usize) -> Self {
        Self {
            turns: Arc::new(Semaphore::new(most)),
            first: tokio::sync::Mutex::default(),
            next: AtomicU64::new(0),
            under_way: Arc::default(),
        }
    }

    async fn turn(&self) -> Turn {
        let permit = match self.turns.clone().try_acquire_owned() {
            Ok(permit) => Some(permit),
            Err(_) => self.wait().await,
        };
        let (number, ended) = (self.next.fetch_add(1, Relaxed), Arc::new(Notify::new()));
        lock(&self.under_way).insert(number, (Instant::now(), ended.clone()));
        Turn { number, ended, under_way: self.under_way.clone(), _permit: permit }
    }

    /// Waits for a turn, in order: only the first of those that wait looks whom to end.
    async fn wait(&self) -> Option<OwnedSemaphorePermit> {
        let _first = self.first.lock().await;
        loop {
            self.end_oldest();
            let freed = self.turns.clone().acquire_owned();
            if let Ok(permit) = tokio::time::timeout(RETRY, freed).await {
                return permit.ok(); // it is never closed
            }
        }
    }

    fn end_oldest(&self) {
        let under_way = lock(&self.under_way);
        if let Some((begun, ended)) = under_way.values().next()
            && begun.elapsed() >= OLD
        {
            ended.notify_one();
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        lock(&self.under_way).remove(&self.number);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn at_the_limit_the_oldest_handshake_ends_once_it_is_old() {
        let handshakes = Handshakes::new(2);
        let (first, _second) = (handshakes.turn().await, handshakes.turn().await);
        let young = tokio::time::timeout(Duration::from_millis(100), handshakes.turn()).await;
        assert!(young.is_err(), "it waits");
        assert!(tokio::time::timeout(Duration::ZERO, first.ended.notified()).await.is_err());
        tokio::time::advance(OLD).await;
        let third = async {
            let ended = async {
                first.ended.notified().await;
                drop(first);
            };
            tokio::join!(handshakes.turn(), ended).0
        };
        let third = tokio::time::timeout(Duration::from_millis(100), third).await.unwrap();
        assert_eq!((third.number, lock(&handshakes.under_way).len()), (2, 2));
    }
}
