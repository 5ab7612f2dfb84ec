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
/// Longest wait while etcd elects a leader.
const ELECTION_WAIT: Duration = Duration::from_millis(200);
/// How long etcd counts as electing. A cluster that has lost its majority says the same for as long as that takes.
const ELECTION: Duration = Duration::from_secs(10);

/// What to do when no member of etcd can be reached.
pub const UNREACHABLE: &str = "start etcd, or name the one that runs with --etcd-addr (registry.endpoints); `up` without it needs no etcd";

/// Why a session with etcd ended.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// A file with credentials cannot be used.
    #[error(transparent)]
    File(#[from] Unusable),
    /// No connection to any member.
    #[error("{0}")]
    Unreachable(String),
    /// No connection to any member that knows a leader, but to one that knows none.
    #[error("{0}")]
    Leaderless(String),
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

impl Failure {
    /// Returns what the failures of the members come to.
    pub fn of_all(endpoints: &[String], failures: Vec<Option<Self>>) -> Self {
        let (mut texts, mut leaderless) = (Vec::new(), false);
        for (endpoint, failure) in endpoints.iter().zip(failures) {
            match failure {
                Some(refused @ Self::Refused(_)) => return refused,
                Some(failure) => {
                    leaderless |= failure.is_leaderless();
                    texts.push(format!("{endpoint}: {failure}"));
                }
                None => {}
            }
        }
        let text = texts.join("; ");
        if leaderless { Self::Leaderless(text) } else { Self::Unreachable(text) }
    }

    /// Returns true if there was no session at all, since no member could be used.
    pub const fn is_of_connecting(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::Leaderless(_))
    }

    /// Returns true if a member answered that the cluster has no leader, or another one than when the call began.
    pub fn is_leaderless(&self) -> bool {
        match self {
            Self::Leaderless(_) => true,
            Self::Etcd(error) => says(error, "no leader") || says(error, "leader changed"),
            _ => false,
        }
    }
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

/// The waits between sessions. They grow from one to the next up to `registry.backoff_cap_ms`, but not while etcd elects
/// a leader: an election ends within seconds, and who has grown its waits in it is late afterwards.
pub struct Waits {
    backoff: Backoff,
    /// When a member has first said that there is no leader.
    leaderless: Option<Instant>,
}

impl Waits {
    /// Returns the waits at their start.
    pub const fn new(settings: &config::Registry) -> Self {
        Self { backoff: Backoff::new(FIRST_WAIT, settings.backoff_cap), leaderless: None }
    }

    /// Starts over.
    pub const fn reset(&mut self) {
        self.backoff.reset();
        self.leaderless = None;
    }

    /// Returns the wait after a failure.
    pub fn after(&mut self, failure: &Failure) -> Duration {
        if failure.is_leaderless() && self.leaderless.get_or_insert_with(Instant::now).elapsed() < ELECTION {
            return election_wait();
        }
        self.backoff.next_wait()
    }
}

/// Returns a wait for the end of an election: 100 to 200 ms.
pub fn election_wait() -> Duration {
    ELECTION_WAIT.mul_f64(crate::random::range(0.5..=1.0))
}

/// Returns true if a session that has begun at `begun` lasted longer than the longest wait, so that the waits may begin
/// anew. Something between here and etcd may let each session begin and then break it.
pub fn has_lasted(settings: &config::Registry, begun: Instant) -> bool {
    begun.elapsed() > settings.backoff_cap
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn waits_do_not_grow_during_an_election_but_do_when_it_does_not_end() {
        let mut waits = Waits::new(&config::Registry::default());
        let failure = etcd_client::Error::from(tonic::Status::unavailable("etcdserver: no leader"));
        let failure = Failure::from(failure);
        let begun = Instant::now();
        while begun.elapsed() < ELECTION {
            let wait = waits.after(&failure);
            assert!((ELECTION_WAIT / 2..=ELECTION_WAIT).contains(&wait), "{wait:?}");
            tokio::time::advance(wait).await;
        }
        let grown = (0..6).map(|_| waits.after(&failure)).max();
        assert!(grown > Some(5 * ELECTION_WAIT), "{grown:?}");
        waits.reset();
        assert!(waits.after(&failure) <= ELECTION_WAIT);
        let unreachable = Failure::Unreachable(String::new());
        assert!(waits.after(&unreachable) <= FIRST_WAIT);
    }
}
