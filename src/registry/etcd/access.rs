//! Access to etcd: which member a connection goes to, with which credentials, and when it is replaced.
//!
//! A connection leads to one member and is proved to work: a linearizable read has succeeded, so the member knows a
//! leader and accepts the credentials. Members are tried one after the other, the next one as soon as one has failed or
//! has not answered within [`STAGGER`].
//!
//! **Refused credentials.** That etcd is away is never an error of this process. That etcd answers and refuses the
//! credentials is one, but only at the start: etcd has to refuse them twice, [`CONFIRM`] apart, within [`STARTING`] and
//! before it has ever accepted them. (The files are read again in between, since somebody may be replacing them; and a
//! supervisor that restarts the process at once is slowed down.) Then [`Access::refused`] holds the reason and the
//! process ends. A later refusal does not end the process, since one that serves is worth more than one that has ended.
//! Refused credentials are tried again as soon as a file changes, else every [`RETRY_REFUSED`]: each try costs etcd a
//! deliberately slow password hash.
//!
//! **Tokens.** etcd exchanges user and password for a token, which ends after a time, and, if it is signed, with every
//! change of any user. From 3.6.9 on etcd also refuses to renew a lease with it. The token is renewed when etcd has
//! refused it, over the same connection: no schedule would know when users change.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use etcd_client::Client;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};

use super::credentials::Files;
use super::dial::Dial;
use super::failure::{Failure, election_wait, limit};
use super::member;
use crate::backoff::Backoff;
use crate::config;
use crate::credentials::{Stamp, Unusable};

/// How long one member may take before the next one is tried as well.
const STAGGER: Duration = Duration::from_millis(250);
/// Time between two checks whether a file has changed.
const CHECK_FILES: Duration = Duration::from_secs(2);
/// Longest wait between two tries to replace a connection that still works.
const RENEW_CAP: Duration = Duration::from_secs(30);
/// How long a process counts as starting.
const STARTING: Duration = Duration::from_mins(1);
/// Time between the two refusals that end a start.
const CONFIRM: Duration = Duration::from_secs(1);
/// Time between two tries with refused credentials, once the process has started.
const RETRY_REFUSED: Duration = Duration::from_secs(10);
/// A connection or token of this age is replaced without a wait when etcd refuses it.
const SETTLED: Duration = Duration::from_secs(1);
/// First wait before a younger token is replaced.
const TOKEN_WAIT: Duration = Duration::from_millis(20);

/// Connects the tasks of this process to etcd.
pub struct Access {
    settings: Arc<config::Registry>,
    dial: Dial,
    files: Files,
    begun: Instant,
    /// Index of the endpoint to try first.
    preferred: AtomicUsize,
    /// True once etcd has accepted the credentials.
    accepted: AtomicBool,
    refusal: Mutex<Option<Refusal>>,
    /// The reason, once it is certain that they are wrong.
    refused: watch::Sender<Option<String>>,
    /// Changes with each connection.
    connected: watch::Sender<()>,
}

/// The last refusal of the credentials.
struct Refusal {
    reason: String,
    of: Stamp,
    count: u32,
    again: Instant,
}

/// A connection that has been proved to work.
pub struct Link {
    /// Makes calls over it.
    pub client: Client,
    /// Index of the member.
    endpoint: usize,
    /// The versions of the files that it was made with.
    made_of: Stamp,
    made: Instant,
    token: Token,
}

/// The token of a connection.
struct Token {
    issued: Instant,
    waits: Backoff,
}

impl Access {
    /// Reads the files; does not connect.
    ///
    /// # Errors
    /// [`Unusable`] for a file that cannot be read or used.
    pub fn new(settings: Arc<config::Registry>, dial: Dial) -> Result<Self, Unusable> {
        let directory = crate::credentials::directory();
        let files = Files::new(&settings, directory.as_deref());
        files.read()?;
        if settings.user.is_some() && settings.ca_file.is_none() && settings.is_remote() {
            tracing::warn!("the password goes to etcd unencrypted; use https:// in registry.endpoints");
        }
        Ok(Self {
            begun: Instant::now(),
            // random, so that the processes are spread over the members
            preferred: AtomicUsize::new(crate::random::range(0..settings.endpoints.len().max(1))),
            accepted: AtomicBool::new(false),
            refusal: Mutex::default(),
            refused: watch::Sender::default(),
            connected: watch::Sender::default(),
            settings,
            dial,
            files,
        })
    }

    /// Returns a channel that holds the reason once the credentials count as wrong.
    pub fn refused(&self) -> watch::Receiver<Option<String>> {
        self.refused.subscribe()
    }

    /// Returns a channel that changes whenever a task of this process has connected. A task that has not reached etcd
    /// need not wait any longer then. One whose session failed has to: else the tasks would wake each other for ever.
    pub fn connected(&self) -> watch::Receiver<()> {
        self.connected.subscribe()
    }

