//! What goes wrong in a store.

use crate::api::error::Error;

/// A store could not be opened or used. The text says which and why; it is for the log.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// The file could not be opened, belongs to another service, or is of a newer version.
    #[error("store {path}: {reason}")]
    Open {
        /// The file.
        path: String,
        /// Why.
        reason: String,
    },
    /// An operation failed.
    #[error("store: {0}")]
    Failed(String),
    /// The disk is full.
    #[error("store: disk full")]
    Full,
    /// The store's thread has ended.
    #[error("store: closed")]
    Closed,
}

impl From<StoreError> for Error {
    /// Returns the answer for the caller: the service cannot answer now, so the caller may try again.
    fn from(error: StoreError) -> Self {
        Self::unavailable(match error {
            StoreError::Full => "the store's disk is full",
            StoreError::Open { .. } | StoreError::Failed(_) | StoreError::Closed => "the store cannot answer",
        })
    }
}
