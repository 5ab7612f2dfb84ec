//! The layer for best-effort calls ([`Call::best_effort`]): once they keep failing they fail at once, except for
//! one probe every few seconds. Other calls pass through it.
//!
//! The breakers of instances leave at least half of the instances in use: for most calls an attempt that may
//! fail is better than none. For a call whose answer is only a part of another answer it is the other way
//! round: an answer without that part is better than one that waits for it (fault F45). So the breakers here
//! are for the whole service.

use std::sync::Arc;

use crate::api::error::{Code, Error};
use crate::client::balance::breaker::Breakers;
use crate::client::balance::circuit_breaker::AdmittedCall;
use crate::client::call::{Call, CallLayer, Delivery, Failure, Outcome};

/// Lets best-effort calls fail at once while the service is out.
pub struct BestEffort<S> {
    inner: S,
    breakers: Arc<Breakers>,
}

impl<S: CallLayer> BestEffort<S> {
    /// Puts breakers of the whole service before `inner`.
    pub const fn new(inner: S, breakers: Arc<Breakers>) -> Self {
        Self { inner, breakers }
    }
}

impl<S: CallLayer> CallLayer for BestEffort<S> {
    async fn send(&self, call: Call) -> Outcome {
        if !call.best_effort {
            return self.inner.send(call).await;
        }
        let (rpc, full_time) = (call.rpc, call.has_full_time());
        let Some(admitted) = AdmittedCall::admit(&self.breakers, &call) else {
            let reason = format!("best-effort calls of {} are suspended after failures", rpc.service());
            return Err(Failure::new(Delivery::NoEndpoint, Error::unavailable(reason)));
        };
        let outcome = self.inner.send(call).await;
        match &outcome {
            // it had less time than usual, so it says nothing
            Err(failure) if failure.error.code == Code::Timeout && !full_time => admitted.release(),
            Err(failure) => {
                admitted.record(failure.is_outage(full_time), None);
            }
            Ok(_) => {
                admitted.record(false, None);
            }
        }
        outcome
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use prometheus::IntCounter;

    use super::*;
    use crate::api::rpc::Rpc;
    use crate::client::balance::breaker::BreakerSettings;
    use crate::client::balance::breaker_state::Transitions;
    use crate::client::balance::ejection::EjectionLimit;
    use crate::client::call::testing::{ScriptedEnd, call, failure};
    use crate::config;

    #[tokio::test(start_paused = true)]
    async fn best_effort_calls_that_keep_failing_fail_at_once() {
        let end = ScriptedEnd::new(|_, _| async {
            tokio::time::sleep(Duration::from_millis(400)).await;
            Err(failure(Code::Timeout))
        });
        let ejection = EjectionLimit::unbounded(IntCounter::new("x", "x").unwrap());
        let settings = BreakerSettings::from(&config::Client::default());
        let breakers = Breakers::new(settings, Arc::new(ejection), Transitions::default());
        let layer = BestEffort::new(end.clone(), Arc::new(breakers));
        let send = async |best_effort| {
            let call = call(Rpc::GetFeeds, Duration::from_secs(2));
            layer.send(Call { best_effort, ..call }).await.unwrap_err().error.code
        };
        for _ in 0..5 {
            assert_eq!(send(true).await, Code::Timeout);
        }
        for _ in 0..100 {
            assert_eq!(send(true).await, Code::Unavailable);
        }
        assert_eq!(end.calls(), 5);
        // other calls still wait
        assert_eq!(send(false).await, Code::Timeout);
        tokio::time::advance(Duration::from_millis(1500)).await;
        assert_eq!(send(true).await, Code::Timeout, "the probe");
        assert_eq!(send(true).await, Code::Unavailable);
    }

    #[tokio::test(start_paused = true)]
    async fn a_short_limit_says_nothing_of_the_service() {
        let end = ScriptedEnd::new(|_, _| async { Err(failure(Code::Timeout)) });
        let ejection = EjectionLimit::unbounded(IntCounter::new("x", "x").unwrap());
        let settings = BreakerSettings::from(&config::Client::default());
        let breakers = Breakers::new(settings, Arc::new(ejection), Transitions::default());
        let layer = BestEffort::new(end.clone(), Arc::new(breakers));
        let send = async |shortened| {
            let mut call = Call { best_effort: true, ..call(Rpc::GetFeeds, Duration::from_secs(2)) };
            call.context.shortened = shortened;
            layer.send(call).await.unwrap_err().error.code
        };
        for _ in 0..20 {
            assert_eq!(send(true).await, Code::Timeout, "not a failure");
        }
        while send(false).await == Code::Timeout {}
        tokio::time::advance(Duration::from_millis(1500)).await;
        assert_eq!(send(true).await, Code::Timeout, "the probe");
        assert_eq!(send(false).await, Code::Timeout, "the next one is the probe again");
        assert_eq!(send(false).await, Code::Unavailable, "the short one has not closed the breaker");
    }
}
