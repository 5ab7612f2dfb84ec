//! The one place that decides what the end of an exchange means: it folds an [`ExchangeEnd`] into an
//! [`Outcome`]. Retry, breaker, balancer and metrics see only the outcome.
//!
//! Only a `grpc-status` that the peer sent counts as the peer's answer. Whatever else ends an exchange (no
//! connection, reset, GOAWAY, refused stream, I/O error, bytes that are not gRPC) is `Unavailable`, and
//! [`Delivery`] says whether a handler may have seen the call. tonic's client would report these as Unknown,
//! Internal or Cancelled, as if the service had answered so.

use std::error::Error as _;
use std::fmt;
use std::time::Duration;

use tonic::Status;

use crate::api::error::{Code, Error, chain, code_name};
use crate::api::headers::PUSHBACK;
use crate::client::call::{Answer, Delivery, Failure, Outcome, Pushback};

/// Longest pushback that is accepted (linkerd2-proxy's cap for Retry-After).
const MAX_PUSHBACK: Duration = Duration::from_mins(5);

/// How one exchange ended.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "the largest variant is the usual one")]
pub enum ExchangeEnd {
    /// With an answer.
    Answered(Answer),
    /// Before the request was sent, and why.
    NotSent(String),
    /// The peer is another service and refused the call.
    WrongService,
    /// The connection or the stream failed before the head of a response came.
    NoResponse(hyper::Error),
    /// The connection or the stream failed while the body was read.
    BodyFailed(hyper::Error),
    /// The response is not valid gRPC, and why.
    Malformed(String),
    /// The answer is larger than any that our services send.
    TooLarge,
    /// With a status other than OK.
    Status(Status),
}

impl fmt::Display for ExchangeEnd {
    /// Writes the reason for operators: it may hold addresses and the peer's words.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answered(_) => f.write_str("answered"),
            Self::NotSent(reason) | Self::Malformed(reason) => f.write_str(reason),
            Self::WrongService => f.write_str("the peer is another service"),
            Self::NoResponse(error) | Self::BodyFailed(error) => f.write_str(&chain(error)),
            Self::TooLarge => f.write_str("the answer is too long"),
            Self::Status(status) => write!(f, "{}: {}", code_name(status.code()), status.message()),
        }
    }
}

/// Folds the end of an exchange with an instance of `service`.
///
/// # Errors
/// A [`Failure`] for every end but an answer.
pub fn fold(service: &str, end: ExchangeEnd) -> Outcome {
    // callers of the gateway learn only which service failed, not which instance and why
    let lost = |delivery| Failure::new(delivery, Error::unavailable(format!("{service} cannot be reached")));
    Err(match end {
        ExchangeEnd::Answered(answer) => return Ok(answer),
        ExchangeEnd::NotSent(_) => lost(Delivery::NotSent),
        ExchangeEnd::WrongService => lost(Delivery::Unprocessed),
        ExchangeEnd::NoResponse(error) if is_unprocessed(&error) => lost(Delivery::Unprocessed),
        ExchangeEnd::NoResponse(_) | ExchangeEnd::BodyFailed(_) | ExchangeEnd::Malformed(_) => {
            lost(Delivery::Unknown)
        }
        ExchangeEnd::TooLarge => {
            // no retry: another instance would give the same answer
            let error = Error::new(Code::Internal, format!("the answer of {service} is too long"));
            Failure::new(Delivery::Answered, error)
        }
        ExchangeEnd::Status(status) => Failure {
            pushback: pushback(&status),
            ..Failure::new(
                Delivery::Answered,
                Error::new(Code::of_peer(status.code()), status.message().to_owned()),
            )
        },
    })
}

/// Returns true if the peer promised not to have processed the request (RFC 9113, 6.8 and 8.7): it
/// refused the stream, or its GOAWAY without error left the stream out.
fn is_unprocessed(error: &hyper::Error) -> bool {
    let h2 = error.source().and_then(|e| e.downcast_ref::<h2::Error>());
    h2.is_some_and(|e| {
        e.is_remote()
            && (e.reason() == Some(h2::Reason::REFUSED_STREAM)
                || (e.is_go_away() && e.reason() == Some(h2::Reason::NO_ERROR)))
    })
}

