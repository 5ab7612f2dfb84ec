//! Follows etcd: list, then watch from the next revision; on any doubt list again. What is published
//! goes through the [`Keeper`], which lets no trouble of etcd empty the view.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use etcd_client::{Client, EventType, GetOptions, GetResponse, WatchOptions, WatchResponse};
use futures_util::future::join_all;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::connect::{Access, Link};
use super::snapshot;
use super::{Failure, Probe, backoff, limit};
use crate::config::Registry;
use crate::registry::etcd::keeper::Keeper;
use crate::registry::{Instance, Publisher, View, pace, value};

/// How often instances in limbo are probed.
const PROBE_EVERY: Duration = Duration::from_millis(500);
/// How long events may lag behind a list before a difference between the two counts.
const SETTLE: Duration = Duration::from_secs(1);
/// Time after which an unchanged view is written again.
const SAVE_ANYWAY: Duration = Duration::from_mins(5);
/// Least time between two writes of the snapshot.
const SAVE_EVERY: Duration = Duration::from_secs(1);

/// Follows etcd until every reader of the view is gone.
pub async fn follow(settings: Arc<Registry>, access: Arc<Access>, publisher: Publisher, probe: Probe) {
    let shared = Arc::new(Shared::restore(&settings, publisher));
    tokio::select! {
        () = shared.publisher.view.closed() => {}
        () = follow_etcd(&settings, &access, &shared) => {}
        () = publish(&shared) => {}
        () = probe_limbo(&shared, probe) => {}
        () = save(&settings, &shared) => {}
    }
}

/// What the three tasks share.
struct Shared {
    keeper: Mutex<Keeper>,
    publisher: Publisher,
    /// The keeper believes something else than what is published.
    changed: Notify,
    /// Something has gone into limbo.
    doubted: Notify,
}

impl Shared {
    /// Begins with the view on disk, if there is one to be used.
    fn restore(settings: &Registry, publisher: Publisher) -> Self {
        let mut keeper = Keeper::default();
        if let Some(path) = &settings.snapshot_file {
            match snapshot::load(path) {
                Ok((view, age)) => {
                    tracing::info!(path = %path.display(), revision = view.revision, ?age, "view read from disk");
                    keeper = Keeper::restored(&view);
                    publisher.preset(view);
                }
                Err(reason) => tracing::info!(path = %path.display(), reason, "no view on disk"),
            }
        }
        Self { keeper: Mutex::new(keeper), publisher, changed: Notify::new(), doubted: Notify::new() }
    }

    /// No code runs under this lock that could leave the keeper half changed.
    fn keeper(&self) -> MutexGuard<'_, Keeper> {
        self.keeper.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the keeper by a word of the registry; what it then believes is published soon.
    fn change<T>(&self, change: impl FnOnce(&mut Keeper) -> T) -> T {
        let result = change(&mut self.keeper());
        self.changed.notify_one();
        self.publisher.confirm();
        result
    }

    /// Publishes the end of an instance in limbo. The registry has confirmed nothing by it.
    fn forget(&self, service: &str, addr: &str) {
        self.keeper().give_up(service, addr, Instant::now());
        self.changed.notify_one();
    }
}

/// Publishes what the keeper believes, at once after a pause and then as often as [`pace`] lets.
async fn publish(shared: &Shared) {
    loop {
        shared.changed.notified().await;
        let view = shared.keeper().view();
        if !view.limbo.is_empty() {
            shared.doubted.notify_one();
        }
        let instances = view.services.values().map(|instances| instances.len()).sum();
        shared.publisher.replace(view);
        tokio::time::sleep(pace(instances)).await;
    }
}

async fn follow_etcd(settings: &Registry, access: &Access, shared: &Shared) {
    let mut backoff = backoff(settings);
    let mut reader = Reader::default();
    let mut first = true;
    let mut link = None;
    loop {
        reader.listed = false;
        let failure = match Box::pin(reader.connected(settings, access, link.take(), shared)).await {
            Ok(renewed) => {
                link = Some(renewed);
                continue;
            }
            Err(failure) => failure,
        };
        let error = failure.to_string();
        if reader.listed {
            backoff.reset();
        }
        let wait = backoff.next_wait();
        if reader.listed {
            tracing::warn!(error, "lost the registry, keeping the last view");
        } else if first {
            tracing::warn!(error, "the registry cannot be reached yet");
        } else {
            // an outage is one line, not one a second
            tracing::debug!(error, ?wait, "the registry cannot be reached");
        }
        first = false;
        tokio::time::sleep(wait).await;
    }
}

/// The raw keys as etcd tells them.
#[derive(Default)]
struct Reader {
    listed: bool,
    revision: i64,
    /// Modification revision of every key that is there.
    known: BTreeMap<Vec<u8>, i64>,
    /// Keys that went since the last list.
    gone: BTreeSet<Vec<u8>>,
    /// Keys that are not ours to read; each is logged once.
    ignored: BTreeSet<Vec<u8>>,
}

impl Reader {
    /// One session, on a new connection if there is none. Returns the connection to go on with.
    async fn connected(
        &mut self,
        settings: &Registry,
        access: &Access,
        link: Option<Link>,
        shared: &Shared,
    ) -> Result<Link, Failure> {
        let link = match link {
            Some(link) => link,
            None => access.connect().await?,
        };
        match self.session(settings, access, &link, shared).await {
            Err(failure) => access.recover(&link, failure).await,
            renewed => renewed,
        }
    }

