//! The copy over stores in memory that can lose and change records.

use std::collections::BTreeMap;
use std::sync::Mutex;

use tonic::async_trait;

use super::super::super::bulk::Service;
use super::*;

/// Records by key, and what goes wrong.
#[derive(Default)]
struct Fake {
    records: Mutex<BTreeMap<Vec<i64>, Vec<String>>>,
    /// Calls of `put_many` so far.
    pages: Mutex<usize>,
    /// The key of a record that is lost after it was written.
    loses: Option<i64>,
    /// The key of a record that somebody changes after it was written.
    changes: Option<i64>,
    /// How many records too many it counts.
    miscount: u64,
    /// The call of `put_many` after which it cancels this.
    stop: Option<(usize, CancellationToken)>,
}

fn record(n: i64) -> Record {
    Record { key: vec![n], texts: vec![format!("name {n}"), String::new(), "t".to_owned()] }
}

impl Fake {
    fn of(keys: impl IntoIterator<Item = i64>) -> Self {
        let records = keys.into_iter().map(|n| (vec![n], record(n).texts)).collect();
        Self { records: Mutex::new(records), ..Self::default() }
    }

    fn set(&self, key: i64, text: &str) {
        self.records.lock().unwrap().insert(vec![key], vec![text.to_owned(); 3]);
    }

    fn keys(&self) -> Vec<i64> {
        self.records.lock().unwrap().keys().map(|key| key[0]).collect()
    }
}

#[async_trait]
impl Export for Fake {
    async fn count(&self) -> Result<u64, StoreError> {
        Ok(self.records.lock().unwrap().len() as u64 + self.miscount)
    }

    async fn scan(&self, after: &[i64], limit: usize) -> Result<Vec<Record>, StoreError> {
        let records = self.records.lock().unwrap();
        let above = records.iter().filter(|(key, _)| key.as_slice() > after).take(limit);
        Ok(above.map(|(key, texts)| Record { key: key.clone(), texts: texts.clone() }).collect())
    }
}

#[async_trait]
impl Import for Fake {
    async fn count(&self) -> Result<u64, StoreError> {
        Export::count(self).await
    }

    async fn get_many(&self, keys: Vec<Vec<i64>>) -> Result<Vec<Record>, StoreError> {
        let records = self.records.lock().unwrap();
        let there = keys.into_iter().rev().filter_map(|key| {
            let texts = records.get(&key)?.clone();
            Some(Record { key, texts })
        });
        Ok(there.collect())
    }

    async fn put_many(&self, page: Vec<Record>, on_conflict: OnConflict) -> Result<Put, StoreError> {
        let mut records = self.records.lock().unwrap();
        let mut written = Written::default();
        for Record { key, mut texts } in page {
            if Some(key[0]) == self.changes {
                texts = vec!["newer".to_owned(); 3];
            }
            match (records.get(&key), on_conflict) {
                (None, _) => written.copied += 1,
                (Some(there), _) if *there == texts => written.same += 1,
                (Some(_), OnConflict::Stop) => return Ok(Put::Differs(key)),
                (Some(_), OnConflict::Keep) => {
                    written.kept += 1;
                    continue;
                }
                (Some(_), OnConflict::Overwrite) => written.overwritten += 1,
            }
            if Some(key[0]) != self.loses {
                records.insert(key, texts);
            }
        }
        let mut pages = self.pages.lock().unwrap();
        *pages += 1;
        if let Some((at, stop)) = &self.stop
            && *pages == *at
        {
            stop.cancel();
        }
        Ok(Put::Written(written))
    }
}

async fn copy(from: &Fake, to: &Fake, on_conflict: OnConflict) -> Result<Summary, CopyError> {
    let stop = to.stop.as_ref().map(|(_, stop)| stop.clone()).unwrap_or_default();
    let copy = Copy { table: Service::Profile.table(), from, to, on_conflict, stop: &stop };
    let mut last = Progress::default();
    let copied = copy
        .run(|progress| {
            assert!(progress.read >= last.read && progress.checked >= last.checked, "{last:?} {progress:?}");
            last = *progress;
        })
        .await;
    if let Ok(summary) = &copied {
        assert_eq!((last.read, last.checked), (summary.total, summary.total));
    }
    copied
}

