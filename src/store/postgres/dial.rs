//! Opens one connection to the host that can be written to.
//!
//! tokio-postgres bounds only the TCP part of a connection attempt and tries one host after the other, so a frozen host
//! that is named first would hang every reconnect. Here the whole attempt at a host is bounded, and the next host is
//! tried while a slow one is still awaited. Each address of a name is tried like a host of its own: one may be silent, or
//! that of a standby. A standby is asked again and again on the same connection: it may be the one that is promoted, and to
//! ask costs it less than a new session.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;
use std::{fmt, io};

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio::time::{Instant, sleep_until};
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::{Config, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;
use tokio_rustls::rustls::ClientConfig;
use tokio_util::either::Either;

use super::credentials::Files;
use super::failure::reason;
use super::link::{Link, Role};
use super::timeline::{Newest, Timeline};
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

/// Most addresses of one name that are tried.
const ADDRESSES: usize = 8;

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
    look_up: LookUp,
}

/// Returns the addresses of a name.
type LookUp = fn(String, u16) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>>;

/// What is tried: a host, by one of the addresses of its name once that has been looked up.
#[derive(Clone, Copy, Debug)]
struct Spot {
    host: usize,
    addr: Option<SocketAddr>,
}

/// One host of the URL.
#[derive(Clone, Debug)]
enum Place {
    /// A name or an address, and the port.
    Tcp(String, u16),
    /// The path of the socket.
    Unix(PathBuf),
}

