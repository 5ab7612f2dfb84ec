//! The in-flight limit of one instance: above it a call does not queue but goes elsewhere. It bounds what a
//! frozen instance can hold.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use prometheus::IntCounter;

use crate::api::error::Error;
use crate::client::call::{Call, Failure, Outcome, Path, Reach, layer};

/// The calls in flight at one instance.
#[derive(Debug, Default)]
pub struct InFlight(AtomicUsize);

impl InFlight {
    /// Returns how many there are.
    #[must_use]
    pub fn now(&self) -> usize {
        self.0.load(Relaxed)
    }

    /// Counts one more until the guard is dropped.
    #[must_use]
    pub fn begin(self: Arc<Self>) -> Guard {
        self.0.fetch_add(1, Relaxed);
        Guard(self)
    }

    /// Counts one more unless there are `limit` already.
    fn try_begin(self: Arc<Self>, limit: usize) -> Option<Guard> {
        let below = |now: usize| (now < limit).then_some(now + 1);
        self.0.fetch_update(Relaxed, Relaxed, below).ok()?;
        Some(Guard(self))
    }
}

/// A call in flight.
#[derive(Debug)]
pub struct Guard(Arc<InFlight>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Relaxed);
    }
}

/// Refuses calls above the limit.
#[derive(Clone)]
pub struct Limit<S> {
    inner: S,
    in_flight: Arc<InFlight>,
    most: usize,
    /// `client_limit_refused_total` of the service.
    refused: IntCounter,
}

impl<S: Path> Limit<S> {
    /// Puts a limit before `inner`.
    pub const fn new(inner: S, in_flight: Arc<InFlight>, most: usize, refused: IntCounter) -> Self {
        Self { inner, in_flight, most, refused }
    }

    async fn run(&self, call: Call) -> Outcome {
        let Some(_held) = self.in_flight.clone().try_begin(self.most) else {
            self.refused.inc();
            let error = Error::unavailable(format!("{} is busy", call.rpc.service()));
            return Err(Failure::new(Reach::Kept, error));
        };
        self.inner.send(call).await
    }
}
layer!(Limit<S>);

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::FutureExt as _;
    use tower::Service as _;

    use super::*;
    use crate::api::rpc::Rpc;
    use crate::client::call::Answer;
    use crate::client::call::testing::{End, call};

    #[tokio::test(start_paused = true)]
    async fn calls_above_the_limit_are_refused_at_once() {
        let end = End::new(|_, _| async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            Ok(Answer::default())
        });
        let (in_flight, refused) = (Arc::<InFlight>::default(), IntCounter::new("x", "x").unwrap());
        let mut layer = Limit::new(end, in_flight.clone(), 2, refused.clone());
        let mut ask = || layer.call(call(Rpc::GetFeeds, Duration::from_secs(1)));
        let mut held = [ask(), ask()];
        assert!(held.iter_mut().all(|pending| pending.now_or_never().is_none()));
        let failure = ask().await.unwrap_err();
        assert_eq!((failure.reach, refused.get(), in_flight.now()), (Reach::Kept, 1, 2));
        // one that is given up makes room
        let [first, second] = held;
        drop(first);
        assert_eq!(in_flight.now(), 1);
        ask().await.unwrap();
        second.await.unwrap();
        assert_eq!(in_flight.now(), 0);
    }
}