/// [`PAGE`] as a key.
#[expect(clippy::cast_possible_wrap, reason = "a few hundred")]
const LENGTH: i64 = PAGE as i64;
/// Enough for several pages, the last one shorter.
const MANY: std::ops::RangeInclusive<i64> = 1..=LENGTH * 2 + 7;

#[tokio::test]
async fn every_record_is_copied_once_and_a_repeat_writes_nothing() {
    let from = Fake::of(MANY.chain([i64::MAX, -3]));
    let to = Fake::of([i64::MAX - 1]);
    let total = u64::try_from(*MANY.end()).unwrap() + 2;
    let written = Written { copied: total, ..Written::default() };
    let summary = copy(&from, &to, OnConflict::Stop).await.unwrap();
    assert_eq!(summary, Summary { total, written, target: total + 1 });
    let again = copy(&from, &to, OnConflict::Stop).await.unwrap();
    assert_eq!(again.written, Written { same: total, ..Written::default() });
    let empty = copy(&Fake::default(), &to, OnConflict::Stop).await.unwrap();
    assert_eq!((empty.total, empty.target), (0, total + 1));
}

#[tokio::test]
async fn a_record_that_differs_ends_it_or_is_counted() {
    let from = Fake::of(MANY);
    let to = Fake::default();
    to.set(LENGTH + 3, "newer");
    let error = copy(&from, &to, OnConflict::Stop).await.unwrap_err();
    assert!(error.to_string().contains(&format!("user_id {}", PAGE + 3)), "{error}");
    let kept = copy(&from, &to, OnConflict::Keep).await.unwrap();
    assert_eq!((kept.written.kept, kept.written.copied + kept.written.same), (1, kept.total - 1));
    assert_eq!(to.records.lock().unwrap()[&vec![LENGTH + 3]][0], "newer");
    let replaced = copy(&from, &to, OnConflict::Overwrite).await.unwrap();
    assert_eq!((replaced.written.overwritten, replaced.written.same), (1, replaced.total - 1));
    assert_eq!(*to.records.lock().unwrap(), *from.records.lock().unwrap());
}

#[tokio::test]
async fn what_is_lost_or_changed_after_it_was_written_is_found() {
    let from = Fake::of(MANY);
    for on_conflict in [OnConflict::Stop, OnConflict::Keep, OnConflict::Overwrite] {
        let lossy = Fake { loses: Some(*MANY.end()), ..Fake::default() };
        let error = copy(&from, &lossy, on_conflict).await.unwrap_err();
        assert!(
            matches!(&error, CopyError::Missing { key } if *key == format!("user_id {}", MANY.end())),
            "{error}"
        );
    }
    let changed = Fake { changes: Some(2), ..Fake::default() };
    let error = copy(&from, &changed, OnConflict::Overwrite).await.unwrap_err();
    assert!(matches!(&error, CopyError::Differs { key } if key == "user_id 2"), "{error}");
    // one that may be another one is only looked for
    copy(&from, &changed, OnConflict::Keep).await.unwrap();
    let from = Fake { miscount: 1, ..Fake::of([1, 2]) };
    let error = copy(&from, &Fake::default(), OnConflict::Stop).await.unwrap_err();
    assert!(matches!(error, CopyError::Count { counted: 3, read: 2 }), "{error}");
}

#[tokio::test]
async fn a_signal_ends_it_between_two_pages() {
    let from = Fake::of(MANY);
    for (at, last) in [(1, LENGTH), (2, 2 * LENGTH)] {
        let to = Fake { stop: Some((at, CancellationToken::new())), ..Fake::default() };
        let error = copy(&from, &to, OnConflict::Stop).await.unwrap_err();
        assert!(matches!(error, CopyError::Stopped), "{error}");
        assert_eq!(to.keys(), (1..=last).collect::<Vec<_>>());
    }
}
