//! The metrics of certificates and of connections with TLS.

use std::time::{SystemTime, UNIX_EPOCH};

use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry};

use super::leaf::Period;
use crate::telemetry::metrics::{counters, gauges};

/// What a set of files is for: the value of the label `purpose`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Calls between the gateway and the services.
    Grpc,
    /// Requests to the gateway.
    Http,
}

impl Purpose {
    /// Returns the label.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Grpc => "grpc",
            Self::Http => "http",
        }
    }
}

/// Which side of a connection this process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// It has accepted the connection.
    Server,
    /// It has opened the connection.
    Client,
}

impl Side {
    const fn name(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Client => "client",
        }
    }
}

/// Why a connection was not taken, or not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refused {
    /// The peer does not speak TLS.
    Plaintext,
    /// The peer shows no certificate.
    NoCertificate,
    /// The peer's certificate is of an authority that is not trusted, or is not what it says.
    Untrusted,
    /// The peer's certificate has expired, or is not valid yet.
    Expired,
    /// The peer's certificate breaks a rule of SPIFFE.
    Leaf,
    /// The peer is somebody else than it must be.
    Identity,
    /// The peer refuses our certificate. Only a server learns so in the handshake; a client reads it later, in place of
    /// an answer.
    Ours,
    /// The peers have no version or cipher in common, or one breaks the protocol.
    Protocol,
    /// The handshake takes too long.
    Timeout,
    /// Too many handshakes are under way, and this was the oldest.
    Overload,
    /// The connection broke.
    Broken,
}

impl Refused {
    /// Every reason.
    pub const ALL: [Self; 11] = [
        Self::Plaintext,
        Self::NoCertificate,
        Self::Untrusted,
        Self::Expired,
        Self::Leaf,
        Self::Identity,
        Self::Ours,
        Self::Protocol,
        Self::Timeout,
        Self::Overload,
        Self::Broken,
    ];

    /// Returns the label.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Plaintext => "plaintext",
            Self::NoCertificate => "no_certificate",
            Self::Untrusted => "untrusted",
            Self::Expired => "expired",
            Self::Leaf => "leaf",
            Self::Identity => "identity",
            Self::Ours => "ours",
            Self::Protocol => "protocol",
            Self::Timeout => "timeout",
            Self::Overload => "overload",
            Self::Broken => "broken",
        }
    }
}

/// The metrics of TLS of a process.
#[derive(Clone, Debug)]
pub struct Metrics {
    expiry: IntGaugeVec,
    lifetime: IntGaugeVec,
    reloads: IntCounterVec,
    stale: IntGaugeVec,
    connections: IntCounterVec,
    open: IntGaugeVec,
    refused: IntCounterVec,
}

impl Metrics {
    /// Registers the metrics.
    ///
    /// # Errors
    /// When a name is taken.
    pub fn register(r: &Registry) -> prometheus::Result<Self> {
        Ok(Self {
            expiry: gauges(
                r,
                "tls_certificate_expiry_timestamp_seconds",
                "When the certificate in use expires, and when the first of the trusted authorities does, seconds since 1970.",
                &["purpose", "certificate"],
            )?,
            lifetime: gauges(
                r,
                "tls_certificate_lifetime_seconds",
                "Time from the begin to the end of the validity of the same certificates.",
                &["purpose", "certificate"],
            )?,
            reloads: counters(
                r,
                "tls_reloads_total",
                "Changes of the files with certificates, by whether they could be used.",
                &["purpose", "result"],
            )?,
            stale: gauges(
                r,
                "tls_files_unusable",
                "1 while the files cannot be used and the certificate from before is in use.",
                &["purpose"],
            )?,
            connections: counters(
                r,
                "tls_connections_total",
                "Connections that were accepted (server) or opened (client), by transport.",
                &["purpose", "side", "transport"],
            )?,
            open: gauges(
                r,
                "tls_server_connections",
                "Open connections that this process has accepted, by transport.",
                &["purpose", "transport"],
            )?,
            refused: counters(
                r,
                "tls_refused_total",
                "Connections that were not taken (server) or not opened (client), by reason.",
                &["purpose", "side", "reason"],
            )?,
        })
    }

