//! One connection: serves HTTP/1 or HTTP/2 on it, and decides when it ends.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::Service;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use super::conn::{Conn, Peer};
use super::conns::{ActiveRequest, Conns, TrackedBody};
use super::flood;
use super::half_close::{End, RequestBody};
use super::metrics::{Cut, Metrics};
use super::output::{Received, Stream};
use super::protocol::{Protocol, bound_fields, http1_builder, http2_builder};
use crate::api::error::chain;
use crate::coalesce::Coalesced;
use crate::telemetry::log::LogThrottle;
use crate::tls::accept::{Accepted, Authenticated};
use crate::tls::{Acceptor, Validity};

/// Time that an idle kept-alive connection stays open once the drain has begun: a request may be on its way.
const IDLE_LINGER: Duration = Duration::from_millis(50);
/// Time that an idle connection may take to end once it was told that the server drains. It bounds the wait for
/// peers that are frozen, for streams that are open, and for heads that are not complete.
const IDLE_DRAIN: Duration = Duration::from_millis(250);
/// Time that an idle HTTP/2 connection may take to end after it was asked to make room; then it is cut.
const EVICTION: Duration = Duration::from_secs(1);
/// The same on HTTP/1, where there is nothing to finish: what has arrived is read before, and a part of a head is not waited
/// for.
const EVICTION_HTTP1: Duration = Duration::from_millis(1);
/// Time in which a connection ends whose peer is trusted no more, whatever is still called on it.
const OUTLIVED: Duration = Duration::from_secs(30);
/// Time from the opening of an HTTP/2 connection to its first frame. After that it may be idle for as long as its
/// peer answers pings: clients connect ahead.
const HELLO: Duration = Duration::from_secs(10);
/// When a server stops, and how long its drain may take.
#[derive(Clone, Debug)]
pub struct Stop {
    /// Cancelled when the drain begins.
    pub begin: CancellationToken,
    /// Time for requests in flight from then on.
    pub grace: Duration,
}

/// What the connections of a listener share.
pub struct Server<S> {
    protocol: Protocol,
    service: S,
    conns: Arc<Conns>,
    metrics: Metrics,
    floods: LogThrottle,
    outlived: LogThrottle,
    stop: Stop,
    tls: Option<Acceptor>,
}

