//! The last good answers of reads, for the fallback. It is bounded in memory: the least recently used answer is
//! dropped for a new one.
//!
//! An answer is out of date once a write of what it is about has been acknowledged, to this process or to a caller
//! above it that says so: it would bring back what was deleted or overwritten. What counts is when the read began, so
//! a slow read that returns after the write is not kept either. Writes through other processes are not known here.
//!
//! Each thread has a part of the memory, so that reads of several threads do not wait for each other. A write is noted in
//! every part, and the fallback looks into every part. So each part has the list of writes: one list for all would be
//! locked by every read of every thread.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use lru::LruCache;
use tokio::time::Instant;

use crate::api::subject::{Subject, Subjects};
use crate::client::call::{Answer, Key, Read};

/// Memory of an entry without its request and message, bytes: key, time, table and list (the sizes of the
/// types, rounded up).
const OVERHEAD: usize = 256;
/// Subjects whose last write is remembered, about 100 bytes each, by every thread. Beyond them the time of the oldest one
/// counts for all that are not remembered.
const MAX_WRITTEN: usize = 8192;

#[derive(Debug)]
struct Entry {
    message: Bytes,
    /// When the read began that was answered so.
    read: Instant,
}

/// The cache, as one thread has it. All services of a client share it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Cache {
    parts: Arc<[Part]>,
    /// The part of this thread.
    own: usize,
}

/// The answers that one thread has kept.
#[derive(Debug)]
struct Part {
    max_bytes: usize,
    /// Memory of the largest entry that is kept, bytes.
    max_entry: usize,
    max_age: Duration,
    entries: Mutex<Entries>,
}

#[derive(Debug)]
struct Entries {
    lru: LruCache<Key, Entry>,
    /// Memory of all entries, bytes.
    size: usize,
    /// When a write of a subject was last acknowledged.
    written: LruCache<Subject, Instant>,
    /// The newest of those that are not remembered any more.
    forgotten: Option<Instant>,
}

impl Cache {
    /// Returns an empty cache of at most `limit` bytes, overhead included, that gives answers up to
    /// `max_age`. With 0 bytes it keeps nothing.
    #[must_use]
    pub fn new(limit: usize, max_age: Duration) -> Self {
        Self::divided(limit, max_age, 1)
    }

    /// As [`Self::new`], divided among so many threads. This is the cache of the first one.
    #[must_use]
    pub fn divided(limit: usize, max_age: Duration, threads: usize) -> Self {
        let max_bytes = limit / threads.max(1);
        // one that takes more than a tenth of the cache is not kept: it would displace many others
        let max_entry = (limit / 10).min(max_bytes);
        let part = || Part { max_bytes, max_entry, max_age, entries: Mutex::new(Entries::new()) };
        Self { parts: std::iter::repeat_with(part).take(threads.max(1)).collect(), own: 0 }
    }

    /// Returns the same as the thread with a number has it.
    #[must_use]
    pub fn of_thread(&self, number: usize) -> Self {
        Self { parts: self.parts.clone(), own: number }
    }

    fn own(&self) -> Option<&Part> {
        self.parts.get(self.own % self.parts.len())
    }

    /// Keeps the message that answers a read, unless a newer one is there, or it is out of date or too large.
    pub fn keep(&self, read: &Read, message: &Bytes) {
        if let Some(part) = self.own() {
            part.keep(read, message);
        }
    }

    /// Returns the last good answer to the same request and its age, unless it is too old or out of date.
    pub fn last(&self, read: &Read) -> Option<(Answer, Duration)> {
        let kept = self.parts.iter().filter_map(|part| part.last(read));
        let (message, age) = kept.min_by_key(|(_, age)| *age)?;
        Some((Answer { message, ..Answer::default() }, age))
    }

    /// Drops the answer to a request: it is wrong by now.
    pub fn forget(&self, read: &Read) {
        for part in &*self.parts {
            part.lock().remove(&read.key);
        }
    }

