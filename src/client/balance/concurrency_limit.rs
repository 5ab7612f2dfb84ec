//! The layer of the in-flight limit of one instance: a call above it does not queue but goes to another
//! instance. It bounds how many calls an instance that hangs can hold.

use std::sync::Arc;

use prometheus::IntCounter;

use crate::api::error::Error;
use crate::client::call::{Call, CallLayer, Delivery, Failure, Outcome};
use crate::limit::Limit;

/// Refuses calls above the limit.
#[derive(Clone)]
pub struct ConcurrencyLimit<S> {
    inner: S,
    in_flight: Arc<Limit>,
    /// `client_limit_refused_total` of the service.
    refused: IntCounter,
}

impl<S: CallLayer> ConcurrencyLimit<S> {
    /// Puts a limit before `inner`.
    pub const fn new(inner: S, in_flight: Arc<Limit>, refused: IntCounter) -> Self {
        Self { inner, in_flight, refused }
    }
}

impl<S: CallLayer> CallLayer for ConcurrencyLimit<S> {
    async fn send(&self, call: Call) -> Outcome {
        let Some(_permit) = self.in_flight.try_acquire(1) else {
            self.refused.inc();
            let error = Error::unavailable(format!("{} is busy", call.rpc.service()));
            return Err(Failure::new(Delivery::NotSent, error));
        };
        self.inner.send(call).await
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::FutureExt as _;

    use super::*;
    use crate::api::rpc::Rpc;
    use crate::client::call::Answer;
    use crate::client::call::testing::{ScriptedEnd, call};

    #[tokio::test(start_paused = true)]
    async fn calls_above_the_limit_are_refused_at_once() {
        let end = ScriptedEnd::new(|_, _| async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            Ok(Answer::default())
        });
        let (in_flight, refused) = (Limit::new(2, None), IntCounter::new("x", "x").unwrap());
        let layer = ConcurrencyLimit::new(end, in_flight.clone(), refused.clone());
        let send = || Box::pin(layer.send(call(Rpc::GetFeeds, Duration::from_secs(1))));
        let mut pending = [send(), send()];
        assert!(pending.iter_mut().all(|call| call.now_or_never().is_none()));
        let failure = send().await.unwrap_err();
        assert_eq!((failure.delivery, refused.get(), in_flight.used()), (Delivery::NotSent, 1, 2));
        // a call that is given up frees its permit
        let [first, second] = pending;
        drop(first);
        assert_eq!(in_flight.used(), 1);
        send().await.unwrap();
        second.await.unwrap();
        assert_eq!(in_flight.used(), 0);
    }
}
