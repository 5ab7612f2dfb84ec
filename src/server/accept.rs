//! The accept loop: takes connections from a listener, each with a slot, until the drain begins; then waits
//! for those that are open.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use super::connection::{Server, Stop};
use super::conns::{Conns, Limits};
use super::half_close::RequestBody;
use super::listener::Listener;
use super::metrics::Metrics;
use super::protocol::Protocol;
use crate::telemetry::log::LogThrottle;

/// Pause after a failed accept, so that the loop does not spin while file descriptors are used up.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Time between two attempts to close an idle connection while no slot is free.
const SLOT_RETRY: Duration = Duration::from_millis(20);

/// Serves a listener until `stop` begins, then drains. Returns when the last connection has ended or the
/// grace period is over, whichever comes first.
///
/// `service` answers one request of the client at the given address. It reports failures as responses.
pub async fn serve<S, F, B>(
    listener: Listener,
    protocol: Protocol,
    limits: Limits,
    metrics: &Metrics,
    service: S,
    stop: Stop,
) where
    S: Fn(Request<RequestBody>, IpAddr) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    if let Err(error) = listener.bound_output(limits.write_timeout) {
        tracing::warn!(%error, addr = %listener.addr(), "cannot bound the kernel's send buffers");
    }
    let slots = Arc::new(Semaphore::new(limits.max_connections));
    let conns = Conns::new(protocol.is_http1() && listener.tls().is_none(), limits, metrics);
    let server = Server::new(protocol, service, conns.clone(), metrics.clone(), stop.clone());
    let server = Arc::new(server.with_tls(listener.tls()));
    let tasks = TaskTracker::new();
    let cut = CancellationToken::new();
    let _watch = AbortOnDropHandle::new(tokio::spawn(conns.clone().watch()));
    let accept_failures = LogThrottle::default();
    let mut next_id = 0;
    let mut open = |(stream, peer): (TcpStream, SocketAddr), slot| {
        next_id += 1;
        let connection = server.clone().connection(next_id, stream, peer, slot);
        tasks.spawn(cut.clone().run_until_cancelled_owned(connection));
    };
    let mut waiting = Vec::new();
    while let Some(accepted) = stop.begin.run_until_cancelled(listener.accept()).await {
        match accepted {
            Ok(stream) => match stop.begin.run_until_cancelled(slot(&slots, &conns)).await {
                Some(slot) => open(stream, slot),
                None => waiting.push(stream),
            },
            Err(error) => {
                if let Some(times) = accept_failures.note() {
                    tracing::warn!(%error, times, addr = %listener.addr(), "accept failed");
                }
                // most likely file descriptors are used up: closing an idle connection frees one
                conns.close_longest_idle();
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    // connections that the kernel has already accepted would be reset if they were dropped
    waiting.extend(listener.close());
    for stream in waiting {
        if let Ok(slot) = slots.clone().try_acquire_owned() {
            open(stream, slot);
        }
    }
    tasks.close();
    if tokio::time::timeout(stop.grace, tasks.wait()).await.is_err() {
        tracing::warn!(connections = tasks.len(), "grace period is over, cutting connections");
        cut.cancel();
    }
}

/// Returns a slot for one more connection. While none is free, asks the longest idle connection to close,
/// again and again.
async fn slot(slots: &Arc<Semaphore>, conns: &Conns) -> OwnedSemaphorePermit {
    loop {
        if let Ok(slot) = slots.clone().try_acquire_owned() {
            return slot;
        }
        conns.close_longest_idle();
        let freed = slots.clone().acquire_owned();
        if let Ok(Ok(slot)) = tokio::time::timeout(SLOT_RETRY, freed).await {
            return slot;
        }
    }
}
