//! Decides whether a request is accepted: the rate of its client, the requests in progress, and the memory that
//! unsent answers and unfinished bodies hold. HTTP and gRPC use the same limits and the same typed refusal,
//! which each of them turns into its own answer.
//!
//! A request gets its permit once its body is complete: slow uploads must not take the permits of others.
//! Nothing waits for a permit; a refusal costs a head and a short answer.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;

use super::metrics::{Metrics, Refusals, Refused};
use super::rate::RateLimit;
use crate::config;
use crate::limit::{Limit, Permit};
use crate::telemetry::log::LogThrottle;

/// Largest body of a request, bytes: a content of 32 KiB and its keys, several times over.
pub const MAX_BODY: usize = 256 * 1024;
/// Most bytes that the bodies being received hold together: 256 of the largest.
const MAX_BODIES: usize = 64 * 1024 * 1024;
/// Bytes of each body that do not count: a usual one never meets [`MAX_BODIES`], whatever the large ones do.
/// The number of connections bounds these bytes.
const FREE_BODY: usize = 8 * 1024;
/// Most streams at the same time (health watches, reflection): two for each of the default number of
/// connections, some 2 KB each.
const MAX_STREAMS: usize = 20_000;

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
    unsent: Arc<Limit>,
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
        unsent: Arc<Limit>,
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
        unsent: Arc<Limit>,
        metrics: &Metrics,
    ) -> Arc<Self> {
        let in_flight = Limit::new(settings.max_in_flight, Some(metrics.grpc_in_flight(service)));
        Arc::new(Self::new(service, in_flight, unsent, None, metrics.grpc_refused(service)))
    }

    fn new(
        service: &'static str,
        in_flight: Arc<Limit>,
        unsent: Arc<Limit>,
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

    /// Checks that unsent answers leave memory for one more.
    ///
    /// # Errors
    /// [`Refusal::Overloaded`].
    pub fn check_memory(&self) -> Result<(), Refusal> {
        if self.unsent.is_full() { Err(self.overloaded(Overload::Memory)) } else { Ok(()) }
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

    /// Returns the account of a body that is being received.
    pub fn body(&self) -> BodyBytes<'_> {
        BodyBytes { held: self.bodies.acquire(0), admission: self, free: FREE_BODY }
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
    held: Permit,
    /// Bytes of [`FREE_BODY`] that are left.
    free: usize,
}

impl BodyBytes<'_> {
    /// Counts more bytes.
    ///
    /// # Errors
    /// When all bodies together hold too much.
    pub fn grow(&mut self, bytes: usize) -> Result<(), Refusal> {
        let counted = bytes.saturating_sub(self.free);
        self.free = self.free.saturating_sub(bytes);
        if self.held.try_grow(counted) { Ok(()) } else { Err(self.admission.overloaded(Overload::Memory)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::metrics::text;

    fn admission(settings: &config::Http) -> (Arc<Admission>, Arc<Limit>, prometheus::Registry) {
        let (registry, unsent) = (prometheus::Registry::new(), Limit::new(10, None));
        let metrics = Metrics::register(&registry).unwrap();
        (Admission::http("x", settings, unsent.clone(), &metrics), unsent, registry)
    }

    fn with_in_flight(max_in_flight: usize) -> (Arc<Admission>, Arc<Limit>, prometheus::Registry) {
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

    #[test]
    fn memory_is_bounded() {
        let (admission, unsent, registry) = with_in_flight(10);
        let overloaded = Err(Refusal::Overloaded(Overload::Memory));
        let mut body = admission.body();
        body.grow(FREE_BODY + MAX_BODIES - 1).unwrap();
        let mut other = admission.body();
        other.grow(FREE_BODY).unwrap();
        assert_eq!(other.grow(2), overloaded, "above the bytes that are free");
        drop(body);
        other.grow(2).unwrap();
        drop(other);
        assert_eq!(admission.bodies.used(), 0);
        let answer = unsent.acquire(11);
        assert_eq!(admission.check_memory(), overloaded);
        drop(answer);
        admission.check_memory().unwrap();
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
