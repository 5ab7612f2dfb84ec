//! The value types of the settings: each parses from one string and says what it wants when it cannot.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use http::Uri;
use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// An address to listen on: `IP:port`, `localhost:port`, or `:port` for every IPv4 interface. Port 0
/// takes a free one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenAddr(pub SocketAddr);

impl ListenAddr {
    /// Returns the address of every IPv4 interface.
    #[must_use]
    pub const fn any(port: u16) -> Self {
        Self(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port))
    }

    /// Returns the IPv4 loopback address.
    #[must_use]
    pub const fn loopback(port: u16) -> Self {
        Self(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port))
    }
}

impl FromStr for ListenAddr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let full = match text.strip_prefix("localhost:") {
            Some(port) => format!("127.0.0.1:{port}"),
            None if text.starts_with(':') => format!("0.0.0.0{text}"),
            None => text.to_owned(),
        };
        full.parse().map(Self).map_err(|_| {
            format!("`{text}` is not an address to listen on: want IP:port, localhost:port or :port")
        })
    }
}

impl fmt::Display for ListenAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An address for others to call: `host:port`, with a name or an IP (`[v6]:port`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// Name or IP, IPv6 in brackets.
    pub host: String,
    /// 0 stands for the port that is bound.
    pub port: u16,
}

impl HostPort {
    /// Returns this address with `port` in the place of port 0.
    #[must_use]
    pub fn with_port(&self, port: u16) -> String {
        let port = if self.port == 0 { port } else { self.port };
        format!("{}:{port}", self.host)
    }
}

impl FromStr for HostPort {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not an address to call: want host:port");
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let port = port.parse().map_err(|_| wrong())?;
        let named =
            !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
        if !named && SocketAddr::from_str(text).is_err() {
            return Err(wrong());
        }
        Ok(Self { host: host.to_owned(), port })
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// A set of addresses: one, or a network in CIDR form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network(IpNet);

impl Network {
    /// Returns true if an address (not one of IPv4 mapped into IPv6) is in it.
    #[must_use]
    pub fn contains(&self, ip: IpAddr) -> bool {
        self.0.contains(&ip)
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(ip) = text.parse::<IpAddr>() {
            return Ok(Self(ip.to_canonical().into()));
        }
        let network: IpNet = text.parse().map_err(|_| {
            format!(
                "`{text}` is not an address or a network: want 10.0.0.7, 10.1.0.0/16, fd00::/8 or the like"
            )
        })?;
        if network.trunc() != network {
            return Err(format!("`{text}` has bits behind its prefix: want {}", network.trunc()));
        }
        if network.prefix_len() == 0 {
            return Err(format!("`{text}` is every address: then any client could name any other"));
        }
        Ok(Self(network))
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.prefix_len() == self.0.max_prefix_len() { self.0.addr().fmt(f) } else { self.0.fmt(f) }
    }
}

/// Where spans are sent: `http://host[:port][/path]`; without a path, or with that of version 1, to
/// `/api/v2/spans`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Collector {
    text: String,
    uri: Uri,
}

impl Collector {
    /// Returns where spans of version 2 go.
    #[must_use]
    pub const fn uri(&self) -> &Uri {
        &self.uri
    }

    /// Returns true if the setting asked for version 1.
    #[must_use]
    pub fn was_v1(&self) -> bool {
        self.text.trim_end_matches('/').ends_with(Self::V1)
    }

    const V1: &str = "/api/v1/spans";
    const V2: &str = "/api/v2/spans";
}

impl FromStr for Collector {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            |why: &str| format!("`{text}` is not a collector: {why}; want http://host:port/api/v2/spans");
        let uri: Uri = text.parse().map_err(|_| wrong("it is no URL"))?;
        let host = uri.authority().filter(|authority| !authority.host().is_empty());
        match (uri.scheme_str(), host) {
            (Some("http"), Some(host)) if !host.as_str().contains('@') => {
                let path = uri.path().trim_end_matches('/');
                let path = match path.strip_suffix(Self::V1) {
                    Some(base) => format!("{base}{}", Self::V2),
                    None if path.is_empty() => Self::V2.to_owned(),
                    None => uri.path().to_owned(),
                };
                let uri = Uri::builder().scheme("http").authority(host.clone()).path_and_query(path);
                let uri = uri.build().map_err(|_| wrong("it is no URL"))?;
                Ok(Self { text: text.to_owned(), uri })
            }
            (Some("http"), Some(_)) => Err(wrong("it may not hold a user or a password")),
            (Some("https"), _) => Err(wrong("https is not spoken; a collector beside this process can be")),
            _ => Err(wrong("it is no URL of http")),
        }
    }
}

impl fmt::Display for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Which store, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreUrl {
    /// In memory: lost when the process ends.
    Memory,
    /// A SQLite file.
    Sqlite(PathBuf),
}

impl FromStr for StoreUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("memory", "")) => Ok(Self::Memory),
            Some(("sqlite", path)) if !path.is_empty() => Ok(Self::Sqlite(PathBuf::from(path))),
            _ => Err(format!("`{text}` is not a store: want memory: or sqlite:PATH")),
        }
    }
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory => f.write_str("memory:"),
            Self::Sqlite(path) => write!(f, "sqlite:{}", path.display()),
        }
    }
}

/// Implements the string form of a setting by its `FromStr` and `Display`.
macro_rules! as_string {
    ($($type:ty),*) => {$(
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
            }
        }
    )*};
}
as_string!(Collector, ListenAddr, HostPort, Network, StoreUrl);

/// How the next instance is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Balancer {
    /// Of two usable instances at random the one with less load: recent latency and failures times calls
    /// in flight.
    PeakEwma,
    /// Each usable instance in turn, by address.
    RoundRobin,
}

/// The form of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// `key=value` pairs: time, level, target, message, fields.
    Logfmt,
    /// One JSON object a line.
    Json,
}

/// A `Duration` written as whole milliseconds.
pub mod millis {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    #[allow(missing_docs, clippy::missing_errors_doc, clippy::cast_possible_truncation)]
    pub fn serialize<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(value.as_millis() as u64)
    }

    #[allow(missing_docs, clippy::missing_errors_doc)]
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_millis)
    }
}

/// A `Duration` written as whole seconds.
pub mod seconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    #[allow(missing_docs, clippy::missing_errors_doc)]
    pub fn serialize<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(value.as_secs())
    }

    #[allow(missing_docs, clippy::missing_errors_doc)]
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_secs)
    }
}
