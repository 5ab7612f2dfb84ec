//! The view: list, then watch from the next revision; on any doubt list again.

use std::collections::BTreeSet;
use std::sync::Arc;

use etcd_client::{EventType, GetOptions, WatchOptions, WatchResponse};

use super::{Failure, backoff, connect, limit};
use crate::config::Registry;
use crate::registry::{Publisher, View, value};

/// Follows etcd until every reader of the view is gone.
pub async fn follow(settings: Arc<Registry>, publisher: Publisher) {
    let mut backoff = backoff(&settings);
    let mut reader =
        Reader { prefix: settings.prefix.clone(), view: View::default(), ignored: BTreeSet::new() };
    while !publisher.view.is_closed() {
        let listed = reader.view.revision;
        let failure = match reader.session(&settings, &publisher).await {
            Ok(()) => return,
            Err(failure) => failure,
        };
        if reader.view.revision != listed {
            backoff.reset();
        }
        let wait = backoff.next_wait();
        tracing::warn!(error = %failure, revision = reader.view.revision, ?wait, "lost the registry, keeping the last view");
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = publisher.view.closed() => return,
        }
    }
}

struct Reader {
    prefix: String,
    view: View,
    /// Keys that are not ours to read; each is logged once.
    ignored: BTreeSet<Vec<u8>>,
}

impl Reader {
    /// Lists and watches until something fails; `Ok` when nobody reads the view any more.
    async fn session(&mut self, settings: &Registry, publisher: &Publisher) -> Result<(), Failure> {
        let mut client = connect(settings).await?;
        let list = client.get(self.prefix.as_str(), Some(GetOptions::new().with_prefix()));
        let list = limit(settings, "a list", list).await?;
        let (cluster_id, revision) = list.header().map_or((0, 0), |h| (h.cluster_id(), h.revision()));
        self.view = View { cluster_id, revision, ..View::default() };
        self.ignored.retain(|key| list.kvs().iter().any(|kv| kv.key() == key));
        for kv in list.kvs() {
            self.put(kv.key(), kv.value());
        }
        self.publish(publisher);
        tracing::info!(revision, keys = list.kvs().len(), "registry listed");

        let options = WatchOptions::new().with_prefix().with_start_revision(revision + 1);
        let watch = client.watch(self.prefix.as_str(), Some(options));
        let mut stream = limit(settings, "a watch", watch).await?;
        let mut progress = tokio::time::interval(settings.watch_silence / 3);
        loop {
            // biased: news before questions
            tokio::select! {
                biased;
                message = tokio::time::timeout(settings.watch_silence, stream.message()) => match message {
                    Err(_) => return Err(Failure::Silent(settings.watch_silence)),
                    Ok(message) => self.apply(&message?.ok_or(Failure::Ended)?, publisher)?,
                },
                _ = progress.tick() => {
                    // a member without a leader or a frozen one leaves this unanswered
                    limit(settings, "a progress request", stream.request_progress()).await?;
                }
                () = publisher.view.closed() => return Ok(()),
            }
        }
    }

    fn apply(&mut self, message: &WatchResponse, publisher: &Publisher) -> Result<(), Failure> {
        if message.canceled() {
            return Err(Failure::Cancelled(message.cancel_reason().to_owned()));
        }
        for event in message.events() {
            let Some(kv) = event.kv() else { continue };
            match event.event_type() {
                EventType::Put => self.put(kv.key(), kv.value()),
                EventType::Delete => {
                    self.ignored.remove(kv.key());
                    if let Ok((service, addr)) = value::decode_key(&self.prefix, kv.key()) {
                        self.view.remove(service, addr);
                    }
                }
            }
            self.view.revision = self.view.revision.max(kv.mod_revision());
        }
        if message.events().is_empty() {
            publisher.confirm();
        } else {
            self.publish(publisher);
        }
        Ok(())
    }

    fn put(&mut self, key: &[u8], value: &[u8]) {
        let decoded = value::decode_key(&self.prefix, key).and_then(|(service, addr)| {
            value::decode(service, addr, value).inspect_err(|_| self.view.remove(service, addr))
        });
        match decoded {
            Ok(instance) => {
                self.ignored.remove(key);
                self.view.insert(instance);
            }
            Err(reason) => {
                if self.ignored.insert(key.to_vec()) {
                    let key = String::from_utf8_lossy(key);
                    tracing::warn!(%key, reason, "ignored a key in the registry");
                }
            }
        }
    }

    fn publish(&mut self, publisher: &Publisher) {
        self.view.ignored = self.ignored.len();
        publisher.publish(self.view.clone());
    }
}
