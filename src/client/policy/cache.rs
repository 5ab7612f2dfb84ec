//! The last good answers of reads, for the fallback. It is bounded in memory: the least recently used answer is
//! dropped for a new one.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use lru::LruCache;
use tokio::time::Instant;

use crate::api::rpc::Rpc;
use crate::client::call::{Answer, Call};

/// Memory of an entry without its request and message, bytes: key, time, table and list (the sizes of the
/// types, rounded up).
const OVERHEAD: usize = 256;

/// A read: the rpc and the whole request.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    rpc: Rpc,
    request: Bytes,
}

impl From<&Call> for Key {
    fn from(call: &Call) -> Self {
        Self { rpc: call.rpc, request: call.framed.clone() }
    }
}

#[derive(Debug)]
struct Entry {
    message: Bytes,
    stored: Instant,
}

/// The cache. All services of a client share it.
#[derive(Debug)]
pub struct Cache {
    max_bytes: usize,
    max_age: Duration,
    entries: Mutex<Entries>,
}

#[derive(Debug)]
struct Entries {
    lru: LruCache<Key, Entry>,
    /// Memory of all entries, bytes.
    size: usize,
}

impl Cache {
    /// Returns an empty cache of at most `limit` bytes, overhead included, that gives answers up to
    /// `max_age`. With 0 bytes it keeps nothing.
    #[must_use]
    pub fn new(limit: usize, max_age: Duration) -> Self {
        let entries = Mutex::new(Entries { lru: LruCache::unbounded(), size: 0 });
        Self { max_bytes: limit, max_age, entries }
    }

    /// Keeps an answer. One that takes more than a tenth of the cache is not kept: it would displace many
    /// others.
    pub fn keep(&self, key: &Key, answer: &Answer) {
        let now = Instant::now();
        let mut entries = self.lock();
        if let Some(entry) = entries.lru.get_mut(key)
            && entry.message == answer.message
        {
            entry.stored = now;
            return;
        }
        entries.remove(key);
        // copies, because a slice would keep the whole buffer that it was read into
        let key = Key { rpc: key.rpc, request: Bytes::copy_from_slice(&key.request) };
        let entry = Entry { message: Bytes::copy_from_slice(&answer.message), stored: now };
        let size = size(&key, &entry);
        if size > self.max_bytes / 10 {
            return;
        }
        entries.lru.put(key, entry);
        entries.size += size;
        while entries.size > self.max_bytes {
            let Some((key, entry)) = entries.lru.pop_lru() else {
                break;
            };
            entries.size = entries.size.saturating_sub(self::size(&key, &entry));
        }
    }

    /// Returns the last good answer to the same request and its age, unless it is too old.
    pub fn last(&self, key: &Key) -> Option<(Answer, Duration)> {
        let mut entries = self.lock();
        let entry = entries.lru.get(key)?;
        let age = entry.stored.elapsed();
        if age > self.max_age {
            entries.remove(key);
            return None;
        }
        Some((Answer { message: entry.message.clone(), ..Answer::default() }, age))
    }

    /// Drops the answer to a request: it is wrong by now.
    pub fn forget(&self, key: &Key) {
        self.lock().remove(key);
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entries {
    fn remove(&mut self, key: &Key) {
        if let Some(entry) = self.lru.pop(key) {
            self.size = self.size.saturating_sub(size(key, &entry));
        }
    }
}

fn size(key: &Key, entry: &Entry) -> usize {
    OVERHEAD + key.request.len() + entry.message.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::rpc::Rpc;
    use crate::client::call::testing;

    fn call(request: usize) -> Key {
        let framed = Bytes::from(request.to_string());
        Key::from(&Call { framed, ..testing::call(Rpc::GetFeeds, Duration::from_secs(1)) })
    }

    fn answer(length: usize) -> Answer {
        Answer { message: Bytes::from(vec![7; length]), ..Answer::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn it_stays_within_its_bounds() {
        let cache = Cache::new(100 * 1024, Duration::from_mins(1));
        for request in 0..1000 {
            cache.keep(&call(request), &answer(1024));
            cache.last(&call(0)).expect("used all the time, so kept");
            assert!(cache.lock().size <= 100 * 1024);
        }
        let kept = cache.lock().lru.len();
        assert!((70..100).contains(&kept), "{kept}");
        let sum: usize = cache.lock().lru.iter().map(|(key, entry)| size(key, entry)).sum();
        assert_eq!(sum, cache.lock().size);
        // too large
        cache.keep(&call(0), &answer(11 * 1024));
        assert!(cache.last(&call(0)).is_none(), "the answer before it is no longer the last one");
        // with a new answer under the same key the old one's bytes are given back
        for length in 0..2000 {
            cache.keep(&call(1), &answer(length % 100));
        }
        let sum: usize = cache.lock().lru.iter().map(|(key, entry)| size(key, entry)).sum();
        assert_eq!(sum, cache.lock().size);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_has_an_age_and_an_end() {
        let cache = Cache::new(1024 * 1024, Duration::from_mins(1));
        cache.keep(&call(1), &answer(3));
        tokio::time::advance(Duration::from_secs(50)).await;
        assert_eq!(cache.last(&call(1)).unwrap().1, Duration::from_secs(50));
        // the same answer again is young again
        cache.keep(&call(1), &answer(3));
        tokio::time::advance(Duration::from_secs(50)).await;
        assert_eq!(cache.last(&call(1)).unwrap().1, Duration::from_secs(50));
        tokio::time::advance(Duration::from_secs(11)).await;
        assert!(cache.last(&call(1)).is_none());
        assert_eq!(cache.lock().size, 0);
        // another rpc with the same bytes is another read
        cache.keep(&call(1), &answer(3));
        let other = Key { rpc: Rpc::GetTopic, ..call(1) };
        assert!(cache.last(&other).is_none());
    }

    #[test]
    fn a_cache_of_nothing_keeps_nothing() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let cache = Cache::new(0, Duration::from_mins(1));
            cache.keep(&call(1), &answer(0));
            assert!(cache.last(&call(1)).is_none());
        });
    }
}
