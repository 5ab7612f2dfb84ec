//! The accept loop: takes connections from a listener, each with a slot, and gives them to threads, until the drain
//! begins; then waits for those that are open.

use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream as StdStream};
use std::sync::Arc;
use std::task::{Context, Poll};
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
use super::threads::{PerThread, Placed};
use crate::telemetry::log::LogThrottle;

/// Pause after a failed accept, so that the loop does not spin while file descriptors are used up.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Time between two attempts to close an idle connection while no slot is free.
const SLOT_RETRY: Duration = Duration::from_millis(20);

/// Serves a listener on this thread, see [`serve_on`].
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
    serve_on(listener, protocol, limits, metrics, PerThread::here(service), stop).await;
}

/// Serves a listener until `stop` begins, then drains. Returns when the last connection has ended or the
/// grace period is over, whichever comes first.
///
/// Each of `services` answers the requests of the connections of its thread, one request of the client at the given
/// address at a time. It reports failures as responses.
pub async fn serve_on<S, F, B>(
    listener: Listener,
    protocol: Protocol,
    limits: Limits,
    metrics: &Metrics,
    services: PerThread<S>,
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
    let cut = CancellationToken::new();
    let servers = services.map(|_, service| {
        // tokens of its own: every poll of a connection locks them
        let stop = Stop { begin: stop.begin.child_token(), grace: stop.grace };
        let server = Server::new(protocol, service.clone(), conns.clone(), metrics.clone(), stop);
        OfThread { server: Arc::new(server.with_tls(listener.tls())), cut: cut.child_token() }
    });
    let tasks = TaskTracker::new();
    let _watch = AbortOnDropHandle::new(tokio::spawn(conns.clone().watch()));
    let accept_failures = LogThrottle::default();
    let mut next_id = 0;
    let mut open = |Accepted { stream, peer, of_thread, placed }: Accepted<S>, slot| {
        let OfThread { server, cut } = of_thread;
        next_id += 1;
        let runtime = placed.runtime().clone();
        let connection = async move {
            server.connection(next_id, stream, peer, slot).await;
            drop(placed);
        };
        tasks.spawn_on(cut.run_until_cancelled_owned(connection), &runtime);
    };
    let mut waiting = Vec::new();
    while let Some(accepted) =
        stop.begin.run_until_cancelled(poll_fn(|cx| poll_accept(&listener, &servers, cx))).await
    {
        match accepted {
            Ok(accepted) => match stop.begin.run_until_cancelled(slot(&slots, &conns)).await {
                Some(slot) => open(accepted, slot),
                None => waiting.push(accepted),
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
    waiting.extend(listener.close().into_iter().filter_map(|accepted| adopt(accepted, &servers)));
    for accepted in waiting {
        if let Ok(slot) = slots.clone().try_acquire_owned() {
            open(accepted, slot);
        }
    }
    tasks.close();
    if tokio::time::timeout(stop.grace, tasks.wait()).await.is_err() {
        tracing::warn!(connections = tasks.len(), "grace period is over, cutting connections");
        cut.cancel();
    }
}

/// What the connections of one thread have.
struct OfThread<S> {
    server: Arc<Server<S>>,
    /// Cancelled when the grace period is over.
    cut: CancellationToken,
}

impl<S> Clone for OfThread<S> {
    fn clone(&self) -> Self {
        Self { server: self.server.clone(), cut: self.cut.clone() }
    }
}

/// A connection that a thread is to serve.
struct Accepted<S> {
    stream: TcpStream,
    peer: SocketAddr,
    of_thread: OfThread<S>,
    placed: Placed,
}

/// Polls for the next connection, and gives it to a thread.
fn poll_accept<S>(
    listener: &Listener,
    servers: &PerThread<OfThread<S>>,
    cx: &mut Context<'_>,
) -> Poll<io::Result<Accepted<S>>> {
    let accepted = servers.poll_place(|| listener.poll_accept(cx));
    accepted.map_ok(|((stream, peer), placed, of_thread)| Accepted {
        stream,
        peer,
        of_thread: of_thread.clone(),
        placed,
    })
}

/// Gives a connection to a thread that the kernel had accepted already.
fn adopt<S>(
    (stream, peer): (StdStream, SocketAddr),
    servers: &PerThread<OfThread<S>>,
) -> Option<Accepted<S>> {
    match servers.poll_place(|| Poll::Ready(TcpStream::from_std(stream))) {
        Poll::Ready(Ok((stream, placed, of_thread))) => {
            Some(Accepted { stream, peer, of_thread: of_thread.clone(), placed })
        }
        Poll::Ready(Err(_)) | Poll::Pending => None,
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
