//! The keys in use, which follow the file that `http.auth.jwks_file` names.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::time::Instant;

use super::super::metrics::AuthMetrics;
use super::key_set::KeySet;
use crate::credentials::follow::{Follower, Look};
use crate::credentials::{Source, Unusable};

/// Time between two looks at the file. It is read as a whole: two versions may look alike from the outside.
const INTERVAL: Duration = Duration::from_secs(1);
/// Longest wait of a request for keys that are being read.
const WAIT: Duration = Duration::from_millis(500);

/// The keys of the issuer.
pub struct Keys {
    file: Source,
    current: ArcSwap<KeySet>,
    /// Locked while the file is read.
    last: Arc<Mutex<LastRead>>,
    metrics: Arc<AuthMetrics>,
}

/// The last look at the file.
struct LastRead {
    at: Instant,
    follower: Follower,
    /// What the keys in use were made of.
    content: Vec<u8>,
}

impl Keys {
    /// Reads the keys.
    ///
    /// # Errors
    /// When the file cannot be used, or has no key that can: a gateway must not start without keys.
    pub fn new(file: Source, metrics: Arc<AuthMetrics>) -> Result<Self, Unusable> {
        let at = Instant::now();
        let (follower, (content, set)) = Follower::start([&file], || read(&file))?;
        if set.len() == 0 {
            return Err(file.refuse("has no key for ES256, EdDSA or RS256"));
        }
        tell(&set, &metrics);
        let last = Arc::new(Mutex::new(LastRead { at, follower, content }));
        Ok(Self { file, current: ArcSwap::from_pointee(set), last, metrics })
    }

    /// Returns the keys in use.
    pub fn get(&self) -> Arc<KeySet> {
        self.current.load_full()
    }

    /// Looks at the file again and again. Never returns.
    pub async fn follow(self: Arc<Self>) {
        loop {
            tokio::time::sleep(INTERVAL).await;
            let last = self.last.clone().lock_owned().await;
            self.read(last).await;
        }
    }

    /// Reads the file for a token whose key is not known, and returns the keys in use then. It is read if it has
    /// changed, and else at most once in [`INTERVAL`]: whoever makes up names of keys makes the gateway call `stat`.
    pub async fn refreshed(self: &Arc<Self>) -> Arc<KeySet> {
        if let Ok(last) = tokio::time::timeout(WAIT, self.last.clone().lock_owned()).await
            && (last.follower.has_changed() || last.at.elapsed() >= INTERVAL)
        {
            self.read(last).await;
        }
        self.get()
    }

    /// Reads the file on a thread that may wait for it.
    ///
    /// *Cancellation*: it is read to its end.
    async fn read(self: &Arc<Self>, last: OwnedMutexGuard<LastRead>) {
        let keys = self.clone();
        // it does not panic, and if it did, the next look would follow
        let _ = tokio::task::spawn_blocking(move || keys.look(last)).await;
    }

    /// Reads the file, and takes its keys if it has changed and can be used. Else the keys stay as they are.
    fn look(&self, mut last: OwnedMutexGuard<LastRead>) {
        let LastRead { at, follower, content } = &mut *last;
        *at = Instant::now();
        let looked = follower.look(true, || {
            // the set in use remembers tokens: it is not made again without need
            let now = self.file.read()?;
            if now == *content { Ok(None) } else { Ok(Some((parse(&self.file, &now)?, now))) }
        });
        match looked {
            Look::Read(Some((set, now))) => {
                *content = now;
                tell(&set, &self.metrics);
                self.current.store(Arc::new(set));
            }
            Look::Read(None) => self.metrics.set_stale(false),
            Look::Failed { error, news: true } => {
                self.metrics.set_stale(true);
                tracing::error!(%error, "the keys for tokens stay as they were");
            }
            Look::Unchanged | Look::Failed { .. } => {}
        }
    }
}

fn read(file: &Source) -> Result<(Vec<u8>, KeySet), Unusable> {
    let content = file.read()?;
    let set = parse(file, &content)?;
    Ok((content, set))
}

fn parse(file: &Source, content: &[u8]) -> Result<KeySet, Unusable> {
    KeySet::read(content).map_err(|reason| file.refuse(reason))
}

/// Says which keys are in use from now on.
fn tell(set: &KeySet, metrics: &AuthMetrics) {
    metrics.set_keys(set.len());
    metrics.set_stale(false);
    if set.len() == 0 {
        tracing::error!(ignored = set.ignored, "no key for tokens is left: every token is refused");
    } else {
        tracing::info!(keys = set.len(), ignored = set.ignored, "keys for tokens read");
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::super::metrics::Metrics;
    use super::*;

    fn replace(path: &Path, id: &str) {
        let set = format!(
            r#"{{"keys":[{{"kty":"OKP","crv":"Ed25519","kid":"{id}","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}}]}}"#
        );
        let next = path.with_extension("next");
        std::fs::write(&next, set).unwrap();
        std::fs::rename(&next, path).unwrap();
    }

    /// Whoever makes up names of keys must not make the gateway read its file for each of them.
    #[tokio::test(start_paused = true)]
    async fn unknown_keys_cause_one_read_a_second_and_a_changed_file_is_read_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys.json");
        replace(&path, "a");
        let source = Source::new("http.auth.jwks_file", &path, None);
        let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
        let keys = Arc::new(Keys::new(source, metrics.auth()).unwrap());
        let last_read = async || keys.last.lock().await.at;
        let begun = last_read().await;
        let refresh = async |times| {
            for _ in 0..times {
                keys.refreshed().await;
            }
        };
        tokio::time::advance(INTERVAL / 2).await;
        refresh(1000).await;
        assert_eq!(last_read().await, begun, "it is not due");
        tokio::time::advance(INTERVAL / 2).await;
        refresh(1000).await;
        let second = last_read().await;
        assert!(second >= begun + INTERVAL && second.elapsed() < INTERVAL, "one read");

        replace(&path, "b");
        assert!(keys.refreshed().await.find(Some("b")).is_ok(), "the new key counts at once");
        assert!(keys.get().find(Some("a")).is_err(), "the old one no more");
    }
}
