//! What goes wrong in a store.

use rusqlite::ErrorCode;

use crate::api::error::{Code, Error};

/// A store could not be opened or used. The text says which and why; it is for the log.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// The file or the database could not be opened, belongs to another service, or is of a newer version.
    #[error("store {path}: {reason}")]
    Open {
        /// The file, or the URL of the database.
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
    /// A file of the store was taken away while it was in use. What is written would be lost.
    #[error("store: {0} while it was in use")]
    Lost(String),
    /// The database cannot be reached, or not be written to. Nothing was changed.
    #[error("store: no connection: {0}")]
    Away(String),
    /// The database did not say whether a write was made. It may be repeated: each write gives a record a value, or
    /// deletes it.
    #[error("store: it is not known whether the write was made: {0}")]
    Unknown(String),
    /// The write had not begun when its deadline passed, and was not made.
    #[error("store: the deadline passed before the write began")]
    Late,
    /// A thread of the store has ended.
    #[error("store: closed")]
    Closed,
}

impl From<StoreError> for Error {
    /// Returns the answer for the caller: usually the service cannot answer now, so the caller may try again.
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Late => Self::new(Code::Timeout, "the deadline has passed"),
            StoreError::Full => Self::unavailable("the store's disk is full"),
            StoreError::Unknown(_) => Self::unavailable("it is not known whether the write was made"),
            StoreError::Open { .. }
            | StoreError::Failed(_)
            | StoreError::Lost(_)
            | StoreError::Away(_)
            | StoreError::Closed => Self::unavailable("the store cannot answer"),
        }
    }
}

impl From<&rusqlite::Error> for StoreError {
    fn from(error: &rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Self::Full,
            _ => Self::Failed(error.to_string()),
        }
    }
}
