//! The way to etcd: which member, over TLS or not, and as whom.
//!
//! A connection is one to one member and has proved itself: a linearizable read went through, so the
//! member knows a leader and takes our credentials. Members are tried one after the other, the next one
//! as soon as one failed or said nothing for [`STAGGER`].
//!
//! **Refused credentials.** Etcd being away is never an error, but an etcd that answers and refuses what we
//! show is one at the start: it has to refuse twice, [`CONFIRM`] apart (the files are read again, they may
//! just be replaced, and a supervisor that restarts at once is slowed down), within [`START`] and before it
//! has ever taken them. Then [`Access::refused`] says so and the process ends. Any other refusal is waited
//! out, since a process that serves is worth more than one that ends: tried again as soon as a file changes,
//! else every [`ASK_AGAIN`], since each try costs etcd a deliberately slow hash.

use std::error::Error;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use etcd_client::{Channel, Client, ConnectOptions, GetOptions};
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use hyper_util::rt::TokioIo;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_rustls::rustls::AlertDescription;
use tonic::transport::Endpoint;

use super::credentials::{Credentials, Files, Stamp, Unusable};
use super::{Failure, limit};
use crate::backoff::Backoff;
use crate::config::{self, bare_endpoint};

/// How long a member may take before the next one is tried beside it.
const STAGGER: Duration = Duration::from_millis(250);
/// Time between two looks whether a file has changed.
const LOOK: Duration = Duration::from_secs(2);
/// Longest wait between two tries to renew a connection that still works.
const RENEW_CAP: Duration = Duration::from_secs(30);
/// How long a process counts as starting.
const START: Duration = Duration::from_mins(1);
/// Time between the two refusals that end a start.
const CONFIRM: Duration = Duration::from_secs(1);
/// Time between two tries with refused credentials, after a start.
const ASK_AGAIN: Duration = Duration::from_secs(10);
/// Least life of a connection that may be replaced without a wait when its token has ended.
const SETTLED: Duration = Duration::from_secs(1);

/// How every task of this process gets to etcd.
pub struct Access {
    settings: Arc<config::Registry>,
    files: Files,
    begun: Instant,
    /// Index of the endpoint to try first.
    preferred: AtomicUsize,
    /// Etcd has taken our credentials.
    accepted: AtomicBool,
    refusal: Mutex<Option<Refusal>>,
    refused: watch::Sender<Option<String>>,
}

/// The last refusal of our credentials.
struct Refusal {
    reason: String,
    of: Stamp,
    count: u32,
    again: Instant,
}

/// A connection that works.
pub struct Link {
    pub client: Client,
    endpoint: usize,
    made_of: Stamp,
    made: Instant,
}

impl Access {
    /// Prepares; asks nothing of etcd.
    ///
    /// # Errors
    /// [`Unusable`] for a file that cannot be read or used.
    pub fn new(settings: Arc<config::Registry>) -> Result<Self, Unusable> {
        let directory = std::env::var_os("CREDENTIALS_DIRECTORY").map(std::path::PathBuf::from);
        let files = Files::new(&settings, directory.as_deref());
        files.read()?;
        if settings.user.is_some() && settings.ca_file.is_none() && settings.is_remote() {
            tracing::warn!("the password goes to etcd unencrypted; use https:// in registry.endpoints");
        }
        Ok(Self {
            begun: Instant::now(),
            // each process its own, so that members share the load
            preferred: AtomicUsize::new(crate::random::range(0..settings.endpoints.len().max(1))),
            accepted: AtomicBool::new(false),
            refusal: Mutex::default(),
            refused: watch::Sender::default(),
            settings,
            files,
        })
    }

    /// Returns the reason once etcd has refused our credentials for good.
    pub fn refused(&self) -> watch::Receiver<Option<String>> {
        self.refused.subscribe()
    }

