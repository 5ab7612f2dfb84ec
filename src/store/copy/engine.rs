//! Copies the records of one service and checks them afterwards: page by page, in the order of the keys.
//!
//! A copy that was cut off is repeated from the start. What is there already is read and compared, not written again.

use std::collections::BTreeMap;

use tokio_util::sync::CancellationToken;

use super::super::bulk::{Export, Import, OnConflict, Put, Record, Table, Written};
use super::super::error::StoreError;

/// Records in a page. A content has 32 KiB at most, so a page has 8 MiB at most. A page is one transaction of the target.
const PAGE: usize = 250;

/// Why a copy ended early.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The source failed.
    #[error("FROM: {0}")]
    From(StoreError),
    /// The target failed.
    #[error("TO: {0}")]
    To(StoreError),
    /// The source does not have as many records as it says.
    #[error("FROM says that it has {counted} records, and {read} could be read")]
    Count {
        /// What it counts.
        counted: u64,
        /// What it returned.
        read: u64,
    },
    /// The target has another record with a key of the source.
    #[error("TO has another record with {key}; nothing of its page was written; see --on-conflict")]
    Conflict {
        /// The key, by columns.
        key: String,
    },
    /// After the copy, a record is not in the target.
    #[error("check failed: TO lacks {key}")]
    Missing {
        /// The key, by columns.
        key: String,
    },
    /// After the copy, a record of the target is another one.
    #[error("check failed: TO has another record with {key}")]
    Differs {
        /// The key, by columns.
        key: String,
    },
    /// A signal ended it between two pages.
    #[error("stopped by a signal; repeat the command to go on")]
    Stopped,
}

/// How far a copy is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Records of the source.
    pub total: u64,
    /// What happened to those that were read so far.
    pub written: Written,
    /// Records that were read so far.
    pub read: u64,
    /// Records that were compared after the copy so far.
    pub checked: u64,
}

/// What a copy did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Records of the source. Each was compared with the target after the copy.
    pub total: u64,
    /// What happened to them.
    pub written: Written,
    /// Records that the target has at the end.
    pub target: u64,
}

/// A copy of the records of one service.
pub struct Copy<'a> {
    /// The table of the service.
    pub table: &'static Table,
    /// The source.
    pub from: &'a dyn Export,
    /// The target.
    pub to: &'a dyn Import,
    /// What is done with records that differ.
    pub on_conflict: OnConflict,
    /// Ends the copy between two pages.
    pub stop: &'a CancellationToken,
}

impl Copy<'_> {
    /// Copies every record, then compares every record of the source with the target. `tell` is called after each page.
    ///
    /// # Errors
    /// Why it ended early. Pages before that are durable.
    pub async fn run(&self, mut tell: impl FnMut(&Progress)) -> Result<Summary, CopyError> {
        let total = self.from.count().await.map_err(CopyError::From)?;
        let mut progress = Progress { total, ..Progress::default() };
        tell(&progress);
        let mut after = self.table.start();
        while let Some((page, last)) = self.next(&after).await? {
            progress.read += page.len() as u64;
            progress.written += self.put(page).await?;
            after = last;
            tell(&progress);
        }
        if progress.read != total {
            return Err(CopyError::Count { counted: total, read: progress.read });
        }
        let mut after = self.table.start();
        while let Some((page, last)) = self.next(&after).await? {
            progress.checked += page.len() as u64;
            self.check(page).await?;
            after = last;
            tell(&progress);
        }
        let target = self.to.count().await.map_err(CopyError::To)?;
        Ok(Summary { total, written: progress.written, target })
    }

    /// Returns the next page and its last key, `None` at the end.
    async fn next(&self, after: &[i64]) -> Result<Option<(Vec<Record>, Vec<i64>)>, CopyError> {
        if self.stop.is_cancelled() {
            return Err(CopyError::Stopped);
        }
        let page = self.from.scan(after, PAGE).await.map_err(CopyError::From)?;
        Ok(page.last().map(|last| last.key.clone()).map(|last| (page, last)))
    }

    async fn put(&self, page: Vec<Record>) -> Result<Written, CopyError> {
        match self.to.put_many(page, self.on_conflict).await.map_err(CopyError::To)? {
            Put::Written(written) => Ok(written),
            Put::Differs(key) => Err(CopyError::Conflict { key: self.table.name_of(&key) }),
        }
    }

    /// Compares a page with the target. A record that may be another one there is only looked for.
    async fn check(&self, page: Vec<Record>) -> Result<(), CopyError> {
        let keys = page.iter().map(|record| record.key.clone()).collect();
        let there = self.to.get_many(keys).await.map_err(CopyError::To)?;
        let there: BTreeMap<_, _> = there.into_iter().map(|record| (record.key, record.texts)).collect();
        for record in &page {
            let key = || self.table.name_of(&record.key);
            match there.get(&record.key) {
                None => return Err(CopyError::Missing { key: key() }),
                Some(texts) if *texts != record.texts && self.on_conflict != OnConflict::Keep => {
                    return Err(CopyError::Differs { key: key() });
                }
                Some(_) => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