/// What became of a spot.
enum Found {
    /// Its name has these addresses.
    Addresses(Vec<SocketAddr>),
    Primary(Link),
    /// It cannot be written to, and why.
    Standby(Link, &'static str),
}

/// The end of an attempt.
type Attempt<'a> = BoxFuture<'a, (Spot, Result<Found, String>)>;

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
        Ok(Self { config, places, files, newest: Newest::default(), timeout: settings.timeout, look_up })
    }

    /// Connects to the first host that can be written to. The host at `first` is tried first; a host that has not answered
    /// is given time while the next one is tried. Returns the connection and the number of its host.
    ///
    /// # Errors
    /// What each host said.
    pub async fn connect(&self, first: usize) -> Result<(Link, usize), String> {
        let count = self.places.len();
        let hosts = (0..count).map(|step| Spot { host: (first + step) % count, addr: None });
        let mut waiting: VecDeque<_> = hosts.collect();
        let (mut attempts, mut standbys) = (FuturesUnordered::new(), FuturesUnordered::new());
        let mut failures = Vec::new();
        loop {
            match waiting.pop_front() {
                Some(spot) => attempts.push(self.attempt(spot)),
                None if attempts.is_empty() && standbys.is_empty() => return Err(failures.join("; ")),
                None => {}
            }
            let next = Instant::now() + STAGGER;
            loop {
                let more = !waiting.is_empty();
                let pause =
                    async { if more { sleep_until(next).await } else { std::future::pending().await } };
                let (spot, ended) = tokio::select! {
                    biased;
                    Some(ended) = attempts.next() => ended,
                    Some(ended) = standbys.next() => ended,
                    () = pause => break,
                    else => break,
                };
                let host = spot.host;
                match ended {
                    Ok(Found::Primary(link)) => {
                        attempts.extend(waiting.into_iter().map(|spot| self.attempt(spot)));
                        return Ok(self.newest((link, host), attempts).await);
                    }
                    Ok(Found::Standby(link, why)) => standbys.push(self.await_promotion(spot, link, why)),
                    Ok(Found::Addresses(addrs)) => {
                        let mut spots = addrs.into_iter().map(|addr| Spot { host, addr: Some(addr) });
                        // the others come after the other hosts
                        attempts.extend(spots.next().map(|spot| self.attempt(spot)));
                        waiting.extend(spots);
                        continue;
                    }
                    Err(failure) => failures.push(match spot.addr {
                        Some(addr) => format!("{} ({}): {failure}", self.places[host], addr.ip()),
                        None => format!("{}: {failure}", self.places[host]),
                    }),
                }
                if !waiting.is_empty() || (attempts.is_empty() && standbys.is_empty()) {
                    break;
                }
            }
        }
    }

    /// Returns the connection with the newest timeline of one that was found and those that are found soon.
    async fn newest<'a>(
        &'a self,
        found: (Link, usize),
        mut attempts: FuturesUnordered<Attempt<'a>>,
    ) -> (Link, usize) {
        let (mut best, until) = (found, Instant::now() + SETTLE);
        while let Ok(Some((Spot { host, .. }, ended))) = tokio::time::timeout_at(until, attempts.next()).await
        {
            match ended {
                Ok(Found::Primary(link)) => {
                    if let (Some(this), Some(known)) = (link.timeline(), best.0.timeline())
                        && this.supersedes(&known)
                    {
                        best = (link, host);
                    }
                }
                Ok(Found::Addresses(addrs)) => attempts.extend(self.attempts(host, addrs)),
                Ok(Found::Standby(..)) | Err(_) => (),
            }
        }
        best
    }

    fn attempts(&self, host: usize, addrs: Vec<SocketAddr>) -> impl Iterator<Item = Attempt<'_>> {
        addrs.into_iter().map(move |addr| self.attempt(Spot { host, addr: Some(addr) }))
    }

    /// Looks for a server that has taken the place of the one at `used`, so that the connections to that one are given up
    /// when they are checked.
    pub async fn look_beside(&self, used: usize) {
        // the name of the one that is used may have other addresses
        let hosts = (0..self.places.len()).filter(|host| *host != used || self.places[*host].is_a_name());
        let mut attempts: FuturesUnordered<_> =
            hosts.map(|host| self.attempt(Spot { host, addr: None })).collect();
        // each that can be written to is taken note of
        while let Some((Spot { host, .. }, ended)) = attempts.next().await {
            if let Ok(Found::Addresses(addrs)) = ended
                && (host != used || addrs.len() > 1)
            {
                attempts.extend(self.attempts(host, addrs));
            }
        }
    }

    /// Checks that a server can be written to, and that none has taken its place.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub async fn check(&self, link: &Link) -> Result<(), String> {
        link.check().await?;
        self.newest.admit(link.timeline())
    }

    /// Waits until another server is found that has taken the place of one with this timeline; returns that.
    pub async fn superseded(&self, timeline: Option<Timeline>) -> String {
        self.newest.superseded(timeline).await
    }

    /// Returns the names of all hosts.
    pub fn hosts(&self) -> Vec<String> {
        self.places.iter().map(ToString::to_string).collect()
    }

    /// Returns the name of a host, for people.
    pub fn host(&self, at: usize) -> String {
        self.places.get(at).map(ToString::to_string).unwrap_or_default()
    }

    fn attempt(&self, spot: Spot) -> Attempt<'_> {
        Box::pin(async move {
            let limit = self.config.get_connect_timeout().copied().unwrap_or(CONNECT);
            let ended = crate::timeout::timeout(limit, self.attempt_at(spot)).await;
            (spot, ended.unwrap_or_else(|_| Err(format!("no connection within {limit:?}"))))
        })
    }

    /// Looks the name of a host up, unless it is an address, or connects.
    async fn attempt_at(&self, spot: Spot) -> Result<Found, String> {
        let place = &self.places[spot.host];
        let addr = match (place, spot.addr) {
            (Place::Tcp(name, port), None) => {
                let Ok(ip) = name.parse::<IpAddr>() else {
                    let addrs = (self.look_up)(name.clone(), *port).await;
                    let addrs = addrs.map_err(|error| error.to_string())?;
                    return Ok(Found::Addresses(addrs.into_iter().take(ADDRESSES).collect()));
                };
                Some(SocketAddr::new(ip, *port))
            }
            (_, addr) => addr,
        };
        self.open(place, addr).await
    }

    /// Asks a standby again and again, for as long as an attempt may take.
    fn await_promotion(&self, spot: Spot, link: Link, mut why: &'static str) -> Attempt<'_> {
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
            (spot, found.map(|()| Found::Primary(link)))
        })
    }

    /// Opens a connection to one host and asks what it is.
    async fn open(&self, place: &Place, addr: Option<SocketAddr>) -> Result<Found, String> {
        let files = self.files.clone();
        let read = tokio::task::spawn_blocking(move || files.read().map_err(|error| error.to_string())).await;
        let credentials = read.map_err(|error| error.to_string())??;
        let mut config = self.config.clone();
        if let Some(password) = credentials.password {
            config.password(password);
        }
        let socket = place.connect(addr).await.map_err(|error| error.to_string())?;
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
    /// Returns true if it has to be looked up.
    fn is_a_name(&self) -> bool {
        matches!(self, Self::Tcp(name, _) if name.parse::<IpAddr>().is_err())
    }

    /// Opens a byte stream: TCP to an address, or the socket of a server on this host.
    fn connect(&self, addr: Option<SocketAddr>) -> BoxFuture<'static, io::Result<Socket>> {
        let place = self.clone();
        Box::pin(async move {
            match (place, addr) {
                (Self::Unix(path), _) => UnixStream::connect(path).await.map(Either::Right),
                (Self::Tcp(..), Some(addr)) => {
                    let tcp = TcpStream::connect(addr).await?;
                    prepare(&tcp)?;
                    Ok(Either::Left(tcp))
                }
                (Self::Tcp(..), None) => Err(no_address()),
            }
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

/// Asks the system for the addresses of a name: at least one.
fn look_up(name: String, port: u16) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> {
    Box::pin(async move {
        let addrs: Vec<_> = lookup_host((name, port)).await?.collect();
        if addrs.is_empty() { Err(no_address()) } else { Ok(addrs) }
    })
}

fn no_address() -> io::Error {
    io::Error::other("the name has no address")
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

#[cfg(test)]
mod tests {
    use std::sync::OnceLock;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    /// The addresses of every name here.
    static ADDRS: OnceLock<Vec<SocketAddr>> = OnceLock::new();

    /// A server that refuses everybody as one that starts does.
    async fn refuse(listener: TcpListener) {
        while let Ok((mut socket, _)) = listener.accept().await {
            let _ = socket.read(&mut [0; 1024]).await;
            let said = b"SFATAL\0C57P03\0Mit is starting up\0\0";
            let length = u8::try_from(4 + said.len()).unwrap();
            let _ = socket.write_all(&[b"E\0\0\0", &[length][..], &said[..]].concat()).await;
        }
    }

    #[tokio::test]
    async fn each_address_of_a_name_is_tried_while_another_is_silent() {
        let (silent, refusing) = (
            TcpListener::bind("127.0.0.1:0").await.unwrap(),
            TcpListener::bind("127.0.0.1:0").await.unwrap(),
        );
        ADDRS.set([&silent, &refusing].map(|l| l.local_addr().unwrap()).to_vec()).unwrap();
        tokio::spawn(refuse(refusing));
        let url: crate::config::PostgresUrl = "postgres://app@db.example,127.0.0.1:1/msa".parse().unwrap();
        let mut target = Target::new(url.config(), &Store::default()).unwrap();
        target.look_up = |_, _| Box::pin(async { Ok(ADDRS.get().unwrap().clone()) });
        let begun = Instant::now();
        let told = target.connect(0).await.err().unwrap();
        // the limit of the silent one, and what a busy machine adds
        assert!(begun.elapsed() < CONNECT + Duration::from_secs(2), "{:?}", begun.elapsed());
        for part in [
            "db.example:5432 (127.0.0.1): no connection within 1s",
            "db.example:5432 (127.0.0.1): it is starting up (SQLSTATE 57P03)",
            "127.0.0.1:1: Connection refused",
        ] {
            assert!(told.contains(part), "{told}");
        }
        assert!(
            told.find("it is starting up").unwrap() < told.find("no connection within").unwrap(),
            "{told}"
        );
    }
}