    /// Returns a working connection.
    ///
    /// # Errors
    /// [`Failure::Refused`] if a member refuses our credentials and no other takes them; this may be an
    /// answer from a moment ago. Else what went wrong with each member.
    pub async fn connect(&self) -> Result<Link, Failure> {
        let stamp = self.files.stamp();
        if let Some(refusal) = &*self.refusal()
            && refusal.of == stamp
            && Instant::now() < refusal.again
        {
            return Err(Failure::Refused(refusal.reason.clone()));
        }
        let result = self.open().await;
        if let Err(Failure::Refused(reason)) = &result {
            self.note_refusal(stamp, reason);
        }
        result
    }

    /// Waits until a file has changed and a connection with what is in it works; returns that. The old one
    /// goes on meanwhile, so a wrong or half-written file costs nothing but a warning.
    ///
    /// *Cancellation*: nothing is lost.
    pub async fn renewed(&self, link: &Link) -> Link {
        if self.files.is_empty() {
            return std::future::pending().await;
        }
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut backoff = Backoff::new(LOOK, RENEW_CAP);
        let mut tried: Option<(Stamp, Instant)> = None;
        loop {
            look.tick().await;
            let stamp = self.files.stamp();
            if stamp == link.made_of {
                tried = None;
                continue;
            }
            let again = tried.as_ref().filter(|(of, _)| *of == stamp).map(|(_, again)| *again);
            if again.is_some_and(|again| Instant::now() < again) {
                continue;
            }
            match self.open().await {
                Ok(renewed) => {
                    tracing::info!("credentials for etcd have changed, connected with the new ones");
                    return renewed;
                }
                Err(error) if again.is_none() => {
                    backoff.reset();
                    tracing::warn!(
                        %error,
                        "credentials for etcd have changed and do not work yet, going on with the old connection"
                    );
                }
                Err(error) => tracing::debug!(%error, "the new credentials for etcd do not work yet"),
            }
            tried = Some((stamp, Instant::now() + backoff.next_wait()));
        }
    }

    /// Says how it goes on after a session over `link` has failed: at once on a new connection if it was
    /// its token that ended (expired, or withdrawn with a change of the password), else with the failure.
    pub async fn recover(&self, link: &Link, failure: Failure) -> Result<Link, Failure> {
        let ended = matches!(failure, Failure::Refused(_) | Failure::Token);
        if ended && link.made.elapsed() > SETTLED {
            return self.connect().await;
        }
        // another member may do better; of those who leave this one only the first moves on
        let next = link.endpoint + 1;
        let _ = self.preferred.compare_exchange(link.endpoint, next, Relaxed, Relaxed);
        Err(failure)
    }

    /// Tries the members, the preferred one first.
    async fn open(&self) -> Result<Link, Failure> {
        // the stamp first: a change between the two is then seen as one
        let made_of = self.files.stamp();
        let credentials = self.files.read()?;
        let endpoints = &self.settings.endpoints;
        let first = self.preferred.load(Relaxed);
        let mut waiting = (0..endpoints.len()).map(|n| (first + n) % endpoints.len());
        let mut attempts = FuturesUnordered::new();
        let (mut refused, mut failed) = (None, Vec::new());
        loop {
            match waiting.next() {
                Some(index) => {
                    let attempt = Box::pin(self.attempt(&endpoints[index], &credentials));
                    attempts.push(async move { (index, attempt.await) });
                }
                None if attempts.is_empty() => {
                    return Err(refused.unwrap_or_else(|| Failure::Unreachable(failed.join("; "))));
                }
                None => {}
            }
            let patience = if waiting.len() == 0 { Duration::MAX } else { STAGGER };
            let Ok(Some((index, result))) = tokio::time::timeout(patience, attempts.next()).await else {
                continue;
            };
            match result {
                Ok(client) => {
                    self.preferred.store(index, Relaxed);
                    self.accepted.store(true, Relaxed);
                    *self.refusal() = None;
                    return Ok(Link { client, endpoint: index, made_of, made: Instant::now() });
                }
                Err(failure @ Failure::Refused(_)) => refused = Some(failure),
                Err(failure) => failed.push(format!("{}: {failure}", endpoints[index])),
            }
        }
    }