/// Returns true if only the stream was reset, and its connection is still good.
pub fn is_reset(error: &hyper::Error) -> bool {
    let h2 = error.source().and_then(|e| e.downcast_ref::<h2::Error>());
    h2.is_some_and(h2::Error::is_reset)
}

/// Returns true if the connection broke under the exchange.
pub fn broke_connection(end: &ExchangeEnd) -> bool {
    matches!(end, ExchangeEnd::NoResponse(e) | ExchangeEnd::BodyFailed(e) if !is_reset(e))
}

/// Returns the pushback of a status. A negative or unreadable number means never (A6).
fn pushback(status: &Status) -> Option<Pushback> {
    let value = status.metadata().get(PUSHBACK.as_str())?;
    let millis = value.to_str().ok().and_then(|text| text.parse().ok());
    let wait = millis.map(Duration::from_millis);
    Some(wait.map_or(Pushback::Never, |wait| Pushback::After(wait.min(MAX_PUSHBACK))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure_of(code: tonic::Code, hint: Option<&str>) -> Failure {
        let mut status = Status::new(code, "x");
        if let Some(hint) = hint {
            status.metadata_mut().insert("grpc-retry-pushback-ms", hint.parse().unwrap());
        }
        fold("feed", ExchangeEnd::Status(status)).unwrap_err()
    }

    #[test]
    fn a_status_of_the_peer_is_its_answer() {
        use tonic::Code as Grpc;
        // status, our code for it, whether it is the instance's fault
        for (status, code, blamed) in [
            (Grpc::Unavailable, Code::Unavailable, true),
            (Grpc::Unimplemented, Code::Unavailable, true),
            (Grpc::DeadlineExceeded, Code::Timeout, true),
            (Grpc::Cancelled, Code::Timeout, true),
            (Grpc::Unknown, Code::Internal, true),
            (Grpc::Internal, Code::Internal, true),
            (Grpc::DataLoss, Code::Internal, true),
            (Grpc::InvalidArgument, Code::BadRequest, false),
            (Grpc::NotFound, Code::NotFound, false),
            (Grpc::ResourceExhausted, Code::TooManyRequests, false),
        ] {
            let failure = failure_of(status, None);
            assert_eq!((failure.error.code, failure.delivery), (code, Delivery::Answered), "{status:?}");
            assert_eq!(failure.is_instance_fault(true), blamed, "{status:?}");
            assert_eq!(failure.pushback, None);
        }
    }

    #[test]
    fn pushback_is_read_and_is_not_the_instances_fault() {
        for (hint, want) in [
            ("0", Pushback::After(Duration::ZERO)),
            ("250", Pushback::After(Duration::from_millis(250))),
            ("999999999", Pushback::After(MAX_PUSHBACK)),
            ("-1", Pushback::Never),
            ("soon", Pushback::Never),
        ] {
            let failure = failure_of(tonic::Code::Unavailable, Some(hint));
            assert_eq!(failure.pushback, Some(want), "{hint}");
            assert!(!failure.is_instance_fault(true));
        }
    }

    #[test]
    fn what_was_never_processed_is_not_the_instances_fault() {
        for (end, delivery, blamed) in [
            (ExchangeEnd::NotSent("x".to_owned()), Delivery::NotSent, false),
            (ExchangeEnd::WrongService, Delivery::Unprocessed, false),
            (ExchangeEnd::Malformed("x".to_owned()), Delivery::Unknown, true),
        ] {
            let failure = fold("feed", end).unwrap_err();
            assert_eq!((failure.error.code, failure.delivery), (Code::Unavailable, delivery));
            assert_eq!(failure.is_instance_fault(true), blamed);
        }
        assert!(!fold("feed", ExchangeEnd::TooLarge).unwrap_err().error.code.name().is_empty());
    }
}
