//! Opens one connection to the host that can be written to.
//!
//! tokio-postgres bounds only the TCP part of a connection attempt and tries one host after the other, so a frozen host
//! that is named first would hang every reconnect. Here the whole attempt at a host is bounded, and the next host is
//! tried while a slow one is still awaited. A standby is asked again and again on the same connection: it may be the one
//! that is promoted, and to ask costs it less than a new session.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use std::{fmt, io};

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio::time::Instant;
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::{Config, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;
use tokio_rustls::rustls::ClientConfig;
use tokio_util::either::Either;

use super::credentials::Files;
use super::failure::reason;
use super::link::{Link, Role};
use super::timeline::Newest;
use crate::config::Store;

/// Longest time for the whole connection to one host: TCP, TLS, the login, and the check that it can be written to. A
/// standby has as long to be promoted.
pub const CONNECT: Duration = Duration::from_secs(1);
/// Time after which a standby is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(50);
/// Time after which the next host is tried while one has not answered.
const STAGGER: Duration = Duration::from_millis(250);
/// Time in which the other hosts may show that they have taken the place of one that was found.
const SETTLE: Duration = Duration::from_millis(250);
/// TCP ends a connection whose peer acknowledges nothing for so long, when there is something to send.
const UNACKNOWLEDGED: Duration = Duration::from_secs(10);
/// An idle connection is probed after this time, and then this often.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// A byte stream to a server.
type Socket = Either<TcpStream, UnixStream>;

/// Where PostgreSQL is, and how it is reached.
#[derive(Clone, Debug)]
pub struct Target {
    config: Config,
    places: Vec<Place>,
    files: Files,
    /// The newest timeline of all connections of the store.
    newest: Newest,
    /// Longest time of one statement and of one commit.
    pub timeout: Duration,
}

/// One host of the URL.
#[derive(Clone, Debug)]
enum Place {
    /// A name or an address, and the port.
    Tcp(String, u16),
    /// The path of the socket.
    Unix(PathBuf),
}

/// A connection to a host.
enum Found {
    Primary(Link),
    /// It cannot be written to, and why.
    Standby(Link, &'static str),
}

/// The end of an attempt at the host with this number.
type Attempt<'a> = BoxFuture<'a, (usize, Result<Found, String>)>;

impl Target {
    /// Takes the place from the settings, and looks whether the files that they name can be used.
    ///
    /// # Errors
    /// Which file cannot be used, and why.
    pub fn new(config: &Config, settings: &Store) -> Result<Self, String> {
        let files = Files::new(settings);
        let found = files.read().map_err(|error| error.to_string())?;
        let mut config = config.clone();
        config.ssl_mode(if found.tls.is_some() { SslMode::Require } else { SslMode::Disable });
        if config.get_application_name().is_none() {
            config.application_name(env!("CARGO_PKG_NAME"));
        }
        let ports = config.get_ports();
        let port = |at: usize| ports.get(at).or_else(|| ports.first()).copied().unwrap_or(5432);
        let places = config.get_hosts().iter().enumerate().map(|(at, host)| match host {
            Host::Tcp(name) => Place::Tcp(name.clone(), port(at)),
            Host::Unix(directory) => Place::Unix(directory.join(format!(".s.PGSQL.{}", port(at)))),
        });
        let places = places.collect();
        Ok(Self { config, places, files, newest: Newest::default(), timeout: settings.timeout })
    }

    /// Connects to the first host that can be written to. The host at `first` is tried first; a host that has not answered
    /// is given time while the next one is tried. Returns the connection and the number of its host.
    ///
    /// # Errors
    /// What each host said.
    pub async fn connect(&self, first: usize) -> Result<(Link, usize), String> {
        let count = self.places.len();
        let mut waiting = (0..count).map(|step| (first + step) % count);
        let (mut attempts, mut standbys) = (FuturesUnordered::new(), FuturesUnordered::new());
        let mut failures = Vec::new();
        loop {
            match waiting.next() {
                Some(at) => attempts.push(self.attempt(at)),
                None if attempts.is_empty() && standbys.is_empty() => return Err(failures.join("; ")),
                None => {}
            }
            let more = waiting.len() > 0;
            let pause =
                async { if more { tokio::time::sleep(STAGGER).await } else { std::future::pending().await } };
            tokio::pin!(pause);
            loop {
                let (at, ended) = tokio::select! {
                    biased;
                    Some(ended) = attempts.next() => ended,
                    Some(ended) = standbys.next() => ended,
                    () = &mut pause => break,
                    else => break,
                };
                match ended {
                    Ok(Found::Primary(link)) => {
                        attempts.extend(waiting.map(|at| self.attempt(at)));
                        return Ok(Self::newest((link, at), attempts).await);
                    }
                    Ok(Found::Standby(link, why)) => standbys.push(self.await_promotion(at, link, why)),
                    Err(failure) => failures.push(format!("{}: {failure}", self.places[at])),
                }
                if more || (attempts.is_empty() && standbys.is_empty()) {
                    break;
                }
            }
        }
    }

    /// Returns the connection with the newest timeline of one that was found and those that are found soon.
    async fn newest(found: (Link, usize), mut attempts: FuturesUnordered<Attempt<'_>>) -> (Link, usize) {
        let (mut best, until) = (found, Instant::now() + SETTLE);
        while let Ok(Some((at, ended))) = tokio::time::timeout_at(until, attempts.next()).await {
            if let Ok(Found::Primary(link)) = ended
                && let (Some(this), Some(known)) = (link.timeline(), best.0.timeline())
                && this.supersedes(&known)
            {
                best = (link, at);
            }
        }
        best
    }

    /// Looks for a server that has taken the place of the one at `used`, so that the connections to that one are given up
    /// when they are checked.
    pub async fn look_beside(&self, used: usize) {
        let others = (0..self.places.len()).filter(|at| *at != used);
        // each that can be written to is taken note of
        futures_util::future::join_all(others.map(|at| self.attempt(at))).await;
    }

    /// Checks that a server can be written to, and that none has taken its place.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub async fn check(&self, link: &Link) -> Result<(), String> {
        link.check().await?;
        self.newest.admit(link.timeline())
    }

    /// Waits until another server is found that has taken the place of the one of a connection; returns that.
    pub async fn superseded(&self, link: &Link) -> String {
        self.newest.superseded(link.timeline()).await
    }

    /// Returns the names of all hosts.
    pub fn hosts(&self) -> Vec<String> {
        self.places.iter().map(ToString::to_string).collect()
    }

    /// Returns the name of a host, for people.
    pub fn host(&self, at: usize) -> String {
        self.places.get(at).map(ToString::to_string).unwrap_or_default()
    }

    fn attempt(&self, at: usize) -> Attempt<'_> {
        Box::pin(async move {
            let limit = self.config.get_connect_timeout().copied().unwrap_or(CONNECT);
            let ended = crate::timeout::timeout(limit, self.open(&self.places[at])).await;
            (at, ended.unwrap_or_else(|_| Err(format!("no connection within {limit:?}"))))
        })
    }

    /// Asks a standby again and again, for as long as an attempt may take.
    fn await_promotion(&self, at: usize, link: Link, mut why: &'static str) -> Attempt<'_> {
        Box::pin(async move {
            let asked = async {
                loop {
                    tokio::time::sleep(ASK_AGAIN).await;
                    match link.ask().await? {
                        Role::Primary => return self.newest.admit(link.timeline()),
                        Role::Standby(still) => why = still,
                    }
                }
            };
            let ended: Result<Result<(), String>, _> = crate::timeout::timeout(CONNECT, asked).await;
            let found = ended.unwrap_or_else(|_| Err(why.to_owned()));
            (at, found.map(|()| Found::Primary(link)))
        })
    }

    /// Opens a connection to one host and asks what it is.
    async fn open(&self, place: &Place) -> Result<Found, String> {
        let files = self.files.clone();
        let read = tokio::task::spawn_blocking(move || files.read().map_err(|error| error.to_string())).await;
        let credentials = read.map_err(|error| error.to_string())??;
        let mut config = self.config.clone();
        if let Some(password) = credentials.password {
            config.password(password);
        }
        let socket = place.connect().await.map_err(|error| error.to_string())?;
        let second = second_handle(&socket);
        let mut link = log_in(config, place.clone(), socket, credentials.tls).await?;
        if let Some(second) = second {
            link.reset_with(second);
        }
        Ok(match link.ask().await? {
            Role::Primary => {
                self.newest.admit(link.timeline())?;
                Found::Primary(link)
            }
            Role::Standby(why) => Found::Standby(link, why),
        })
    }
}

/// Begins TLS if it is wanted, and logs in.
fn log_in(
    mut config: Config,
    place: Place,
    socket: Socket,
    tls: Option<ClientConfig>,
) -> BoxFuture<'static, Result<Link, String>> {
    match (tls, place) {
        (Some(tls), Place::Tcp(name, _)) => Box::pin(async move {
            let mut tls = MakeRustlsConnect::new(tls);
            let tls = MakeTlsConnect::<Socket>::make_tls_connect(&mut tls, &name);
            let tls = tls.map_err(|error| error.to_string())?;
            let (client, connection) = config.connect_raw(socket, tls).await.map_err(|e| reason(&e))?;
            Ok(Link::new(client, connection))
        }),
        (None, _) | (_, Place::Unix(_)) => Box::pin(async move {
            config.ssl_mode(SslMode::Disable);
            let (client, connection) = config.connect_raw(socket, NoTls).await.map_err(|e| reason(&e))?;
            Ok(Link::new(client, connection))
        }),
    }
}

