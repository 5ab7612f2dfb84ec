//! The value types of the settings: each is parsed from a text, and its errors name the accepted form.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use http::Uri;
use ipnet::IpNet;

use super::shown::shown;
use super::value::by_text;

/// An address to listen on: `IP:port`, `localhost:port`, or `:port` for every interface, with IPv6 and IPv4. Port 0
/// takes a free one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenAddr(pub SocketAddr);

impl ListenAddr {
    /// The form of its text.
    pub const FORM: &str = "IP:port, localhost:port or :port";

    /// Returns the address of every interface, with IPv6 and IPv4.
    #[must_use]
    pub const fn any(port: u16) -> Self {
        Self(SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port))
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
            None if text.starts_with(':') => format!("[::]{text}"),
            None => text.to_owned(),
        };
        full.parse()
            .map(Self)
            .map_err(|_| format!("`{}` is not an address to listen on: want {}", shown(text), Self::FORM))
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
    /// The form of its text.
    pub const FORM: &str = "host:port";

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
        let wrong = || format!("`{}` is not an address to call: want {}", shown(text), Self::FORM);
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        // `parse` alone takes a sign
        let digits = Some(port).filter(|port| port.bytes().all(|b| b.is_ascii_digit()));
        let port = digits.and_then(|port| port.parse().ok()).ok_or_else(wrong)?;
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
    /// The form of its text.
    pub const FORM: &str = "an address or a network, such as 10.0.0.7, 10.1.0.0/16 or fd00::/8";

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
        let network: IpNet = text
            .parse()
            .map_err(|_| format!("`{}` is not an address or a network: want {}", shown(text), Self::FORM))?;
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
    /// The form of its text.
    pub const FORM: &str = "http://host[:port][/path]";

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
        let wrong = |why: &str| format!("`{}` is not a collector: {why}; want {}", shown(text), Self::FORM);
        let uri: Uri = text.parse().map_err(|_| wrong("it is not a URL"))?;
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
                let uri = uri.build().map_err(|_| wrong("it is not a URL"))?;
                Ok(Self { text: text.to_owned(), uri })
            }
            (Some("http"), Some(_)) => Err(wrong("it must not contain a user or a password")),
            (Some("https"), _) => {
                Err(wrong("https is not supported; run a collector or a proxy on this host"))
            }
            _ => Err(wrong("it is not a URL of http")),
        }
    }
}

impl fmt::Display for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

by_text!(ListenAddr, HostPort, Network, Collector, Balancer, LogFormat, Switch, TlsMode);

/// Defines an enum whose variants have a name in files, variables and flags.
macro_rules! choice {
    (
        $(#[doc = $about:literal])+
        $choice:ident { $( $(#[doc = $doc:literal])+ $variant:ident = $name:literal, )+ }
    ) => {
        $(#[doc = $about])+
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $choice { $( $(#[doc = $doc])+ $variant, )+ }

        impl $choice {
            /// The name of each.
            pub const NAMES: &[&str] = &[$($name),+];
        }

        impl FromStr for $choice {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                match text {
                    $( $name => Ok(Self::$variant), )+
                    _ => Err(format!("`{}` is none of {}", shown(text), Self::NAMES.join(", "))),
                }
            }
        }

        impl fmt::Display for $choice {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $( Self::$variant => $name, )+ })
            }
        }
    };
}

choice! {
    /// How the next instance is chosen.
    Balancer {
        /// The less loaded of two usable instances that are picked at random. The load is the recent latency
        /// and failures times the calls in flight.
        PeakEwma = "peak_ewma",
        /// Each usable instance in turn, in the order of the addresses.
        RoundRobin = "round_robin",
    }
}

choice! {
    /// The form of a log line.
    LogFormat {
        /// `key=value` pairs: time, level, target, message, fields.
        Logfmt = "logfmt",
        /// One JSON object a line.
        Json = "json",
    }
}

choice! {
    /// Whether something is there.
    Switch {
        /// It is.
        On = "on",
        /// It is not.
        Off = "off",
    }
}

choice! {
    /// Whether calls between the parts are encrypted.
    TlsMode {
        /// They are plaintext.
        Off = "off",
        /// Services take both, and callers prefer TLS.
        Permissive = "permissive",
        /// TLS only.
        Strict = "strict",
    }
}
