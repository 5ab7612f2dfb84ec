//! The layer that sends each attempt to one instance of the service, chosen by [`Picker`].
//!
//! It reads the latest snapshot of the instances, which [`crate::client::balance::discover`] maintains outside
//! of the request path. If no instance can be called it fails at once. It waits only while the process has just
//! started: for the registry's first list, and for the first connections.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::api::error::Error;
use crate::client::balance::discover::EndpointSet;
use crate::client::balance::endpoint::Endpoint;
use crate::client::balance::pick::{Picker, Suitability};
use crate::client::call::{Call, CallLayer, Delivery, Failure, Outcome};
use crate::client::transport::state::ConnectionState;
use crate::config;

/// How long after its start a client waits for the registry's first list before it reports that there is no
/// instance.
const FIRST_VIEW_WAIT: Duration = Duration::from_secs(1);

/// Sends each attempt to one instance of the service.
pub struct Balancer {
    started: Instant,
    set: EndpointSet,
    picker: Picker,
}

impl Balancer {
    /// Returns the layer over a set of instances.
    #[must_use]
    pub fn new(set: EndpointSet, kind: config::Balancer) -> Self {
        Self { started: Instant::now(), set, picker: kind.into() }
    }

    /// Returns the instance for an attempt, or why there is none, or `None` if one is expected soon.
    fn pick(&self, call: &mut Call) -> Option<Result<Arc<Endpoint>, Failure>> {
        let snapshot = self.set.now();
        let usable = self.picker.pick(call, &snapshot.usable).map(|picked| (picked, snapshot.usable.len()));
        // A snapshot is a little old: an instance that has connected since is in `all`, but not yet in
        // `usable`. Instances that drain are called only if there is no other one, not if all others are full.
        let rest = || -> Vec<_> {
            let rest = snapshot.all.iter().filter(|e| snapshot.usable.is_empty() || e.serves());
            rest.cloned().collect()
        };
        let rest = if usable.is_none() { rest() } else { Vec::new() };
        let picked = usable.or_else(|| Some((self.picker.pick(call, &rest)?, rest.len())));
        let Some(((endpoint, suitability), among)) = picked else {
            let view_expected = !snapshot.known && self.started.elapsed() < FIRST_VIEW_WAIT;
            let full = snapshot.all.iter().any(|endpoint| endpoint.is_full());
            if !full && (snapshot.connecting() || view_expected) {
                return None;
            }
            return Some(Err(no_endpoint(call)));
        };
        if call.best_effort && endpoint.state() == ConnectionState::Unresponsive {
            return Some(Err(no_endpoint(call))); // it is likely to wait in vain
        }
        call.ignore_breaker = false;
        if suitability == Suitability::BreakerOpen {
            if among == 1 && endpoint.breakers.opened_by_consecutive_failures(call.rpc) {
                endpoint.breakers.bring_probe_forward(call.rpc);
                return Some(Err(no_endpoint(call)));
            }
            call.ignore_breaker = true;
        }
        Some(Ok(endpoint.clone()))
    }

    /// Waits while a first connection is being opened or the registry's first list is still expected.
    async fn wait(&self, call: &mut Call) -> Result<Arc<Endpoint>, Failure> {
        loop {
            let mut changes = self.set.changes();
            // after `changes`, so that no change between the pick and the wait is missed
            if let Some(picked) = self.pick(call) {
                return picked;
            }
            let deadline = call.context.deadline;
            let view = (self.started + FIRST_VIEW_WAIT).min(deadline);
            let until = if self.set.now().connecting() { deadline } else { view };
            match tokio::time::timeout_at(until, changes.changed()).await {
                Ok(Err(_)) => return Err(no_endpoint(call)),
                Err(_) if Instant::now() >= deadline => return Err(no_endpoint(call)),
                Ok(Ok(())) | Err(_) => {}
            }
        }
    }
}

impl CallLayer for Balancer {
    async fn send(&self, mut call: Call) -> Outcome {
        let endpoint = match self.pick(&mut call) {
            Some(Ok(endpoint)) => endpoint,
            Some(Err(failure)) => return Err(failure),
            None => self.wait(&mut call).await?,
        };
        call.attempt.set_picked(endpoint.number);
        endpoint.load.note_call(Instant::now());
        endpoint.send(call).await
    }
}

fn no_endpoint(call: &Call) -> Failure {
    let error = Error::unavailable(format!("no instance of {} can be called", call.rpc.service()));
    Failure::new(Delivery::NoEndpoint, error)
}