    /// Notes that a write was acknowledged: what was read of its subjects before is out of date.
    pub fn note_write(&self, about: Subjects) {
        let now = Instant::now();
        for part in &*self.parts {
            part.lock().note_write(about, now);
        }
    }

    /// Returns when a write of what a read is about was last acknowledged, as far as this process or its callers know.
    pub fn written(&self, read: &Read) -> Option<Instant> {
        self.own().map_or(read.written, |part| part.lock().written(read))
    }

    #[cfg(test)]
    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.own().unwrap().lock()
    }
}

impl Part {
    fn keep(&self, read: &Read, message: &Bytes) {
        let mut entries = self.lock();
        let out_of_date = entries.out_of_date(read, read.began);
        if let Some(entry) = entries.lru.get_mut(&read.key) {
            if entry.read > read.began {
                return;
            }
            if entry.message == *message && !out_of_date {
                entry.read = read.began;
                return;
            }
        }
        entries.remove(&read.key);
        if out_of_date {
            return;
        }
        // copies, because a slice would keep the whole buffer that it was read into
        let key = Key { rpc: read.key.rpc, request: Bytes::copy_from_slice(&read.key.request) };
        let entry = Entry { message: Bytes::copy_from_slice(message), read: read.began };
        let size = size(&key, &entry);
        if size > self.max_entry {
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

    fn last(&self, read: &Read) -> Option<(Bytes, Duration)> {
        let mut entries = self.lock();
        let entry = entries.lru.get(&read.key)?;
        let (message, began) = (entry.message.clone(), entry.read);
        let age = began.elapsed();
        if age > self.max_age || entries.out_of_date(read, began) {
            entries.remove(&read.key);
            return None;
        }
        Some((message, age))
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entries {
    fn new() -> Self {
        Self { lru: LruCache::unbounded(), size: 0, written: LruCache::unbounded(), forgotten: None }
    }

    fn note_write(&mut self, about: Subjects, now: Instant) {
        for subject in about.into_iter().flatten() {
            // a thread that was interrupted may come with an older time than another one has noted since
            let newest = self.written.peek(&subject).map_or(now, |noted| now.max(*noted));
            self.written.put(subject, newest);
            if self.written.len() > MAX_WRITTEN {
                let oldest = self.written.pop_lru().map(|(_, written)| written);
                self.forgotten = self.forgotten.max(oldest);
            }
        }
    }

    fn written(&self, read: &Read) -> Option<Instant> {
        let subjects = read.about.into_iter().flatten();
        let known = subjects.map(|subject| self.written.peek(&subject).copied().or(self.forgotten));
        known.flatten().chain(read.written).max()
    }

    /// Returns true if an answer to a read that began at a time is out of date.
    fn out_of_date(&self, read: &Read, began: Instant) -> bool {
        self.written(read).is_some_and(|written| began <= written)
    }

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
    use crate::client::call::{Call, testing};

    fn call(request: usize) -> Read {
        let framed = Bytes::from(request.to_string());
        Read::begin(&Call { framed, ..testing::call(Rpc::GetFeeds, Duration::from_secs(1)) })
    }

    fn answer(length: usize) -> Bytes {
        Bytes::from(vec![7; length])
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
        let mut other = call(1);
        other.key.rpc = Rpc::GetTopic;
        assert!(cache.last(&other).is_none());
    }

    /// A read of the feeds of a user.
    fn feeds_of(user: i64) -> Read {
        Read { about: [Some(Subject::User(user)), None], ..call(usize::try_from(user).unwrap()) }
    }

    #[tokio::test(start_paused = true)]
    async fn an_acknowledged_write_makes_earlier_answers_out_of_date() {
        let millisecond = Duration::from_millis(1);
        let cache = Cache::new(1024 * 1024, Duration::from_mins(1));
        let early = feeds_of(1);
        cache.keep(&early, &answer(3));
        cache.keep(&feeds_of(2), &answer(3));
        tokio::time::advance(millisecond).await;
        let slow = feeds_of(1);
        cache.note_write([Some(Subject::User(1)), None]);
        assert!(cache.last(&feeds_of(1)).is_none(), "it would bring back what was overwritten");
        assert!(cache.last(&feeds_of(2)).is_some(), "nobody wrote that");
        // a read that began before the write and ends after it
        tokio::time::advance(millisecond).await;
        cache.keep(&slow, &answer(3));
        assert!(cache.last(&feeds_of(1)).is_none());
        // one that began later is good, and an earlier one does not replace it
        let late = feeds_of(1);
        cache.keep(&late, &answer(4));
        cache.keep(&early, &answer(5));
        assert_eq!(cache.last(&feeds_of(1)).unwrap().0.message, answer(4));
        // what a caller above has written counts, too
        tokio::time::advance(millisecond).await;
        let told = Read { written: Some(Instant::now()), ..feeds_of(1) };
        assert_eq!(cache.written(&told), told.written);
        assert!(cache.last(&told).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn writes_that_are_not_remembered_count_for_all() {
        let cache = Cache::new(1024 * 1024, Duration::from_mins(1));
        cache.keep(&feeds_of(1), &answer(3));
        let other = feeds_of(1_000_000);
        cache.keep(&other, &answer(3));
        tokio::time::advance(Duration::from_millis(1)).await;
        for user in 1..=i64::try_from(MAX_WRITTEN).unwrap() {
            cache.note_write([Some(Subject::User(user)), None]);
        }
        assert!(cache.last(&other).is_some());
        cache.note_write([Some(Subject::User(-1)), None]);
        assert_eq!(cache.lock().written.len(), MAX_WRITTEN);
        assert!(cache.last(&feeds_of(1)).is_none(), "its write is the one that is not remembered");
        assert!(cache.last(&other).is_none(), "it may have been that one");
    }

    #[tokio::test(start_paused = true)]
    async fn of_two_writes_of_a_subject_the_later_one_counts_in_whichever_order_they_are_noted() {
        let cache = Cache::new(1024 * 1024, Duration::from_mins(1));
        let (user, earlier) = ([Some(Subject::User(1)), None], Instant::now());
        tokio::time::advance(Duration::from_millis(1)).await;
        let read = feeds_of(1);
        cache.keep(&read, &answer(3));
        tokio::time::advance(Duration::from_millis(1)).await;
        let later = Instant::now();
        cache.lock().note_write(user, later);
        cache.lock().note_write(user, earlier);
        assert_eq!(cache.written(&read), Some(later));
        assert!(cache.last(&read).is_none());
    }

    /// What one thread has read another one may use; what one has written none may.
    #[tokio::test(start_paused = true)]
    async fn threads_share_what_they_know_and_each_has_its_part_of_the_memory() {
        let first = Cache::divided(100 * 1024, Duration::from_mins(1), 2);
        let second = first.of_thread(1);
        let read = feeds_of(1);
        first.keep(&read, &answer(3));
        assert_eq!(second.last(&read).unwrap().0.message, answer(3));
        tokio::time::advance(Duration::from_millis(1)).await;
        let later = feeds_of(1);
        second.keep(&later, &answer(4));
        assert_eq!(first.last(&read).unwrap().0.message, answer(4), "the newer one");
        second.forget(&read);
        assert!(first.last(&read).is_none() && second.last(&read).is_none());
        first.keep(&later, &answer(4));
        tokio::time::advance(Duration::from_millis(1)).await;
        second.note_write([Some(Subject::User(1)), None]);
        assert!(first.last(&read).is_none(), "it would bring back what was overwritten");
        assert_eq!(first.written(&feeds_of(1)), second.written(&feeds_of(1)));
        for request in 0..1000 {
            first.keep(&call(request), &answer(1024));
            assert!(first.lock().size <= 50 * 1024);
        }
        assert!(second.lock().size < 1024);
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