    async fn attempt(&self, endpoint: &str, credentials: &Credentials) -> Result<Client, Failure> {
        let settings = &self.settings;
        let addr = bare_endpoint(endpoint).to_owned();
        let target = Endpoint::from_shared(format!("http://{addr}"))
            .map_err(|error| Failure::Unreachable(chain(&error)))?
            .connect_timeout(settings.timeout)
            // etcd closes a connection that is pinged more often than every 5 s
            .http2_keep_alive_interval(Duration::from_secs(6))
            .keep_alive_timeout(settings.watch_silence)
            .keep_alive_while_idle(true);
        let Some(tls) = &credentials.tls else {
            return self.prove(Box::pin(target.connect()), credentials).await;
        };
        let (tls, alert) = tls.for_one();
        let connector = tower::service_fn(move |_| {
            let stream = tls.clone().connect(addr.clone());
            async { stream.await.map(TokioIo::new) }
        });
        let proven = self.prove(Box::pin(target.connect_with_connector(connector)), credentials).await;
        proven.map_err(|failure| alert.get().and_then(refused_certificate).unwrap_or(failure))
    }

    /// Makes a connection, says who we are, and reads.
    async fn prove(
        &self,
        connect: BoxFuture<'_, Result<tonic::transport::Channel, tonic::transport::Error>>,
        credentials: &Credentials,
    ) -> Result<Client, Failure> {
        let settings = &self.settings;
        let channel = match tokio::time::timeout(settings.timeout, connect).await {
            Err(_) => return Err(Failure::Slow("a connection")),
            Ok(Err(error)) => return Err(Failure::Unreachable(chain(&error))),
            Ok(Ok(channel)) => Channel::Tonic(channel),
        };
        let options = ConnectOptions::new().with_require_leader(true);
        let mut client = match &credentials.user {
            None => Client::from_channel(channel, Some(options)).await?,
            Some((user, password)) => {
                let known = options.clone().with_user(user, password).with_auto_token_refresh(true);
                let known = Client::from_channel(channel.clone(), Some(known));
                match limit(settings, "an authentication", known).await {
                    Err(Failure::Etcd(error)) if says(&error, "authentication is not enabled") => {
                        tracing::debug!("etcd asks for no user, going on without one");
                        Client::from_channel(channel, Some(options)).await?
                    }
                    other => other?,
                }
            }
        };
        let read = client.get(settings.prefix.as_str(), Some(GetOptions::new().with_keys_only()));
        match limit(settings, "a read", read).await {
            // a user may have the right to its own key only
            Err(Failure::Etcd(error)) if says(&error, "permission denied") => Ok(client),
            other => other.map(|_| client),
        }
    }

    fn note_refusal(&self, of: Stamp, reason: &str) {
        let now = Instant::now();
        let starting = !self.accepted.load(Relaxed) && now.duration_since(self.begun) < START;
        let mut last = self.refusal();
        let count = match &*last {
            // several tasks ask at the same time
            Some(last) if last.of == of && now < last.again => return,
            Some(last) if last.of == of => last.count.saturating_add(1),
            _ => 1,
        };
        let again = now + if starting { CONFIRM } else { ASK_AGAIN };
        *last = Some(Refusal { reason: reason.to_owned(), of, count, again });
        drop(last);
        if starting && count > 1 {
            self.refused.send_replace(Some(reason.to_owned()));
        } else if count == 1 {
            tracing::error!(reason, "credentials refused, trying again");
        }
    }

    fn refusal(&self) -> MutexGuard<'_, Option<Refusal>> {
        self.refusal.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns an error with what caused it, each cause once.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

fn says(error: &etcd_client::Error, message: &str) -> bool {
    matches!(error, etcd_client::Error::GRpcStatus(status) if status.message().contains(message))
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
        // the second: users or roles have changed since a JWT was made
        if message.contains("invalid auth token") || message.contains("revision of auth store is old") {
            return Self::Token;
        }
        Self::Etcd(error)
    }
}

/// Returns the failure if etcd ended a connection because of our certificate.
fn refused_certificate(alert: AlertDescription) -> Option<Failure> {
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
