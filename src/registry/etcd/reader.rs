//! Reads etcd: lists the keys below the prefix, then watches from the next revision. On any doubt it lists again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use etcd_client::{Client, EventType, GetOptions, GetResponse, WatchOptions, WatchResponse};
use tokio::time::Instant;

use super::access::{Access, Link};
use super::failure::{Failure, cancelled, limit};
use super::keeper::Keeper;
use super::stable_view::StableView;
use crate::config::Registry;
use crate::registry::instance::Instance;
use crate::registry::value;

/// How long events may lag behind a list before a difference between the two counts.
const SETTLE: Duration = Duration::from_secs(1);
/// Longest answer that is read, bytes: 100,000 instances. gRPC's usual 4 MiB are three values of the largest size that etcd
/// takes, and whoever may write one key may write those.
const MAX_ANSWER: usize = 32 * 1024 * 1024;

/// The keys below the prefix, as etcd reports them.
#[derive(Default)]
pub struct Reader {
    /// True if the current session has got its list.
    pub listed: bool,
    revision: i64,
    /// Every key that exists, with the revision of its last modification.
    known: BTreeMap<Vec<u8>, i64>,
    /// Keys that were deleted since the last list.
    gone: BTreeSet<Vec<u8>>,
    /// Keys that cannot be read as instances; each is logged once.
    ignored: BTreeSet<Vec<u8>>,
}

impl Reader {
    /// Runs one session, over a new connection if there is none. Returns the connection for the next session.
    pub async fn connected(
        &mut self,
        settings: &Registry,
        access: &Access,
        link: Option<Link>,
        stable: &StableView,
    ) -> Result<Link, Failure> {
        let link = match link {
            Some(link) => link,
            None => access.connect().await?,
        };
        match self.session(settings, access, &link, stable).await {
            Err(failure) => access.recover(link, failure).await,
            renewed => renewed,
        }
    }

    /// Lists and watches until something fails, or until the returned connection replaces the current one.
    async fn session(
        &mut self,
        settings: &Registry,
        access: &Access,
        link: &Link,
        stable: &StableView,
    ) -> Result<Link, Failure> {
        let client = &link.client;
        let renewed = access.renewed(link);
        tokio::pin!(renewed);
        let list = self.get(settings, client).await?;
        self.take(settings, &list, stable);

        let options = WatchOptions::new().with_prefix().with_start_revision(self.revision + 1);
        let mut watcher = client.watch_client().max_decoding_message_size(MAX_ANSWER);
        let watch = watcher.watch(settings.prefix.as_str(), Some(options));
        let mut stream = limit(settings, "a watch", watch).await?;
        let mut progress = tokio::time::interval(settings.watch_silence / 3);
        let mut relist = tokio::time::interval_at(Instant::now() + settings.relist, settings.relist);
        let mut check: Option<(Instant, GetResponse)> = None;
        let mut heard = Instant::now();
        loop {
            let due = check.as_ref().map(|(due, _)| *due);
            // biased: events are read before anything is asked
            tokio::select! {
                biased;
                message = tokio::time::timeout_at(heard + settings.watch_silence, stream.message()) => {
                    let message = message.map_err(|_| Failure::Silent(settings.watch_silence))?;
                    heard = Instant::now();
                    self.apply(settings, &message?.ok_or(Failure::Ended)?, stable)?;
                }
                renewed = &mut renewed => return Ok(renewed),
                // a member that is frozen or has no leader does not answer this
                _ = progress.tick() => limit(settings, "a progress request", stream.request_progress()).await?,
                _ = relist.tick() => {
                    self.gone.clear();
                    check = Some((Instant::now() + SETTLE, self.get(settings, client).await?));
                }
                () = until(due) => {
                    let differences = check.take().map_or(0, |(_, list)| self.differences(&list));
                    if differences > 0 {
                        stable.count_differences(differences);
                        return Err(Failure::Differs(differences));
                    }
                }
            }
        }
    }

    async fn get(&self, settings: &Registry, client: &Client) -> Result<GetResponse, Failure> {
        let mut reader = client.kv_client().max_decoding_message_size(MAX_ANSWER);
        let list = reader.get(settings.prefix.as_str(), Some(GetOptions::new().with_prefix()));
        limit(settings, "a list", list).await
    }