    /// Lists and watches until something fails, or the connection is to be replaced by the returned one.
    async fn session(
        &mut self,
        settings: &Registry,
        access: &Access,
        link: &Link,
        shared: &Shared,
    ) -> Result<Link, Failure> {
        let mut client = link.client.clone();
        let renewed = access.renewed(link);
        tokio::pin!(renewed);
        let list = self.get(settings, &mut client).await?;
        self.take(settings, &list, shared);

        let options = WatchOptions::new().with_prefix().with_start_revision(self.revision + 1);
        let watch = client.watch(settings.prefix.as_str(), Some(options));
        let mut stream = limit(settings, "a watch", watch).await?;
        let mut progress = tokio::time::interval(settings.watch_silence / 3);
        let mut relist = tokio::time::interval_at(Instant::now() + settings.relist, settings.relist);
        let mut check: Option<(Instant, GetResponse)> = None;
        let mut heard = Instant::now();
        loop {
            let due = check.as_ref().map(|(due, _)| *due);
            // biased: news before questions
            tokio::select! {
                biased;
                message = tokio::time::timeout_at(heard + settings.watch_silence, stream.message()) => {
                    let message = message.map_err(|_| Failure::Silent(settings.watch_silence))?;
                    heard = Instant::now();
                    self.apply(settings, &message?.ok_or(Failure::Ended)?, shared)?;
                }
                renewed = &mut renewed => return Ok(renewed),
                // a member without a leader or a frozen one leaves this unanswered
                _ = progress.tick() => limit(settings, "a progress request", stream.request_progress()).await?,
                _ = relist.tick() => {
                    self.gone.clear();
                    check = Some((Instant::now() + SETTLE, self.get(settings, &mut client).await?));
                }
                () = until(due) => {
                    let differences = check.take().map_or(0, |(_, list)| self.differences(&list));
                    if differences > 0 {
                        shared.publisher.differ(differences);
                        return Err(Failure::Differs(differences));
                    }
                }
            }
        }
    }

    async fn get(&self, settings: &Registry, client: &mut Client) -> Result<GetResponse, Failure> {
        let list = client.get(settings.prefix.as_str(), Some(GetOptions::new().with_prefix()));
        limit(settings, "a list", list).await
    }

    /// Takes a list as the whole truth.
    fn take(&mut self, settings: &Registry, list: &GetResponse, shared: &Shared) {
        let (cluster_id, revision) = list.header().map_or((0, 0), |h| (h.cluster_id(), h.revision()));
        // a wiped registry keeps its cluster id, and may have counted up to our revision again
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
        let reset = shared.change(|keeper| {
            keeper.ignored = ignored;
            keeper.list(cluster_id, revision, older, instances, Instant::now())
        });
        if reset {
            tracing::warn!(cluster_id, revision, "the registry is another one or an older state of itself");
        }
        self.listed = true;
        tracing::info!(revision, keys, "registry listed");
    }

    fn apply(
        &mut self,
        settings: &Registry,
        message: &WatchResponse,
        shared: &Shared,
    ) -> Result<(), Failure> {
        if message.canceled() {
            return Err(Failure::Cancelled(message.cancel_reason().to_owned()));
        }
        shared.publisher.confirm();
        if message.events().is_empty() {
            return Ok(());
        }
        shared.change(|keeper| {
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
                            keeper.delete(service, addr, Instant::now());
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
                // an instance whose entry was overwritten by junk is as good as removed
                if let Ok((service, addr)) = value::decode_key(&settings.prefix, key) {
                    keeper.delete(service, addr, Instant::now());
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

    /// Counts the keys in which an old list and the events since do not fit: an event was lost.
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

/// Probes what is in limbo, for ever; etcd may be away meanwhile.
async fn probe_limbo(shared: &Shared, probe: Probe) {
    loop {
        shared.doubted.notified().await;
        loop {
            let doubted: Vec<_> = shared.keeper().in_limbo().cloned().collect();
            if doubted.is_empty() {
                break;
            }
            let next = Instant::now() + PROBE_EVERY;
            let probes = doubted.into_iter().map(|instance| {
                let answer = probe(instance.clone());
                async move { (tokio::time::timeout(PROBE_EVERY, answer).await, instance) }
            });
            for (answer, instance) in join_all(probes).await {
                let reason = match answer {
                    Ok(Ok(())) => continue,
                    Ok(Err(reason)) => reason,
                    Err(_) => "no answer".to_owned(),
                };
                let (service, addr) = (&instance.service, &instance.addr);
                tracing::info!(service, addr, reason, "gave up an instance that the registry had lost");
                shared.forget(service, addr);
            }
            tokio::time::sleep_until(next).await;
        }
    }
}

/// Keeps the snapshot on disk current, if one is wanted.
async fn save(settings: &Registry, shared: &Shared) {
    let Some(path) = settings.snapshot_file.clone() else {
        return std::future::pending().await;
    };
    let mut view = shared.publisher.view.subscribe();
    view.mark_changed();
    let mut failing = false;
    loop {
        // a quiet registry confirms the same view again and again: the file must not grow old meanwhile
        let changed = tokio::time::timeout(SAVE_ANYWAY, view.changed()).await;
        if changed.is_ok_and(|changed| changed.is_err()) {
            return;
        }
        let latest: Arc<View> = view.borrow_and_update().clone();
        let confirmed = *shared.publisher.confirmed.borrow();
        let Some(age) = confirmed.map(|at| at.elapsed()) else { continue };
        let path: PathBuf = path.clone();
        let shown = path.display().to_string();
        let saved = tokio::task::spawn_blocking(move || snapshot::save(&path, &latest, age)).await;
        match saved {
            Ok(Ok(())) => failing = false,
            Ok(Err(error)) if !failing => {
                failing = true;
                tracing::warn!(%error, path = shown, "the view cannot be kept on disk");
            }
            _ => {}
        }
        tokio::time::sleep(SAVE_EVERY).await;
    }
}
