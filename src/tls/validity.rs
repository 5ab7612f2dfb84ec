//! How long a connection may live: until a certificate of its peer expires, or its authority is trusted no more.

use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio_rustls::rustls::Error;
use tokio_rustls::rustls::pki_types::{CertificateDer, UnixTime};

use super::leaf::Leaf;

/// Longest sleep. The clock of the host may be set meanwhile, and timers do not follow it.
const LONGEST_SLEEP: Duration = Duration::from_secs(30);
/// Shortest sleep.
const SHORTEST_SLEEP: Duration = Duration::from_millis(10);
/// Time by which a connection is replaced before its peer's certificate expires: several attempts fit.
const MARGIN: Duration = Duration::from_secs(10);
/// Least time between two replacements for the same certificate.
const AGAIN: Duration = Duration::from_secs(1);
/// Longest delay after a change of the files, at random, so that not all connections change at once.
const SPREAD: Duration = Duration::from_secs(2);

/// Checks a chain with the authorities that are trusted now.
type Recheck = dyn Fn(&[CertificateDer<'_>], UnixTime) -> Result<(), Error> + Send + Sync;

/// How long a connection may live.
pub struct Validity {
    chain: Vec<CertificateDer<'static>>,
    /// When each certificate of the chain expires.
    ends: Vec<SystemTime>,
    changed: watch::Receiver<()>,
    recheck: Box<Recheck>,
}

impl Validity {
    /// Returns that of a peer which has shown a chain that was verified.
    pub fn new(
        chain: &[CertificateDer<'_>],
        changed: watch::Receiver<()>,
        recheck: impl Fn(&[CertificateDer<'_>], UnixTime) -> Result<(), Error> + Send + Sync + 'static,
    ) -> Self {
        let chain: Vec<_> = chain.iter().cloned().map(CertificateDer::into_owned).collect();
        let ends =
            chain.iter().filter_map(|certificate| Some(Leaf::read(certificate).ok()?.period.to)).collect();
        Self { chain, ends, changed, recheck: Box::new(recheck) }
    }

    /// Watches another channel, which was subscribed to earlier.
    pub fn watch(&mut self, changed: watch::Receiver<()>) {
        self.changed = changed;
    }

    /// Waits until the peer cannot be trusted any more, and returns why.
    ///
    /// *Cancellation*: nothing is lost.
    pub async fn ended(&self) -> String {
        let mut changed = self.changed.clone();
        loop {
            let now = SystemTime::now();
            if let Err(error) = self.check(now) {
                return format!("the peer's certificate is not valid any more: {error}");
            }
            // a certificate is valid in the second of its end
            let left = |end: &SystemTime| (*end + Duration::from_secs(1)).duration_since(now).ok();
            let sleep = self.ends.iter().filter_map(left).min();
            let sleep = sleep.map_or(LONGEST_SLEEP, |sleep| sleep.clamp(SHORTEST_SLEEP, LONGEST_SLEEP));
            tokio::select! {
                () = tokio::time::sleep(sleep) => {}
                Ok(()) = changed.changed() => tokio::time::sleep(spread()).await,
            }
        }
    }

    /// Waits until the connection should be replaced by another one: the peer's certificate is about to expire, or the files
    /// of this process have changed, and with them perhaps its own certificate.
    ///
    /// *Cancellation*: nothing is lost.
    pub async fn is_outdated(&self) {
        let mut changed = self.changed.clone();
        loop {
            let left = self.ends.first().and_then(|end| end.duration_since(SystemTime::now()).ok());
            let until =
                left.map_or(LONGEST_SLEEP, |left| left.saturating_sub(MARGIN).max(left / 2).max(AGAIN));
            tokio::select! {
                () = tokio::time::sleep(until.min(LONGEST_SLEEP)) => {
                    if until <= LONGEST_SLEEP && left.is_some() {
                        return;
                    }
                }
                Ok(()) = changed.changed() => return tokio::time::sleep(spread()).await,
            }
        }
    }

    fn check(&self, now: SystemTime) -> Result<(), Error> {
        let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        (self.recheck)(&self.chain, UnixTime::since_unix_epoch(now))
    }
}

fn spread() -> Duration {
    SPREAD.mul_f64(crate::random::fraction())
}
