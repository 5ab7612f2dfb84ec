//! Decides whether a request is accepted: the rate of its client, the requests in progress, and the memory that
//! unsent answers and unfinished bodies hold. HTTP and gRPC use the same limits and the same typed refusal,
//! which each of them turns into its own answer.
//!
//! A request gets its permit once its body is complete: slow uploads must not take the permits of others.
//! Nothing waits for a permit; a refusal costs a head and a short answer.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use http::{HeaderMap, Uri};

use super::conn::Peer;
use super::metrics::{Metrics, Refusals, Refused};
use super::rate::RateLimit;
use super::unsent::UnsentLimit;
use crate::config;
use crate::limit::{Limit, Permit};
use crate::telemetry::log::LogThrottle;

/// Largest body of a request, bytes: a content of 32 KiB and its keys, several times over.
pub const MAX_BODY: usize = 256 * 1024;
/// Most bytes that the bodies being received hold together: 256 of the largest.
const MAX_BODIES: usize = 64 * 1024 * 1024;
/// Bytes that the bodies of one connection may hold before they count: a usual one never meets [`MAX_BODIES`],
/// whatever the large ones do. The number of connections bounds these bytes.
const FREE_BODIES: usize = 8 * 1024;
/// Most bytes that the bodies of one connection hold: an eighth of all.
const MAX_BODIES_OF_ONE: usize = MAX_BODIES / 8;
/// Memory of a header field beside its texts, bytes: its entry in the map of headers and in the index of that.
const FIELD: usize = 100;
/// Most streams at the same time (health watches, reflection): two for each of the default number of
/// connections, some 2 KB each.
const MAX_STREAMS: usize = 20_000;

/// Returns the memory that the head of a request takes, bytes. On HTTP/2 fields with the same value may share it, and are
/// counted each.
#[must_use]
pub fn head_bytes(uri: &Uri, headers: &HeaderMap) -> usize {
    let target = uri.path_and_query().map_or(0, |target| target.as_str().len());
    let fields = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + FIELD);
    target + fields.sum::<usize>()
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The server has too much to do. The same request may be accepted later, or by another instance.
    Overloaded(Overload),
    /// The client sends too many requests.
    RateLimited {
        /// Time after which the client may send the next one.
        retry_after: Duration,
    },
    /// The request's deadline passed before any work.
    DeadlinePassed,
}

/// What a server has too much of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overload {
    /// Requests in progress.
    InFlight,
    /// Bytes of unsent answers or unfinished bodies.
    Memory,
}

impl Refusal {
    /// Returns true for overload.
    #[must_use]
    pub const fn is_overload(self) -> bool {
        matches!(self, Self::Overloaded(_))
    }

    const fn label(self) -> Refused {
        match self {
            Self::Overloaded(Overload::InFlight) => Refused::InFlight,
            Self::Overloaded(Overload::Memory) => Refused::Memory,
            Self::RateLimited { .. } => Refused::Rate,
            Self::DeadlinePassed => Refused::Deadline,
        }
    }
}

/// The limits of a gateway, on all its listeners together, or of a service instance.
pub struct Admission {
    service: &'static str,
    in_flight: Arc<Limit>,
    unsent: Arc<UnsentLimit>,
    bodies: Arc<Limit>,
    streams: Arc<Limit>,
    rate: Option<RateLimit>,
    refused: Refusals,
    overloads: LogThrottle,
}

impl Admission {
    /// Returns the limits of a gateway; `unsent` is that of its listeners.
    #[must_use]
    pub fn http(
        service: &'static str,
        settings: &config::Http,
        unsent: Arc<UnsentLimit>,
        metrics: &Metrics,
    ) -> Arc<Self> {
        let in_flight = Limit::new(settings.max_in_flight, Some(metrics.http_in_flight()));
        let rate = RateLimit::new(settings);
        Arc::new(Self::new(service, in_flight, unsent, rate, metrics.http_refused()))
    }

    /// Returns the limits of a service, by its gRPC name; `unsent` is that of its listener.
    #[must_use]
    pub fn grpc(
        service: &'static str,
        settings: &config::Grpc,
        unsent: Arc<UnsentLimit>,
        metrics: &Metrics,
    ) -> Arc<Self> {
        let in_flight = Limit::new(settings.max_in_flight, Some(metrics.grpc_in_flight(service)));
        Arc::new(Self::new(service, in_flight, unsent, None, metrics.grpc_refused(service)))
    }

    fn new(
        service: &'static str,
        in_flight: Arc<Limit>,
        unsent: Arc<UnsentLimit>,
        rate: Option<RateLimit>,
        refused: Refusals,
    ) -> Self {
        let (bodies, streams) = (Limit::new(MAX_BODIES, None), Limit::new(MAX_STREAMS, None));
        Self { service, in_flight, unsent, bodies, streams, rate, refused, overloads: LogThrottle::default() }
    }