impl<S, F, B> Server<S>
where
    S: Fn(Request<RequestBody>, IpAddr) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    /// Returns a server of `protocol` that answers with `service`.
    pub fn new(protocol: Protocol, service: S, conns: Arc<Conns>, metrics: Metrics, stop: Stop) -> Self {
        let (floods, outlived) = (LogThrottle::default(), LogThrottle::default());
        Self { protocol, service, conns, metrics, floods, outlived, stop, tls: None }
    }

    /// Returns the same for a listener whose connections have TLS.
    pub fn with_tls(self, tls: Option<Acceptor>) -> Self {
        Self { tls, ..self }
    }

    /// Serves one connection to its end, and then gives its slot back.
    pub async fn connection(
        self: Arc<Self>,
        id: u64,
        stream: TcpStream,
        peer: SocketAddr,
        slot: OwnedSemaphorePermit,
    ) {
        let (conn, _listed) = self.conns.add(id);
        let Some(Accepted { stream, caller, open: _open }) = self.begin_tls(stream, peer, &conn).await else {
            return;
        };
        let validity = caller.map(|Authenticated { identity, validity }| {
            if let Some(identity) = identity {
                let _ = conn.caller.set(identity); // it is the first one
            }
            validity
        });
        let protocol = self.protocol.agreed(stream.alpn());
        let service = self.answers(&conn, protocol, peer.ip().to_canonical());
        let validity = validity.as_ref();
        match protocol {
            Protocol::Http1 { header_timeout } => {
                let received = Received::Http1(End::new(conn.input.clone()));
                let io = TokioIo::new(Stream::new(stream, conn.output.clone(), received));
                let connection = http1_builder(header_timeout).serve_connection(io, service);
                self.drive(connection, &conn, protocol, validity, http1::Connection::graceful_shutdown).await;
            }
            Protocol::Http2 { max_concurrent_streams } => {
                // the parts of the system speak HTTP/2 with prior knowledge
                let edge = self.protocol.is_http1();
                let received = Received::Http2(flood::Meter::new(edge), conn.drained.clone());
                let stream = Stream::new(stream, conn.output.clone(), received);
                let io = TokioIo::new(Coalesced::new(stream));
                let connection = http2_builder(max_concurrent_streams, edge).serve_connection(io, service);
                self.drive(connection, &conn, protocol, validity, http2::Connection::graceful_shutdown).await;
            }
        }
        drop(slot);
    }

    /// Returns what answers the requests of one connection.
    fn answers(
        self: &Arc<Self>,
        conn: &Arc<Conn>,
        protocol: Protocol,
        client: IpAddr,
    ) -> impl Service<
        Request<Incoming>,
        Response = Response<TrackedBody<B>>,
        Error = Infallible,
        Future = impl Future<Output = Result<Response<TrackedBody<B>>, Infallible>> + Send + 'static,
    > {
        let (server, conn, http1) = (self.clone(), conn.clone(), protocol.is_http1());
        let edge = self.protocol.is_http1();
        hyper::service::service_fn(move |request: Request<Incoming>| {
            let active = ActiveRequest::new(&conn, &server.conns, !request.method().is_safe());
            let mut request = request.map(|body| RequestBody::new(body, conn.input.clone()));
            if !http1 {
                if edge {
                    // not in its task, which runs once all requests that have arrived were read
                    bound_fields(&mut request);
                }
                request.extensions_mut().insert(Peer::new(conn.clone()));
            }
            let draining = server.stop.begin.is_cancelled();
            // hyper moves it a few times, on HTTP/2 ten times: it is large
            let answer = Box::pin((server.service)(request, client));
            async move {
                let mut response = answer.await;
                if draining && http1 {
                    response
                        .headers_mut()
                        .insert(http::header::CONNECTION, HeaderValue::from_static("close"));
                }
                Ok::<_, Infallible>(response.map(|body| active.track(body, http1)))
            }
        })
    }

    /// Begins TLS if the listener has it; `None` if the connection ends before that.
    async fn begin_tls(&self, stream: TcpStream, peer: SocketAddr, conn: &Conn) -> Option<Accepted> {
        let Some(acceptor) = &self.tls else {
            return Some(Accepted::plain(stream));
        };
        let drained = async {
            self.stop.begin.cancelled().await;
            tokio::time::sleep(IDLE_DRAIN).await;
        };
        tokio::select! {
            accepted = Box::pin(acceptor.accept(stream, peer)) => accepted,
            () = conn.close.notified() => None,
            () = drained => None,
        }
    }

    /// Waits until a caller of the gateway has not used its HTTP/2 connection for as long as one on HTTP/1 may be idle.
    /// Connections between the parts may be idle: they are opened ahead.
    async fn unused(&self, conn: &Conn, protocol: Protocol) {
        match (self.protocol, protocol) {
            (Protocol::Http1 { header_timeout }, Protocol::Http2 { .. }) => {
                self.conns.idle(conn, header_timeout).await;
            }
            _ => std::future::pending().await,
        }
    }

    /// Waits until the certificate of the peer counts no more.
    async fn outlived(&self, validity: Option<&Validity>) {
        let Some(validity) = validity else {
            return std::future::pending().await;
        };
        let reason = validity.ended().await;
        if let Some(times) = self.outlived.note() {
            tracing::info!(reason, times, "a connection has outlived the certificate of its peer, ending it");
        }
    }

    /// Polls a connection to its end. Calls `finish` on it when the drain begins, its slot is wanted, or the certificate of
    /// its peer counts no more.
    async fn drive<C>(
        &self,
        connection: C,
        conn: &Conn,
        protocol: Protocol,
        validity: Option<&Validity>,
        finish: impl Fn(Pin<&mut C>),
    ) where
        C: Future<Output = hyper::Result<()>>,
    {
        let http1 = protocol.is_http1();
        let greeted = || http1 || conn.output.is_greeted();
        let mut connection = std::pin::pin!(connection);
        let mut cut = std::pin::pin!(conn.cut.notified());
        // hyper limits the time to the first request on HTTP/1, and nothing on HTTP/2
        let no_hello = async {
            tokio::time::sleep(HELLO).await;
            if greeted() {
                std::future::pending::<()>().await;
            }
        };
        // a peer that is trusted no more would keep the connection from being idle by calling on
        let (evicted, outlived) = tokio::select! {
            biased; // requests that have arrived are read before the order to stop is followed
            result = &mut connection => return self.log_end(result, conn),
            () = &mut cut => return,
            () = no_hello => return,
            () = conn.close.notified() => (true, false),
            () = self.outlived(validity) => (true, true),
            () = self.unused(conn, protocol) => (true, false),
            () = self.stop.begin.cancelled() => (false, false),
        };
        if !evicted && !conn.is_busy() && (http1 || !greeted()) {
            tokio::select! {
                result = &mut connection => return self.log_end(result, conn),
                () = &mut cut => return,
                () = tokio::time::sleep(IDLE_LINGER) => {}
            }
        }
        if !greeted() {
            return; // hyper would wait for a preface that may never come
        }
        finish(connection.as_mut());
        // a peer need not follow the order to finish: its certificate counts until the end
        let distrusted = async {
            if !outlived {
                self.outlived(validity).await;
            }
            tokio::time::sleep(OUTLIVED).await;
        };
        let linger = match (evicted, http1) {
            (false, _) => IDLE_DRAIN,
            (true, true) => EVICTION_HTTP1,
            (true, false) => EVICTION,
        };
        tokio::select! {
            biased;
            result = connection => self.log_end(result, conn),
            () = cut => {}
            () = self.conns.idle(conn, linger) => {}
            () = distrusted => {}
        }
    }

    /// Logs why a connection failed, if it did, and counts it if its peer is the cause.
    fn log_end(&self, result: hyper::Result<()>, conn: &Conn) {
        let Err(error) = result else { return };
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
        while let Some(error) = cause {
            let h2 = error.downcast_ref::<h2::Error>();
            let io = error.downcast_ref::<std::io::Error>().or_else(|| h2?.get_io());
            // the kernel reports unacknowledged data so (TCP_USER_TIMEOUT)
            if io.is_some_and(|io| io.kind() == std::io::ErrorKind::TimedOut) {
                self.metrics.cut(Cut::WriteTimeout);
            }
            // of an error that the socket has returned h2 keeps the text only
            if conn.output.is_flooded() || h2.is_some_and(is_calmed) {
                self.metrics.cut(Cut::Flood);
                if let Some(times) = self.floods.note() {
                    tracing::warn!(error = chain(error), times, "connection ended: its peer floods it");
                }
                return;
            }
            cause = error.source();
        }
        tracing::debug!(error = chain(&error), "connection ended");
    }
}

