//! What the writer of a store does at the moment, for `/readyz`: the same for every store that commits in groups.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::error::StoreError;

/// Time from which on a write that waits is worth a warning.
const LONG: Duration = Duration::from_secs(1);

/// What a writer does.
#[derive(Debug, Default)]
pub struct Progress(Mutex<Doing>);

#[derive(Debug, Default)]
struct Doing {
    /// When the transaction in progress began, its wait for a lock or a connection included.
    begun: Option<Instant>,
    /// Why the last transaction failed, if it did.
    failure: Option<StoreError>,
}

impl Progress {
    /// Notes that a transaction begins.
    pub fn begin(&self) {
        self.update(|doing| doing.begun = Some(Instant::now()));
    }

    /// Notes that the transaction has ended, and why it failed if it did.
    pub fn end(&self, failure: Option<StoreError>) {
        self.update(|doing| *doing = Doing { begun: None, failure });
    }

    fn update(&self, change: impl FnOnce(&mut Doing)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Returns what an operator should know about writes.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        self.update(|doing| {
            match &doing.failure {
                Some(StoreError::Full) => warnings.push("disk full, writes are refused".to_owned()),
                Some(error) => warnings.push(format!("the last write failed: {error}")),
                None => {}
            }
            if let Some(waited) = doing.begun.map(|begun| begun.elapsed()).filter(|waited| *waited >= LONG) {
                warnings.push(format!("a write has waited for {} s", waited.as_secs()));
            }
        });
        warnings
    }
}