    /// Counts a request against the rate limit of its client.
    ///
    /// # Errors
    /// [`Refusal::RateLimited`].
    pub fn check_rate(&self, peer: IpAddr, headers: &HeaderMap) -> Result<(), Refusal> {
        match self.rate.as_ref().map(|rate| rate.check(peer, headers)) {
            Some(Err(retry_after)) => Err(self.refuse(Refusal::RateLimited { retry_after })),
            Some(Ok(())) | None => Ok(()),
        }
    }

    /// Checks that unsent answers leave memory for one more, and on HTTP/2 that those of its connection do.
    ///
    /// # Errors
    /// [`Refusal::Overloaded`].
    pub fn check_memory(&self, peer: Option<&Peer>) -> Result<(), Refusal> {
        let full = self.unsent.is_full() || peer.is_some_and(Peer::has_share_of_unsent);
        if full { Err(self.overloaded(Overload::Memory)) } else { Ok(()) }
    }

    /// Checks that a permit is left, without taking it: for a request whose body has yet to arrive.
    ///
    /// # Errors
    /// [`Refusal::Overloaded`].
    pub fn check_in_flight(&self) -> Result<(), Refusal> {
        if self.in_flight.is_full() { Err(self.overloaded(Overload::InFlight)) } else { Ok(()) }
    }

    /// Takes a permit for one request in progress.
    ///
    /// # Errors
    /// [`Refusal::Overloaded`].
    pub fn acquire(&self) -> Result<Permit, Refusal> {
        self.in_flight.try_acquire(1).ok_or_else(|| self.overloaded(Overload::InFlight))
    }

    /// Takes a permit for one stream. Streams are not requests in progress: a service that refuses requests for
    /// overload still tells its health.
    ///
    /// # Errors
    /// [`Refusal::Overloaded`].
    pub fn acquire_stream(&self) -> Result<Permit, Refusal> {
        self.streams.try_acquire(1).ok_or_else(|| self.overloaded(Overload::InFlight))
    }

    /// Returns the account of a body that is being received; `peer` is the connection on HTTP/2, where it may
    /// carry many at the same time.
    pub fn body<'a>(&'a self, peer: Option<&'a Peer>) -> BodyBytes<'a> {
        BodyBytes { admission: self, counted: self.bodies.acquire(0), peer, bytes: 0 }
    }

    /// Counts a refusal for a deadline that passed before any work.
    pub fn deadline_passed(&self) -> Refusal {
        self.refuse(Refusal::DeadlinePassed)
    }

    fn overloaded(&self, reason: Overload) -> Refusal {
        if let Some(times) = self.overloads.note() {
            tracing::warn!(service = self.service, times, ?reason, "refusing requests: overloaded");
        }
        self.refuse(Refusal::Overloaded(reason))
    }

    fn refuse(&self, refusal: Refusal) -> Refusal {
        self.refused.note(refusal.label());
        refusal
    }
}

/// The bytes that a body holds while it is being received; given back when this is dropped.
pub struct BodyBytes<'a> {
    admission: &'a Admission,
    counted: Permit,
    peer: Option<&'a Peer>,
    bytes: usize,
}

impl BodyBytes<'_> {
    /// Counts more bytes.
    ///
    /// # Errors
    /// When all bodies together hold too much, or those of one connection.
    pub fn grow(&mut self, bytes: usize) -> Result<(), Refusal> {
        let before = self.peer.map_or(self.bytes, |peer| peer.bodies().fetch_add(bytes, Relaxed));
        self.bytes = self.bytes.saturating_add(bytes);
        let after = before.saturating_add(bytes);
        let counted = after.saturating_sub(before.max(FREE_BODIES));
        if after <= MAX_BODIES_OF_ONE && self.counted.try_grow(counted) {
            return Ok(());
        }
        Err(self.admission.overloaded(Overload::Memory))
    }
}