impl Place {
    /// Opens a byte stream: TCP to the first address of the name that accepts, or the socket of a server on this host.
    fn connect(&self) -> BoxFuture<'static, io::Result<Socket>> {
        let place = self.clone();
        Box::pin(async move {
            let (name, port) = match place {
                Self::Unix(path) => return UnixStream::connect(path).await.map(Either::Right),
                Self::Tcp(name, port) => (name, port),
            };
            let addrs: Vec<SocketAddr> = lookup_host((name, port)).await?.collect();
            let mut failure = io::Error::other("the name has no address");
            for addr in addrs {
                match TcpStream::connect(addr).await {
                    Ok(tcp) => return prepare(&tcp).map(|()| Either::Left(tcp)),
                    Err(error) => failure = error,
                }
            }
            Err(failure)
        })
    }
}

/// Returns another handle to a socket of TCP.
fn second_handle(socket: &Socket) -> Option<socket2::Socket> {
    match socket {
        Either::Left(tcp) => SockRef::from(tcp).try_clone().ok(),
        Either::Right(_) => None,
    }
}

/// Sets the options of a connection over TCP.
fn prepare(tcp: &TcpStream) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    let socket = SockRef::from(tcp);
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED))?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE))
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(name, port) if name.contains(':') => write!(f, "[{name}]:{port}"),
            Self::Tcp(name, port) => write!(f, "{name}:{port}"),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}
