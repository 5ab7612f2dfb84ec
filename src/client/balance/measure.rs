//! The layer that measures the attempts at one instance, for its load and for
//! `grpc_client_attempt_duration_seconds`.

use std::sync::Arc;

use tokio::time::Instant;

use crate::api::error::Code;
use crate::api::rpc::Rpc;
use crate::client::balance::load::{Load, OwnCall};
use crate::client::call::{Call, CallLayer, Delivery, Outcome};
use crate::telemetry::metrics::RpcDurations;

/// Measures attempts, including those that are given up.
#[derive(Clone)]
pub struct Measure<S> {
    inner: S,
    load: Arc<Load>,
    durations: Arc<RpcDurations>,
}

impl<S: CallLayer> Measure<S> {
    /// Measures `inner`.
    pub const fn new(inner: S, load: Arc<Load>, durations: Arc<RpcDurations>) -> Self {
        Self { inner, load, durations }
    }
}

impl<S: CallLayer> CallLayer for Measure<S> {
    async fn send(&self, call: Call) -> Outcome {
        let mut attempt = MeasuredAttempt {
            load: &self.load,
            _in_flight: self.load.begin_call(),
            durations: &self.durations,
            rpc: call.rpc,
            begun: Instant::now(),
            deadline: call.context.deadline,
            full_time: call.has_full_time(),
            ended: false,
        };
        let outcome = self.inner.send(call).await;
        attempt.ended = true;
        let took = attempt.begun.elapsed();
        let (code, failed) = match &outcome {
            Ok(_) => (tonic::Code::Ok, false),
            Err(failure) if failure.delivery == Delivery::NotSent => return outcome, // not an attempt
            Err(failure) => {
                let sheds = failure.pushback.is_some() || failure.delivery == Delivery::Unprocessed;
                (failure.error.code.grpc(), sheds || failure.is_instance_fault(attempt.full_time))
            }
        };
        if !failed && code == Code::Timeout.grpc() {
            self.load.observe_at_least(attempt.rpc, took); // its time was up, there was no answer
        } else {
            self.load.observe(attempt.rpc, took, failed);
        }
        self.durations.observe(attempt.rpc, code, took);
        outcome
    }
}

/// An attempt under way. If it is dropped before it ended, it was given up.
struct MeasuredAttempt<'a> {
    load: &'a Load,
    _in_flight: OwnCall<'a>,
    durations: &'a RpcDurations,
    rpc: Rpc,
    begun: Instant,
    deadline: Instant,
    /// True if it had the time that calls have by default.
    full_time: bool,
    ended: bool,
}

impl Drop for MeasuredAttempt<'_> {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        let (now, rpc) = (Instant::now(), self.rpc);
        let took = now.saturating_duration_since(self.begun);
        let expired = now >= self.deadline;
        if expired && self.full_time {
            self.load.observe(rpc, took, true);
        } else {
            self.load.observe_at_least(rpc, took);
        }
        let code = if expired { tonic::Code::DeadlineExceeded } else { tonic::Code::Cancelled };
        self.durations.observe(rpc, code, took);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::client::call::Answer;
    use crate::client::call::testing::{ScriptedEnd, call, failure};
    use crate::client::metrics::Metrics;
    use crate::config;
    use crate::limit::Limit;

    const MS: Duration = Duration::from_millis(1);
    const RPC: Rpc = Rpc::GetFeeds;

    /// A layer over an end that answers after this time, and what it measured.
    fn measure(answer: Result<(), Code>, time: Duration) -> (Measure<ScriptedEnd>, Arc<Load>) {
        let end = ScriptedEnd::new(move |_, _| async move {
            tokio::time::sleep(time).await;
            answer.map(|()| Answer::default()).map_err(failure)
        });
        let load = Arc::new(Load::new(&config::Client::default(), Limit::new(100, None)));
        let metrics = Metrics::register(&prometheus::Registry::new()).unwrap().service("feed");
        (Measure::new(end, load.clone(), metrics.endpoint.attempts), load)
    }

    /// Makes a call that is given up at its deadline if it has not ended by then.
    async fn limited(layer: &Measure<ScriptedEnd>, limit: Duration, shortened: bool) {
        let mut call = call(RPC, limit);
        call.context.shortened = shortened;
        let _ = tokio::time::timeout_at(call.context.deadline, layer.send(call)).await;
    }

    fn seen(load: &Load) -> (u128, bool) {
        (load.latency(RPC).map_or(0, |latency| latency.as_millis()), load.failures(RPC) > 0.0)
    }

    /// A short limit is no answer: neither a failure nor a quick one. It tells that the answer takes at least so long.
    #[tokio::test(start_paused = true)]
    async fn a_short_limit_does_not_move_the_load_of_an_instance() {
        for answer in [Ok(()), Err(Code::Timeout)] {
            // the server sees the limit, too, and may answer first that it has passed
            let time = if answer.is_ok() { 160 * MS } else { 19 * MS };
            let (layer, load) = measure(answer, time);
            load.observe(RPC, 160 * MS, false);
            for _ in 0..50 {
                limited(&layer, 20 * MS, true).await;
                load.observe(RPC, 160 * MS, false); // another caller
            }
            assert_eq!(seen(&load), (160, false), "{answer:?}");
            let (layer, load) = measure(answer, time);
            tokio::time::advance(MS).await;
            limited(&layer, 20 * MS, true).await;
            let (latency, failed) = seen(&load);
            assert!((18..=20).contains(&latency) && !failed, "{answer:?}: at least {latency} ms");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_with_the_usual_time_that_expires_is_a_failure() {
        let (layer, load) = measure(Ok(()), 9000 * MS);
        tokio::time::advance(MS).await;
        limited(&layer, 2000 * MS, false).await;
        assert_eq!(seen(&load), (2000, true));
    }

    #[tokio::test(start_paused = true)]
    async fn an_attempt_that_lost_is_no_failure_and_not_quick_either() {
        let (layer, load) = measure(Ok(()), 9000 * MS);
        tokio::time::advance(MS).await;
        let call = call(RPC, 2000 * MS);
        let attempt = call.attempt.clone();
        tokio::time::timeout(300 * MS, async {
            let lose = async {
                tokio::time::sleep(299 * MS).await;
                attempt.set_lost();
                std::future::pending::<()>().await;
            };
            tokio::join!(layer.send(call), lose)
        })
        .await
        .unwrap_err();
        assert_eq!(seen(&load), (300, false));
    }
}
