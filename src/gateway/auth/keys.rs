//! The keys in use, which follow the file that `http.auth.jwks_file` names.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::super::metrics::AuthMetrics;
use super::key_set::KeySet;
use crate::credentials::{Source, Stamp, Unusable};
use crate::telemetry::log::LogThrottle;

/// Time between two looks at the file. It is read as a whole: two versions may look alike from the outside.
const INTERVAL: Duration = Duration::from_secs(1);
/// Longest wait of a request for keys that are being read.
const WAIT: Duration = Duration::from_millis(500);

/// The keys of the issuer.
pub struct Keys {
    file: Source,
    current: ArcSwap<KeySet>,
    /// Locked while the file is read.
    last: Mutex<LastRead>,
    metrics: Arc<AuthMetrics>,
    failures: LogThrottle,
}

/// The last look at the file.
struct LastRead {
    at: Instant,
    /// Before it was read.
    stamp: Stamp,
    /// What it held, whether that could be used or not; `None` if it could not be read.
    content: Option<Vec<u8>>,
}

impl Keys {
    /// Reads the keys.
    ///
    /// # Errors
    /// When the file cannot be used: a gateway must not start without keys.
    pub fn new(file: Source, metrics: Arc<AuthMetrics>) -> Result<Self, Unusable> {
        let (at, stamp) = (Instant::now(), Stamp::of([&file]));
        let content = file.read()?;
        let set = KeySet::read(&content).map_err(|reason| file.refuse(reason))?;
        tell(&set, &metrics);
        let last = Mutex::new(LastRead { at, stamp, content: Some(content) });
        let current = ArcSwap::from_pointee(set);
        Ok(Self { file, current, last, metrics, failures: LogThrottle::default() })
    }

    /// Returns the keys in use.
    pub fn get(&self) -> Arc<KeySet> {
        self.current.load_full()
    }

    /// Looks at the file again and again. Never returns.
    pub async fn follow(self: Arc<Self>) {
        loop {
            tokio::time::sleep(INTERVAL).await;
            self.read(&mut *self.last.lock().await).await;
        }
    }

    /// Reads the file for a token whose key is not known, and returns the keys in use then. It is read if it has
    /// changed, and else at most once in [`INTERVAL`]: whoever makes up names of keys makes the gateway call `stat`.
    pub async fn refreshed(&self) -> Arc<KeySet> {
        if let Ok(mut last) = tokio::time::timeout(WAIT, self.last.lock()).await
            && (Stamp::of([&self.file]) != last.stamp || last.at.elapsed() >= INTERVAL)
        {
            self.read(&mut last).await;
        }
        self.get()
    }

    /// Reads the file, and takes its keys if it has changed and can be used. Else the keys stay as they are.
    async fn read(&self, last: &mut LastRead) {
        last.at = Instant::now();
        last.stamp = Stamp::of([&self.file]);
        let file = self.file.clone();
        let read = tokio::task::spawn_blocking(move || file.read()).await;
        let taken = match read {
            Ok(Ok(content)) if last.content.as_ref() == Some(&content) => return,
            Ok(Ok(content)) => {
                let set = KeySet::read(&content).map_err(|reason| self.file.refuse(reason).to_string());
                last.content = Some(content);
                set
            }
            Ok(Err(unusable)) => {
                last.content = None;
                Err(unusable.to_string())
            }
            Err(stopped) => Err(stopped.to_string()),
        };
        match taken {
            Ok(set) => {
                tell(&set, &self.metrics);
                self.current.store(Arc::new(set));
            }
            Err(error) => {
                self.metrics.set_stale(true);
                if let Some(times) = self.failures.note() {
                    tracing::error!(error, times, "the keys for tokens stay as they were");
                }
            }
        }
    }
}

fn tell(set: &KeySet, metrics: &AuthMetrics) {
    metrics.set_keys(set.len());
    metrics.set_stale(false);
    tracing::info!(keys = set.len(), ignored = set.ignored, "keys for tokens read");
}