impl Drop for BodyBytes<'_> {
    fn drop(&mut self) {
        if let Some(peer) = self.peer {
            peer.bodies().fetch_sub(self.bytes, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::clock::Clock;
    use super::super::conn::Conn;
    use super::super::output::{Output, Unsent};
    use super::*;
    use crate::telemetry::metrics::text;

    /// Most unsent bytes.
    const MAX: usize = 400;

    /// Returns a connection, as requests see it and as it sends.
    fn peer(unsent: &UnsentLimit) -> (Peer, Arc<Output>) {
        let conn = Arc::new(Conn::new(Output::new(unsent, &Arc::new(Clock::new())), 0));
        (Peer::new(conn.clone()), conn.output.clone())
    }

    fn admission(settings: &config::Http) -> (Arc<Admission>, Arc<UnsentLimit>, prometheus::Registry) {
        let (registry, unsent) = (prometheus::Registry::new(), UnsentLimit::new(MAX));
        let metrics = Metrics::register(&registry).unwrap();
        (Admission::http("x", settings, unsent.clone(), &metrics), unsent, registry)
    }

    fn with_in_flight(max_in_flight: usize) -> (Arc<Admission>, Arc<UnsentLimit>, prometheus::Registry) {
        admission(&config::Http { max_in_flight, ..config::Http::default() })
    }

    #[test]
    fn a_permit_is_free_again_when_it_is_dropped() {
        let (admission, _, registry) = with_in_flight(1);
        admission.check_in_flight().unwrap();
        let permit = admission.acquire().unwrap();
        let overloaded = Refusal::Overloaded(Overload::InFlight);
        assert_eq!(admission.check_in_flight(), Err(overloaded));
        assert_eq!(admission.acquire().unwrap_err(), overloaded);
        let text = text(&registry);
        assert!(text.contains("http_server_refused_total{reason=\"in_flight\"} 2"), "{text}");
        assert!(text.contains("http_server_in_flight 1"), "{text}");
        drop(permit);
        admission.check_in_flight().unwrap();
        assert_eq!(admission.in_flight.used(), 0);
    }

    #[test]
    fn streams_have_permits_of_their_own() {
        let (admission, ..) = with_in_flight(1);
        let _permit = admission.acquire().unwrap();
        let _stream = admission.acquire_stream().unwrap();
        assert_eq!((admission.in_flight.used(), admission.streams.used()), (1, 1));
    }

    const OVERLOADED: Result<(), Refusal> = Err(Refusal::Overloaded(Overload::Memory));

    #[test]
    fn bodies_are_bounded() {
        let (admission, _, registry) = with_in_flight(10);
        let mut large: Vec<_> = (0..8).map(|_| admission.body(None)).collect();
        for body in &mut large {
            body.grow(MAX_BODIES_OF_ONE).unwrap();
        }
        let mut other = admission.body(None);
        other.grow(8 * FREE_BODIES).unwrap();
        assert_eq!(other.grow(FREE_BODIES + 1), OVERLOADED, "above the bytes that are free");
        drop(large);
        other.grow(2).unwrap();
        drop(other);
        assert_eq!(admission.bodies.used(), 0);
        let text = text(&registry);
        assert!(text.contains("http_server_refused_total{reason=\"memory\"} 1"), "{text}");
    }

    #[test]
    fn bodies_of_one_connection_are_bounded_together() {
        let (admission, unsent, _) = with_in_flight(10);
        let (peer, output) = peer(&unsent);
        let mut small: Vec<_> = (0..1024).map(|_| admission.body(Some(&peer))).collect();
        for body in &mut small {
            body.grow(FREE_BODIES).unwrap();
        }
        assert_eq!(
            admission.bodies.used(),
            MAX_BODIES_OF_ONE - FREE_BODIES,
            "the first bytes are free, once"
        );
        assert_eq!(admission.body(Some(&peer)).grow(1), OVERLOADED);
        admission.body(None).grow(MAX_BODIES_OF_ONE).unwrap();
        drop(small);
        assert_eq!((admission.bodies.used(), peer.bodies().load(Relaxed)), (0, 0));
        drop(output);
    }

    #[test]
    fn unsent_answers_are_bounded() {
        let (admission, unsent, registry) = with_in_flight(10);
        let (greedy, output) = peer(&unsent);
        let answer = Unsent::new(vec![0; MAX / 4].into(), &output);
        assert_eq!(admission.check_memory(Some(&greedy)), OVERLOADED, "it has its share");
        let others: Vec<_> = (0..3).map(|_| peer(&unsent)).collect();
        let unread = |output| Unsent::new(vec![0; MAX / 4].into(), output);
        admission.check_memory(Some(&others[0].0)).unwrap();
        let more: Vec<_> = others.iter().map(|(_, output)| unread(output)).collect();
        assert_eq!(admission.check_memory(None), OVERLOADED, "nothing is left");
        drop(more);
        admission.check_memory(None).unwrap();
        drop(answer);
        admission.check_memory(Some(&greedy)).unwrap();
        let text = text(&registry);
        assert!(text.contains("http_server_refused_total{reason=\"memory\"} 2"), "{text}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_over_its_rate_is_told_when_to_come_again() {
        let settings = config::Http { rate_limit: 2, rate_burst: 1, ..config::Http::default() };
        let (admission, _, registry) = admission(&settings);
        let check = || admission.check_rate(IpAddr::from([192, 0, 2, 1]), &HeaderMap::new());
        check().unwrap();
        let retry_after = Duration::from_millis(500);
        assert_eq!(check(), Err(Refusal::RateLimited { retry_after }));
        tokio::time::advance(retry_after).await;
        check().unwrap();
        let text = text(&registry);
        assert!(text.contains("http_server_refused_total{reason=\"rate\"} 1"), "{text}");
    }
}