    /// Returns the metrics of one set of files.
    #[must_use]
    pub fn of_files(&self, purpose: Purpose) -> FileMetrics {
        let reloads = |result| self.reloads.with_label_values(&[purpose.name(), result]);
        FileMetrics {
            expiry: self.expiry.clone(),
            lifetime: self.lifetime.clone(),
            purpose,
            used: reloads("ok"),
            failed: reloads("failed"),
            unusable: self.stale.with_label_values(&[purpose.name()]),
        }
    }

    /// Returns the metrics of the connections of one side, each at 0 from the start.
    #[must_use]
    pub fn of_connections(&self, purpose: Purpose, side: Side) -> ConnectionMetrics {
        let count = |name| self.connections.with_label_values(&[purpose.name(), side.name(), name]);
        let open =
            |name| (side == Side::Server).then(|| self.open.with_label_values(&[purpose.name(), name]));
        let refused =
            |reason: Refused| self.refused.with_label_values(&[purpose.name(), side.name(), reason.name()]);
        ConnectionMetrics {
            tls: count("tls"),
            plaintext: count("plaintext"),
            open_tls: open("tls"),
            open_plaintext: open("plaintext"),
            refused: Refused::ALL.map(|reason| (reason, refused(reason))),
        }
    }
}

/// The metrics of one set of files.
#[derive(Clone, Debug)]
pub struct FileMetrics {
    expiry: IntGaugeVec,
    lifetime: IntGaugeVec,
    purpose: Purpose,
    used: IntCounter,
    failed: IntCounter,
    unusable: IntGauge,
}

impl FileMetrics {
    /// Notes what is in use.
    pub fn set_in_use(&self, own: Period, authority: Option<Period>) {
        // there is no series of an authority where none is trusted
        for (certificate, period) in [("own", Some(own)), ("authority", authority)] {
            let Some(Period { from, to }) = period else { continue };
            let seconds = |from, to: SystemTime| {
                let time = to.duration_since(from).unwrap_or_default();
                i64::try_from(time.as_secs()).unwrap_or(i64::MAX)
            };
            let labels = [self.purpose.name(), certificate];
            self.expiry.with_label_values(&labels).set(seconds(UNIX_EPOCH, to));
            self.lifetime.with_label_values(&labels).set(seconds(from, to));
        }
    }

    /// Counts a change that could be used.
    pub fn note_used(&self) {
        self.used.inc();
    }

    /// Counts a change that could not be used.
    pub fn note_failed(&self) {
        self.failed.inc();
    }

    /// Notes whether what is in use is older than the files.
    pub fn set_unusable(&self, unusable: bool) {
        self.unusable.set(unusable.into());
    }
}

/// The metrics of the connections of one side.
#[derive(Clone, Debug)]
pub struct ConnectionMetrics {
    tls: IntCounter,
    plaintext: IntCounter,
    open_tls: Option<IntGauge>,
    open_plaintext: Option<IntGauge>,
    refused: [(Refused, IntCounter); Refused::ALL.len()],
}

impl ConnectionMetrics {
    /// Counts a connection; it is open until the guard is dropped.
    #[must_use]
    pub fn open(&self, is_tls: bool) -> Open {
        if is_tls { &self.tls } else { &self.plaintext }.inc();
        let gauge = if is_tls { &self.open_tls } else { &self.open_plaintext }.clone();
        gauge.iter().for_each(IntGauge::inc);
        Open(gauge)
    }

    /// Counts a refusal.
    pub fn refuse(&self, reason: Refused) {
        if let Some((_, counter)) = self.refused.iter().find(|(known, _)| *known == reason) {
            counter.inc();
        }
    }
}

/// A connection that is open.
#[derive(Debug, Default)]
pub struct Open(Option<IntGauge>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.iter().for_each(IntGauge::dec);
    }
}