    /// Returns a working connection.
    ///
    /// # Errors
    /// [`Failure::Refused`] if a member refuses the credentials and no other accepts them; this may be the answer of an
    /// earlier try. Else what went wrong with each member.
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

    /// Waits until a file has changed and a connection with the new content works; returns that connection. The old one
    /// is used meanwhile, so a wrong or half-written file costs no more than a warning.
    ///
    /// *Cancellation*: nothing is lost.
    pub async fn renewed(&self, link: &Link) -> Link {
        if self.files.is_empty() {
            return std::future::pending().await;
        }
        let mut look = tokio::time::interval(CHECK_FILES);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut backoff = Backoff::new(CHECK_FILES, RENEW_CAP);
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

    /// Decides what follows the failure of a session over `link`. If its token is no longer valid (expired, or withdrawn
    /// because a user or a password changed), returns the connection with a new one.
    ///
    /// # Errors
    /// The failure in all other cases, or that of a new connection.
    pub async fn recover(&self, link: Link, failure: Failure) -> Result<Link, Failure> {
        match failure {
            Failure::Token => return self.renew_token(link).await,
            // users were turned on after it was made
            Failure::Refused(_) if link.made.elapsed() > SETTLED => return self.connect().await,
            _ => {}
        }
        // another member may work; of the tasks that leave this one only the first moves the preference
        let next = link.endpoint + 1;
        let _ = self.preferred.compare_exchange(link.endpoint, next, Relaxed, Relaxed);
        Err(failure)
    }

    /// Gets a new token for a connection. If etcd refuses the user, the files may hold another password by now: makes a
    /// new connection.
    async fn renew_token(&self, mut link: Link) -> Result<Link, Failure> {
        // Where users change all the time, every token ends at once. The waits grow then, since each token costs etcd a
        // password hash, but a lease can still be renewed in time.
        if link.token.issued.elapsed() > SETTLED {
            link.token.waits.reset();
        } else {
            tokio::time::sleep(link.token.waits.next_wait()).await;
        }
        match limit(&self.settings, "an authentication", link.client.refresh_token()).await {
            Ok(()) => {
                tracing::debug!("etcd refused the token, going on with a new one");
                link.token.issued = Instant::now();
                Ok(link)
            }
            Err(error) => {
                tracing::debug!(%error, "no new token from etcd, connecting anew");
                self.connect().await
            }
        }
    }

    /// Tries the members, the preferred one first. One that knows no leader is asked again for as long as another one is
    /// silent: the silent one may be the leader that was lost, and the others may have elected the next.
    async fn open(&self) -> Result<Link, Failure> {
        // stamp before reading: a change in between is then noticed later
        let made_of = self.files.stamp();
        let credentials = self.files.read()?;
        let endpoints = &self.settings.endpoints;
        let first = self.preferred.load(Relaxed);
        let mut waiting = (0..endpoints.len()).map(|n| (first + n) % endpoints.len());
        let attempt = |index: usize, wait: Duration| {
            let (settings, dial, credentials) = (&self.settings, &self.dial, &credentials);
            Box::pin(async move {
                tokio::time::sleep(wait).await;
                (index, member::connect(settings, &endpoints[index], credentials, dial).await)
            })
        };
        let mut attempts = FuturesUnordered::new();
        // the last one of each member; none of one that is silent so far
        let mut failures: Vec<_> = endpoints.iter().map(|_| None).collect();
        loop {
            match waiting.next() {
                Some(index) => attempts.push(attempt(index, Duration::ZERO)),
                None if attempts.is_empty() => return Err(Failure::of_all(endpoints, failures)),
                None => {}
            }
            let stagger = if waiting.len() == 0 { Duration::MAX } else { STAGGER };
            let Ok(Some((index, result))) = tokio::time::timeout(stagger, attempts.next()).await else {
                continue;
            };
            match result {
                Ok(client) => {
                    self.preferred.store(index, Relaxed);
                    self.accepted.store(true, Relaxed);
                    *self.refusal() = None;
                    self.connected.send_replace(());
                    let made = Instant::now();
                    let waits = Backoff::new(TOKEN_WAIT, self.settings.keepalive / 2);
                    let token = Token { issued: made, waits };
                    return Ok(Link { client, endpoint: index, made_of, made, token });
                }
                Err(failure) => {
                    let leaderless = failure.is_leaderless();
                    failures[index] = Some(failure);
                    if leaderless && failures.iter().any(Option::is_none) {
                        attempts.push(attempt(index, election_wait()));
                    }
                }
            }
        }
    }

    fn note_refusal(&self, of: Stamp, reason: &str) {
        let now = Instant::now();
        let starting = !self.accepted.load(Relaxed) && now.duration_since(self.begun) < STARTING;
        let mut last = self.refusal();
        let count = match &*last {
            // several tasks try at the same time
            Some(last) if last.of == of && now < last.again => return,
            Some(last) if last.of == of => last.count.saturating_add(1),
            _ => 1,
        };
        let again = now + if starting { CONFIRM } else { RETRY_REFUSED };
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