/// Returns true if h2 itself has detected a flood.
fn is_calmed(error: &h2::Error) -> bool {
    error.is_library() && error.reason() == Some(h2::Reason::ENHANCE_YOUR_CALM)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use tokio::time::Instant;
    use tokio_rustls::rustls::Error;

    use super::super::conns::Limits;
    use super::super::unsent::UnsentLimit;
    use super::*;

    type NoService = fn(Request<RequestBody>, IpAddr) -> std::future::Pending<Response<NoBody>>;
    type NoBody = http_body_util::Empty<Bytes>;

    const SECOND: Duration = Duration::from_secs(1);

    fn server() -> Server<NoService> {
        let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
        let limits = Limits {
            max_connections: 1,
            write_timeout: Duration::from_mins(1),
            unsent: UnsentLimit::new(1000),
        };
        let (protocol, conns) =
            (Protocol::Http2 { max_concurrent_streams: 1 }, Conns::new(false, limits, &metrics));
        let stop = Stop { begin: CancellationToken::new(), grace: Duration::ZERO };
        Server::new(protocol, |_, _| std::future::pending(), conns, metrics, stop)
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_whose_peer_is_trusted_no_more_ends_whatever_is_called_on_it() {
        let (told, ended) = outlive(false).await;
        assert!(told >= Duration::from_hours(1), "not before: {told:?}");
        assert!((OUTLIVED..OUTLIVED + SECOND).contains(&ended.saturating_sub(told)), "{ended:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_does_not_make_room_ends_once_its_peer_is_trusted_no_more() {
        let (told, ended) = outlive(true).await;
        assert!(told < SECOND, "it is asked to make room at once: {told:?}");
        let late = ended.saturating_sub(Duration::from_hours(1));
        // whether a certificate counts is asked now and then
        assert!((OUTLIVED..=2 * OUTLIVED).contains(&late), "{ended:?}");
    }

    /// Drives a connection whose peer has a call that goes on, and whose certificate counts for an hour. With `room` it
    /// is first asked to make room. Returns when it was told to finish, and when it ended.
    async fn outlive(room: bool) -> (Duration, Duration) {
        let server = server();
        let (conn, _listed) = server.conns.add(1);
        conn.output.greet();
        let _call = ActiveRequest::new(&conn, &server.conns, false);
        if room {
            conn.close.notify_one();
        }
        let (trusted, told) = (Arc::new(std::sync::atomic::AtomicBool::new(true)), Cell::new(None));
        let still = trusted.clone();
        let validity = Validity::new(&[], tokio::sync::watch::channel(()).1, move |_, _| {
            let trusted = still.load(std::sync::atomic::Ordering::Relaxed);
            if trusted { Ok(()) } else { Err(Error::NoCertificatesPresented) }
        });
        let begun = Instant::now();
        let driven = server.drive(
            std::future::pending::<hyper::Result<()>>(),
            &conn,
            server.protocol,
            Some(&validity),
            |_| told.set(Some(begun.elapsed())),
        );
        let ends = async {
            tokio::time::sleep(Duration::from_hours(1)).await;
            trusted.store(false, std::sync::atomic::Ordering::Relaxed);
        };
        let both = async { tokio::join!(driven, ends) };
        tokio::time::timeout(Duration::from_hours(2), both).await.expect("it ends");
        (told.get().expect("the peer is told"), begun.elapsed())
    }
}
