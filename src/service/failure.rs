//! Failed and refused calls as gRPC answers.

use std::time::Duration;

use http::{HeaderValue, Response};
use tonic::Status;
use tonic::body::Body;

use crate::api::error::{Code, Error};
use crate::api::headers::{PUSHBACK, PUSHBACK_RANGE};
use crate::server::admission::Refusal;

/// Why a call has no answer of its handler.
#[derive(Clone, Debug)]
pub enum Failure {
    /// It was refused.
    Refused(Refusal),
    /// It was refused since it may have waited longer than its caller does, while this process paused.
    Late {
        /// Time after which a repeat is surely not late.
        retry_after: Duration,
    },
    /// It failed.
    Failed(Error),
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl Failure {
    /// Returns true if the call was refused for overload or a pause: the instance has not failed.
    pub const fn is_overload(&self) -> bool {
        match self {
            Self::Refused(refusal) => refusal.is_overload(),
            Self::Late { .. } => true,
            Self::Failed(_) => false,
        }
    }

    /// Returns the answer. With pushback it tells the caller when to repeat the call, and that the instance has not
    /// failed.
    pub fn into_response(self) -> Response<Body> {
        let (error, pushback) = match self {
            Self::Failed(error) => (error, None),
            Self::Late { retry_after } => {
                let pushback = HeaderValue::from(whole_ms(retry_after) + 1);
                (Error::unavailable("the call may be older than its time limit"), Some(pushback))
            }
            Self::Refused(Refusal::Overloaded(_)) => {
                let pushback = HeaderValue::from(crate::random::range(PUSHBACK_RANGE));
                (Error::unavailable("too many calls are in progress"), Some(pushback))
            }
            Self::Refused(Refusal::RateLimited { retry_after }) => {
                let error = Error::new(Code::TooManyRequests, "this client sends too many calls");
                (error, Some(HeaderValue::from(whole_ms(retry_after))))
            }
            Self::Refused(Refusal::DeadlinePassed) => {
                (Error::new(Code::Timeout, "the deadline has passed"), None)
            }
        };
        let mut response = Status::from(error).into_http();
        if let Some(pushback) = pushback {
            response.headers_mut().insert(PUSHBACK, pushback);
        }
        response
    }
}

/// Returns a time in milliseconds, rounded up.
fn whole_ms(time: Duration) -> u64 {
    u64::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::admission::Overload;

    fn pushback(failure: impl Into<Failure>) -> Option<u64> {
        let response = failure.into().into_response();
        let value = response.headers().get(PUSHBACK)?;
        Some(value.to_str().unwrap().parse().unwrap())
    }

    #[test]
    fn refusals_carry_pushback() {
        for overload in [Overload::InFlight, Overload::Memory] {
            for _ in 0..100 {
                let ms = pushback(Refusal::Overloaded(overload)).unwrap();
                assert!((50..=150).contains(&ms), "{ms}");
            }
        }
        let retry_after = Duration::from_micros(2001);
        assert_eq!(pushback(Refusal::RateLimited { retry_after }), Some(3));
        assert_eq!(pushback(Refusal::DeadlinePassed), None);
    }

    #[test]
    fn overload_is_not_any_failure() {
        assert!(Failure::from(Refusal::Overloaded(Overload::Memory)).is_overload());
        let unavailable = Error::unavailable("too many calls are in progress");
        assert!(!Failure::from(unavailable.clone()).is_overload());
        assert_eq!(pushback(unavailable), None);
    }
}
