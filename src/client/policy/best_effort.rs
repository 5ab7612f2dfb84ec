//! The layer for calls that their caller can do without ([`Call::optional`]): once they keep failing they fail
//! at once, but for one that tries again every few seconds.
//!
//! The breakers of instances leave at least half of them to be called, since a call that may fail is better
//! than one that must. For a call that is only a part of an answer it is the other way round: an answer
//! without that part is better than one that waits for it (fault F45).

use std::sync::Arc;

use crate::api::error::Error;
use crate::client::balance::breaker::Breakers;
use crate::client::balance::guard::Held;
use crate::client::call::{Call, Failure, Outcome, Path, Reach, layer};

/// Spares callers the wait for what they can do without.
#[derive(Clone)]
pub struct Optional<S> {
    inner: S,
    breakers: Arc<Breakers>,
}

impl<S: Path> Optional<S> {
    /// Puts breakers of the whole service before `inner`.
    pub const fn new(inner: S, breakers: Arc<Breakers>) -> Self {
        Self { inner, breakers }
    }

    async fn run(&self, call: Call) -> Outcome {
        if !call.optional {
            return self.inner.send(call).await;
        }
        let rpc = call.rpc;
        let Some(held) = Held::admit(&self.breakers, &call) else {
            let error = Error::unavailable(format!("{} is being spared", rpc.service()));
            return Err(Failure::new(Reach::Nobody, error));
        };
        let outcome = self.inner.send(call).await;
        let failed = outcome.as_ref().is_err_and(|failure| failure.is_outage(held.took()));
        held.record(failed, None);
        outcome
    }
}
layer!(Optional<S>);

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use prometheus::IntCounter;
    use tower::Service as _;

    use super::*;
    use crate::api::error::Code;
    use crate::api::rpc::Rpc;
    use crate::client::balance::breaker::Settings;
    use crate::client::balance::ejection::Ejection;
    use crate::client::call::testing::{End, call, failure};
    use crate::config;

    #[tokio::test(start_paused = true)]
    async fn what_can_be_done_without_fails_at_once_when_it_keeps_failing() {
        let end = End::new(|_, _| async {
            tokio::time::sleep(Duration::from_millis(400)).await;
            Err(failure(Code::Timeout))
        });
        let ejection = Ejection::unbounded(IntCounter::new("x", "x").unwrap());
        let settings = Settings::from(&config::Client::default());
        let breakers = Breakers::new(settings, Arc::new(ejection), Arc::default());
        let mut layer = Optional::new(end.clone(), Arc::new(breakers));
        let mut ask = async |optional| {
            let call = call(Rpc::GetFeeds, Duration::from_secs(2));
            layer.call(Call { optional, ..call }).await.unwrap_err().error.code
        };
        for _ in 0..5 {
            assert_eq!(ask(true).await, Code::Timeout);
        }
        for _ in 0..100 {
            assert_eq!(ask(true).await, Code::Unavailable);
        }
        assert_eq!(end.calls(), 5);
        // who cannot do without still waits
        assert_eq!(ask(false).await, Code::Timeout);
        tokio::time::advance(Duration::from_millis(1500)).await;
        assert_eq!(ask(true).await, Code::Timeout, "one tries again");
        assert_eq!(ask(true).await, Code::Unavailable);
    }
}
