//! Why a session with etcd ended, and the time limit of its calls.

use std::time::Duration;

use etcd_client::WatchResponse;
use tokio::time::Instant;
use tokio_rustls::rustls::AlertDescription;

use crate::backoff::Backoff;
use crate::config;
use crate::credentials::Unusable;

/// The first wait after a failure.
const FIRST_WAIT: Duration = Duration::from_millis(100);

/// Why a session with etcd ended.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// A file with credentials cannot be used.
    #[error(transparent)]
    File(#[from] Unusable),
    /// No connection to any member.
    #[error("{0}")]
    Unreachable(String),
    /// etcd refuses the credentials of this process.
    #[error("{0}")]
    Refused(String),
    /// The token that etcd issued for a user and password is no longer valid.
    #[error("the token from etcd is no longer valid")]
    Token,
    /// Any other error of etcd.
    #[error("etcd: {0}")]
    Etcd(etcd_client::Error),
    /// A call took longer than `registry.timeout_ms`.
    #[error("etcd did not answer {0} in time")]
    Slow(&'static str),
    /// A watch received nothing, not even progress, for this time.
    #[error("etcd was silent for {0:?}")]
    Silent(Duration),
    /// etcd ended a stream.
    #[error("etcd ended the stream")]
    Ended,
    /// etcd cancelled a watch.
    #[error("etcd cancelled the watch: {0}")]
    Cancelled(String),
    /// etcd cancelled a watch that had fallen behind: the events after this revision are not complete any more.
    #[error("etcd cancelled the watch: events up to revision {0} are compacted")]
    Compacted(i64),
    /// Events were lost.
    #[error("a list differs from the events in {0} keys")]
    Differs(usize),
    /// The lease of a registration has expired.
    #[error("the lease has expired")]
    LeaseLost,
}

impl From<etcd_client::Error> for Failure {
    fn from(error: etcd_client::Error) -> Self {
        let etcd_client::Error::GRpcStatus(status) = &error else {
            return Self::Etcd(error);
        };
        let message = status.message();
        if message.contains("authentication failed") {
            return Self::Refused(
                "etcd refuses the user or the password: check registry.user and registry.password_file"
                    .to_owned(),
            );
        }
        if message.contains("user name is empty") {
            return Self::Refused(
                "etcd asks for a user: set registry.user and registry.password_file".to_owned(),
            );
        }
        // the second one: users or roles have changed since a JWT was issued
        if message.contains("invalid auth token") || message.contains("revision of auth store is old") {
            return Self::Token;
        }
        Self::Etcd(error)
    }
}

/// Returns why etcd cancelled a watch. For a compacted one it gives no reason in words.
pub fn cancelled(message: &WatchResponse) -> Failure {
    match message.compact_revision() {
        0 => Failure::Cancelled(message.cancel_reason().to_owned()),
        revision => Failure::Compacted(revision),
    }
}

/// Returns the failure if etcd ended a connection because of the certificate of this process.
pub fn refused_certificate(alert: AlertDescription) -> Option<Failure> {
    use AlertDescription as A;
    match alert {
        A::CertificateRequired => Some(Failure::Refused(
            "etcd asks for a certificate: set registry.cert_file and registry.key_file".to_owned(),
        )),
        A::AccessDenied
        | A::BadCertificate
        | A::CertificateExpired
        | A::CertificateRevoked
        | A::CertificateUnknown
        | A::UnknownCA
        | A::UnsupportedCertificate => Some(Failure::Refused(format!(
            "etcd refuses our certificate or asks for one ({alert:?}): check registry.cert_file and \
             registry.key_file"
        ))),
        _ => None,
    }
}

/// Returns whether an error is a gRPC status whose message contains a text.
pub fn says(error: &etcd_client::Error, message: &str) -> bool {
    matches!(error, etcd_client::Error::GRpcStatus(status) if status.message().contains(message))
}

/// Runs one call under the time limit of calls.
pub async fn limit<T>(
    settings: &config::Registry,
    what: &'static str,
    call: impl Future<Output = Result<T, etcd_client::Error>>,
) -> Result<T, Failure> {
    // boxed: the futures of etcd-client are large, and sessions hold many of them
    match crate::timeout::timeout(settings.timeout, Box::pin(call)).await {
        Ok(result) => result.map_err(Failure::from),
        Err(_) => Err(Failure::Slow(what)),
    }
}

/// Returns the waits between sessions.
pub fn backoff(settings: &config::Registry) -> Backoff {
    Backoff::new(FIRST_WAIT, settings.backoff_cap)
}

/// Returns true if a session that has begun at `begun` lasted longer than the longest wait, so that the waits may begin
/// anew. Something between here and etcd may let each session begin and then break it.
pub fn has_lasted(settings: &config::Registry, begun: Instant) -> bool {
    begun.elapsed() > settings.backoff_cap
}
