//! The errors of requests, and the table from their codes to those of gRPC and HTTP.

use std::borrow::Cow;

use http::StatusCode;
use tonic::Status;

/// The kind of an error. Every failure of a request is one of these.
///
/// | Code | gRPC | HTTP |
/// |---|---|---|
/// | `BadRequest` | `INVALID_ARGUMENT` | 400 |
/// | `NotFound` | `NOT_FOUND` | 404 |
/// | `TooManyRequests` | `RESOURCE_EXHAUSTED` | 429 |
/// | `Unavailable` | `UNAVAILABLE` | 503 |
/// | `Timeout` | `DEADLINE_EXCEEDED` | 504 |
/// | `Internal` | `INTERNAL` | 500 |
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    /// The caller's input is wrong; a repeat fails too.
    BadRequest,
    /// What was asked for does not exist.
    NotFound,
    /// The caller is over a limit.
    TooManyRequests,
    /// No instance can answer now. The same call may succeed later, or at another instance.
    Unavailable,
    /// The deadline passed before there was an answer.
    Timeout,
    /// A bug of the server.
    Internal,
}

impl Code {
    /// Every code.
    pub const ALL: [Self; 6] = [
        Self::BadRequest,
        Self::NotFound,
        Self::TooManyRequests,
        Self::Unavailable,
        Self::Timeout,
        Self::Internal,
    ];

    /// Returns the name in the `type` of a problem: `bad_request`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::BadRequest => "bad_request",
            Self::NotFound => "not_found",
            Self::TooManyRequests => "too_many_requests",
            Self::Unavailable => "unavailable",
            Self::Timeout => "timeout",
            Self::Internal => "internal",
        }
    }

    /// Returns the gRPC code.
    #[must_use]
    pub const fn grpc(self) -> tonic::Code {
        match self {
            Self::BadRequest => tonic::Code::InvalidArgument,
            Self::NotFound => tonic::Code::NotFound,
            Self::TooManyRequests => tonic::Code::ResourceExhausted,
            Self::Unavailable => tonic::Code::Unavailable,
            Self::Timeout => tonic::Code::DeadlineExceeded,
            Self::Internal => tonic::Code::Internal,
        }
    }

    /// Returns the HTTP status.
    #[must_use]
    pub const fn http(self) -> StatusCode {
        match self {
            Self::BadRequest => StatusCode::BAD_REQUEST,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::TooManyRequests => StatusCode::TOO_MANY_REQUESTS,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::Timeout => StatusCode::GATEWAY_TIMEOUT,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// Returns the code of a status that a peer sent. A call that ended without one is [`Code::Unavailable`], which
    /// the client decides.
    #[must_use]
    pub const fn of_peer(code: tonic::Code) -> Self {
        match code {
            tonic::Code::InvalidArgument => Self::BadRequest,
            tonic::Code::NotFound => Self::NotFound,
            tonic::Code::ResourceExhausted => Self::TooManyRequests,
            // an older instance without the rpc: another one may have it
            tonic::Code::Unavailable | tonic::Code::Unimplemented => Self::Unavailable,
            // a server that gives up at its deadline sends either
            tonic::Code::DeadlineExceeded | tonic::Code::Cancelled => Self::Timeout,
            _ => Self::Internal,
        }
    }
}

/// A failed request. The message is for the caller: it names what is wrong and contains no internals.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{message}", field.as_ref().map(|f| format!("{f}: ")).unwrap_or_default())]
pub struct Error {
    /// The kind of the error.
    pub code: Code,
    /// The wrong input field, for [`Code::BadRequest`].
    pub field: Option<Cow<'static, str>>,
    /// Lower case, no full stop.
    pub message: Cow<'static, str>,
}

impl Error {
    /// Returns an error with a code and a message.
    pub fn new(code: Code, message: impl Into<Cow<'static, str>>) -> Self {
        Self { code, field: None, message: message.into() }
    }

    /// Returns a [`Code::BadRequest`] for a field.
    pub fn bad(field: impl Into<Cow<'static, str>>, message: impl Into<Cow<'static, str>>) -> Self {
        Self { code: Code::BadRequest, field: Some(field.into()), message: message.into() }
    }

    /// Returns a [`Code::NotFound`].
    pub fn not_found(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::NotFound, message)
    }

    /// Returns a [`Code::Unavailable`].
    pub fn unavailable(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::Unavailable, message)
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        Self::new(error.code.grpc(), error.to_string())
    }
}

/// Returns the text of an error with all its causes, for logs: hyper's own text says only "connection error".
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.extend([": ", &error.to_string()]);
        cause = error.source();
    }
    text
}

/// Returns the name of a gRPC code as its specification writes it.
#[must_use]
pub const fn code_name(code: tonic::Code) -> &'static str {
    match code {
        tonic::Code::Ok => "OK",
        tonic::Code::Cancelled => "CANCELLED",
        tonic::Code::Unknown => "UNKNOWN",
        tonic::Code::InvalidArgument => "INVALID_ARGUMENT",
        tonic::Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        tonic::Code::NotFound => "NOT_FOUND",
        tonic::Code::AlreadyExists => "ALREADY_EXISTS",
        tonic::Code::PermissionDenied => "PERMISSION_DENIED",
        tonic::Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        tonic::Code::FailedPrecondition => "FAILED_PRECONDITION",
        tonic::Code::Aborted => "ABORTED",
        tonic::Code::OutOfRange => "OUT_OF_RANGE",
        tonic::Code::Unimplemented => "UNIMPLEMENTED",
        tonic::Code::Internal => "INTERNAL",
        tonic::Code::Unavailable => "UNAVAILABLE",
        tonic::Code::DataLoss => "DATA_LOSS",
        tonic::Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_survives_the_wire() {
        for code in Code::ALL {
            let status = Status::from(Error::new(code, "x"));
            assert_eq!(Code::of_peer(status.code()), code);
        }
    }
}
