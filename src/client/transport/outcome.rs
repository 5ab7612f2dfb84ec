//! How one exchange ended, folded into an [`Outcome`]: the one place that decides what an ended exchange
//! means. Retry, breaker, balancer and metrics see only what comes out of here.
//!
//! Only a `grpc-status` that the peer sent counts as the peer's word. Whatever ends an exchange without one
//! (no connection, reset, GOAWAY, refused stream, I/O error, bytes that are not gRPC) is `Unavailable`, and
//! the difference that matters is whether a handler may have seen the call. (tonic's client reports these
//! as Unknown, Internal or Cancelled, as if the service had said so.)

use std::error::Error as _;
use std::fmt;
use std::time::Duration;

use tonic::Status;

use crate::api::error::{Code, Error, chain};
use crate::api::headers::PUSHBACK;
use crate::client::call::{Answer, Failure, Outcome, Pushback, Reach};

/// Longest pushback that is believed (linkerd2-proxy's cap for Retry-After).
const MAX_PUSHBACK: Duration = Duration::from_mins(5);

/// How one exchange ended.
#[derive(Debug)]
pub enum Ended {
    /// With an answer.
    Answered(Answer),
    /// Before it was sent.
    Kept(String),
    /// The peer is another service and refused.
    WrongService,
    /// The connection or the stream failed before the head of a response came.
    Failed(hyper::Error),
    /// The same, and the request came back unsent.
    Unsent(hyper::Error),
    /// The body broke off.
    BrokenOff(hyper::Error),
    /// What came is no gRPC.
    Garbled(String),
    /// The answer is longer than any of ours.
    TooLong,
    /// With a status other than OK.
    Said(Status),
}

impl fmt::Display for Ended {
    /// Writes what an operator wants to know.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answered(_) => f.write_str("answered"),
            Self::Kept(reason) | Self::Garbled(reason) => f.write_str(reason),
            Self::WrongService => f.write_str("it is another service"),
            Self::Failed(error) | Self::Unsent(error) | Self::BrokenOff(error) => f.write_str(&chain(error)),
            Self::TooLong => f.write_str("the answer is too long"),
            Self::Said(status) => {
                write!(f, "{}: {}", crate::api::error::code_name(status.code()), status.message())
            }
        }
    }
}

/// Folds the end of an exchange with an instance of `service`.
///
/// # Errors
/// A [`Failure`] for every end but an answer.
pub fn fold(service: &str, ended: Ended) -> Outcome {
    // a caller of the gateway learns only which service failed
    let lost = |reach| Failure::new(reach, Error::unavailable(format!("{service} cannot be reached")));
    Err(match ended {
        Ended::Answered(answer) => return Ok(answer),
        Ended::Kept(_) | Ended::Unsent(_) => lost(Reach::Kept),
        Ended::WrongService => lost(Reach::Unprocessed),
        Ended::Failed(error) if unprocessed(&error) => lost(Reach::Unprocessed),
        Ended::Failed(_) | Ended::BrokenOff(_) | Ended::Garbled(_) => lost(Reach::Unknown),
        Ended::TooLong => {
            // another instance would say the same
            let error = Error::new(Code::Internal, format!("the answer of {service} is too long"));
            Failure::new(Reach::Answered, error)
        }
        Ended::Said(status) => Failure {
            pushback: pushback(&status),
            ..Failure::new(
                Reach::Answered,
                Error::new(Code::of_peer(status.code()), status.message().to_owned()),
            )
        },
    })
}

/// Returns true if the peer promised not to have processed the request (RFC 9113, 6.8 and 8.7): it
/// refused the stream, or its GOAWAY without error left the stream out.
fn unprocessed(error: &hyper::Error) -> bool {
    let h2 = error.source().and_then(|e| e.downcast_ref::<h2::Error>());
    h2.is_some_and(|e| {
        e.is_remote()
            && (e.reason() == Some(h2::Reason::REFUSED_STREAM)
                || (e.is_go_away() && e.reason() == Some(h2::Reason::NO_ERROR)))
    })
}

/// Returns true if one stream was reset and its connection goes on.
pub fn is_reset(error: &hyper::Error) -> bool {
    let h2 = error.source().and_then(|e| e.downcast_ref::<h2::Error>());
    h2.is_some_and(h2::Error::is_reset)
}

/// A negative or unreadable number means never (A6).
fn pushback(status: &Status) -> Option<Pushback> {
    let value = status.metadata().get(PUSHBACK.as_str())?;
    let millis = value.to_str().ok().and_then(|text| text.parse().ok());
    let wait = millis.map(Duration::from_millis);
    Some(wait.map_or(Pushback::Never, |wait| Pushback::After(wait.min(MAX_PUSHBACK))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(code: tonic::Code, hint: Option<&str>) -> Failure {
        let mut status = Status::new(code, "x");
        if let Some(hint) = hint {
            status.metadata_mut().insert("grpc-retry-pushback-ms", hint.parse().unwrap());
        }
        fold("feed", Ended::Said(status)).unwrap_err()
    }

    #[test]
    fn a_status_of_the_peer_is_its_word() {
        use tonic::Code as Grpc;
        // status, what it is to us, whether the instance is to blame
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
            let failure = said(status, None);
            assert_eq!((failure.error.code, failure.reach), (code, Reach::Answered), "{status:?}");
            assert_eq!(failure.is_instances_fault(crate::client::call::FAIR), blamed, "{status:?}");
            assert_eq!(failure.pushback, None);
        }
    }

    #[test]
    fn pushback_is_read_and_blames_nobody() {
        for (hint, want) in [
            ("0", Pushback::After(Duration::ZERO)),
            ("250", Pushback::After(Duration::from_millis(250))),
            ("999999999", Pushback::After(MAX_PUSHBACK)),
            ("-1", Pushback::Never),
            ("soon", Pushback::Never),
        ] {
            let failure = said(tonic::Code::Unavailable, Some(hint));
            assert_eq!(failure.pushback, Some(want), "{hint}");
            assert!(!failure.is_instances_fault(crate::client::call::FAIR));
        }
    }

    #[test]
    fn what_was_never_sent_blames_nobody() {
        for (ended, reach, blamed) in [
            (Ended::Kept("x".to_owned()), Reach::Kept, false),
            (Ended::WrongService, Reach::Unprocessed, false),
            (Ended::Garbled("x".to_owned()), Reach::Unknown, true),
        ] {
            let failure = fold("feed", ended).unwrap_err();
            assert_eq!((failure.error.code, failure.reach), (Code::Unavailable, reach));
            assert_eq!(failure.is_instances_fault(crate::client::call::FAIR), blamed);
        }
        assert!(!fold("feed", Ended::TooLong).unwrap_err().error.code.name().is_empty());
    }
}