    /// Replaces everything that is known by a list.
    fn take(&mut self, settings: &Registry, list: &GetResponse, stable: &StableView) {
        let (cluster_id, revision) = list.header().map_or((0, 0), |h| (h.cluster_id(), h.revision()));
        // a wiped etcd keeps its cluster id, and may have reached the same revision again
        let mut older = list.kvs().iter();
        let older = older.any(|kv| self.known.get(kv.key()).is_some_and(|known| kv.mod_revision() < *known));
        self.revision = revision;
        self.known = list.kvs().iter().map(|kv| (kv.key().to_vec(), kv.mod_revision())).collect();
        self.gone.clear();
        let before = std::mem::take(&mut self.ignored);
        let mut instances = Vec::new();
        for kv in list.kvs() {
            match decode(&settings.prefix, kv.key(), kv.value()) {
                Ok(instance) => instances.push(instance),
                Err(reason) => self.ignore(kv.key(), reason, before.contains(kv.key())),
            }
        }
        let (keys, ignored) = (instances.len(), self.ignored.len());
        let reset = stable.change(|keeper| {
            keeper.ignored = ignored;
            keeper.list(cluster_id, revision, older, instances)
        });
        if reset {
            tracing::warn!(
                cluster_id,
                revision,
                "the registry is another cluster or an older state of itself"
            );
        }
        self.listed = true;
        tracing::info!(revision, keys, "registry listed");
    }

    fn apply(
        &mut self,
        settings: &Registry,
        message: &WatchResponse,
        stable: &StableView,
    ) -> Result<(), Failure> {
        if message.canceled() {
            return Err(cancelled(message));
        }
        stable.confirm();
        if message.events().is_empty() {
            return Ok(());
        }
        stable.change(|keeper| {
            for event in message.events() {
                let Some(kv) = event.kv() else { continue };
                let (key, revision) = (kv.key(), kv.mod_revision());
                self.revision = self.revision.max(revision);
                keeper.advance(revision);
                match event.event_type() {
                    EventType::Put => {
                        self.known.insert(key.to_vec(), revision);
                        self.gone.remove(key);
                        self.put(settings, key, kv.value(), keeper);
                    }
                    EventType::Delete => {
                        self.known.remove(key);
                        self.gone.insert(key.to_vec());
                        self.ignored.remove(key);
                        if let Ok((service, addr)) = value::decode_key(&settings.prefix, key) {
                            keeper.delete(service, addr);
                        }
                    }
                }
            }
            keeper.ignored = self.ignored.len();
        });
        Ok(())
    }

    fn put(&mut self, settings: &Registry, key: &[u8], value: &[u8], keeper: &mut Keeper) {
        match decode(&settings.prefix, key, value) {
            Ok(instance) => {
                self.ignored.remove(key);
                keeper.put(instance);
            }
            Err(reason) => {
                let known = self.ignored.contains(key);
                self.ignore(key, reason, known);
                // overwriting an entry with something unreadable removes the instance
                if let Ok((service, addr)) = value::decode_key(&settings.prefix, key) {
                    keeper.delete(service, addr);
                }
            }
        }
    }

    fn ignore(&mut self, key: &[u8], reason: &str, known: bool) {
        if !known {
            let key = String::from_utf8_lossy(key);
            tracing::warn!(%key, reason, "ignored a key in the registry");
        }
        self.ignored.insert(key.to_vec());
    }

    /// Counts the keys in which a list of a moment ago and the events disagree, that is, whose events were lost.
    fn differences(&self, list: &GetResponse) -> usize {
        let listed: BTreeMap<_, _> = list.kvs().iter().map(|kv| (kv.key(), kv.mod_revision())).collect();
        let revision = list.header().map_or(0, etcd_client::ResponseHeader::revision);
        let missed = listed.iter().filter(|(key, listed)| match self.known.get(**key) {
            Some(known) => known < *listed,
            None => !self.gone.contains(**key),
        });
        let stale = self
            .known
            .iter()
            .filter(|(key, known)| **known <= revision && !listed.contains_key(key.as_slice()));
        missed.count() + stale.count()
    }
}

fn decode(prefix: &str, key: &[u8], value: &[u8]) -> Result<Instance, &'static str> {
    let (service, addr) = value::decode_key(prefix, key)?;
    value::decode(service, addr, value)
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}
