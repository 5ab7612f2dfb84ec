//! What goes wrong in a store.

use http::{HeaderMap, HeaderValue};
use rusqlite::ErrorCode;
use tonic::Status;
use tonic::metadata::MetadataMap;

use crate::api::error::{Code, Error};
use crate::api::headers::{PUSHBACK, PUSHBACK_RANGE};

/// [`PUSHBACK`] of an answer that would be the same again.
const NEVER: HeaderValue = HeaderValue::from_static("-1");

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
    /// The database does not accept a record: a rule of its table forbids it. A repetition fails too. Nothing was changed.
    #[error("store: a record is not accepted: {0}")]
    Unacceptable(String),
    /// A record that was read holds what this program cannot read. Others can be read.
    #[error("store: a record cannot be read: {0}")]
    Unreadable(String),
    /// The disk is full.
    #[error("store: disk full")]
    Full,
    /// A file of the store was taken away while it was in use. What is written would be lost.
    #[error("store: {0} while it was in use")]
    Lost(String),
    /// The store has too much to do. Nothing was changed.
    #[error("store: too many {0} wait")]
    Busy(&'static str),
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
            StoreError::Unacceptable(_) => {
                Self::new(Code::BadRequest, "the store does not accept this record")
            }
            StoreError::Unreadable(_) => Self::unavailable("a record cannot be read"),
            StoreError::Full => Self::unavailable("the store's disk is full"),
            StoreError::Busy(_) => Self::unavailable("the store has too much to do"),
            StoreError::Unknown(_) => Self::unavailable("it is not known whether the write was made"),
            StoreError::Open { .. }
            | StoreError::Failed(_)
            | StoreError::Lost(_)
            | StoreError::Away(_)
            | StoreError::Closed => Self::unavailable("the store cannot answer"),
        }
    }
}

impl From<StoreError> for Status {
    /// Returns the answer of a service. An overload tells the caller when to repeat the call, and that the instance has not
    /// failed; a record that cannot be read says the same of the instance, and forbids a repetition.
    fn from(error: StoreError) -> Self {
        let pushback = match error {
            StoreError::Busy(_) => Some(HeaderValue::from(crate::random::range(PUSHBACK_RANGE))),
            StoreError::Unreadable(_) => Some(NEVER),
            _ => None,
        };
        let mut status = Self::from(Error::from(error));
        if let Some(pushback) = pushback {
            *status.metadata_mut() = MetadataMap::from_headers(HeaderMap::from_iter([(PUSHBACK, pushback)]));
        }
        status
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overload_tells_when_to_come_back() {
        let pushback = |error: StoreError| {
            let status = Status::from(error);
            assert_eq!(status.code(), tonic::Code::Unavailable);
            status
                .metadata()
                .get(PUSHBACK.as_str())
                .map(|value| value.to_str().unwrap().parse::<i32>().unwrap())
        };
        let ms = pushback(StoreError::Busy("writes")).unwrap();
        assert!(PUSHBACK_RANGE.contains(&u16::try_from(ms).unwrap()), "{ms}");
        assert_eq!(pushback(StoreError::Away("there".to_owned())), None);
        assert_eq!(pushback(StoreError::Unreadable("it".to_owned())), Some(-1));
    }
}
