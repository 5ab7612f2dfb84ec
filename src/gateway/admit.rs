//! Whether a request is taken on: the client's rate, the requests in progress, the memory that unsent
//! answers and unfinished bodies hold. What is refused costs a head and a short answer, no more.

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::{HeaderMap, Method};

use super::rate::Rate;
use super::reply::Problem;
use crate::config;
use crate::limit::{Limit, Permit};
use crate::server::metrics::{Metrics, Refusals, Refused};
use crate::telemetry::log::LogThrottle;

/// Most that the bodies which are being received hold together, bytes: 256 of the largest.
const MAX_BODIES: usize = 64 * 1024 * 1024;
/// What each body may hold without counting, bytes: a usual one never meets that limit, whatever the
/// large ones do, and there are no more of them than connections.
const FREE_BODY: usize = 8 * 1024;

/// The limits of a gateway, on all its sockets together.
pub struct Admission {
    in_flight: Arc<Limit>,
    unsent: Arc<Limit>,
    bodies: Arc<Limit>,
    rate: Option<Rate>,
    refused: Refusals,
    overload: LogThrottle,
}

impl Admission {
    /// Returns the limits that the settings ask for; `unsent` is that of the server.
    #[must_use]
    pub fn new(settings: &config::Http, unsent: Arc<Limit>, metrics: &Metrics) -> Arc<Self> {
        Arc::new(Self {
            in_flight: Limit::new(settings.max_in_flight, Some(metrics.http_in_flight())),
            unsent,
            bodies: Limit::new(MAX_BODIES, None),
            rate: Rate::new(settings),
            refused: metrics.http_refused(),
            overload: LogThrottle::default(),
        })
    }

    /// Takes a request on or refuses it. One with a body to come gets its place once the body is there
    /// ([`Place::claim`]): slow uploads must not take the places of others.
    pub fn admit(
        self: &Arc<Self>,
        peer: IpAddr,
        method: &Method,
        headers: &HeaderMap,
        has_body: bool,
    ) -> Result<Place, Problem> {
        if let Some(Err(wait)) = self.rate.as_ref().map(|rate| rate.check(peer, headers)) {
            self.refused.note(Refused::Rate);
            return Err(Problem::too_many_requests(wait));
        }
        if self.unsent.is_full() {
            return Err(self.refuse(Refused::Memory));
        }
        let place = Place(Arc::new(Inner { admission: self.clone(), permit: OnceLock::new() }));
        // a PUT is the only one whose body is read
        if !(has_body && method == Method::PUT) {
            place.claim()?;
        } else if self.in_flight.is_full() {
            return Err(self.refuse(Refused::InFlight));
        }
        Ok(place)
    }

    fn refuse(&self, reason: Refused) -> Problem {
        self.refused.note(reason);
        if let Some(times) = self.overload.note() {
            tracing::warn!(times, ?reason, "refusing requests: overloaded");
        }
        Problem::overloaded()
    }
}

/// A request's place among those in progress; free again when its last clone is dropped.
#[derive(Clone)]
pub struct Place(Arc<Inner>);

struct Inner {
    admission: Arc<Admission>,
    permit: OnceLock<Permit>,
}

impl Place {
    /// Takes the place, unless that has been done.
    ///
    /// # Errors
    /// When none is left.
    pub fn claim(&self) -> Result<(), Problem> {
        let Inner { admission, permit } = &*self.0;
        if permit.get().is_some() {
            return Ok(());
        }
        let taken = admission.in_flight.try_acquire(1);
        let taken = taken.ok_or_else(|| admission.refuse(Refused::InFlight))?;
        // if another clone was quicker, this permit goes back
        let _ = permit.set(taken);
        Ok(())
    }

    /// Returns the account of a body that is being received; its bytes are given back with it.
    pub fn body(&self) -> BodyAccount {
        let admission = self.0.admission.clone();
        BodyAccount { held: admission.bodies.acquire(0), admission, free: FREE_BODY }
    }
}

/// What a body holds while it is being received.
pub struct BodyAccount {
    admission: Arc<Admission>,
    held: Permit,
    /// Bytes that do not count yet.
    free: usize,
}

impl BodyAccount {
    /// Notes more bytes.
    ///
    /// # Errors
    /// When all bodies together hold too much.
    pub fn grow(&mut self, bytes: usize) -> Result<(), Problem> {
        let counted = bytes.saturating_sub(self.free);
        self.free = self.free.saturating_sub(bytes);
        let fits = self.held.try_grow(counted);
        if fits { Ok(()) } else { Err(self.admission.refuse(Refused::Memory)) }
    }
}

/// Returns `Retry-After`, whole seconds, for a wait.
pub fn retry_after(wait: Duration) -> u32 {
    u32::try_from(wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admission(max_in_flight: usize) -> (Arc<Admission>, Arc<Limit>) {
        let settings = config::Http { max_in_flight, ..config::Http::default() };
        let unsent = Limit::new(10, None);
        (
            Admission::new(
                &settings,
                unsent.clone(),
                &Metrics::register(&prometheus::Registry::new()).unwrap(),
            ),
            unsent,
        )
    }

    fn admit(admission: &Arc<Admission>, method: &Method, has_body: bool) -> Option<Place> {
        admission.admit(IpAddr::from([192, 0, 2, 1]), method, &HeaderMap::new(), has_body).ok()
    }

    #[test]
    fn a_place_is_free_again_when_its_last_clone_is_gone() {
        let (admission, _) = admission(1);
        let place = admit(&admission, &Method::GET, false).unwrap();
        assert!(admit(&admission, &Method::GET, false).is_none());
        let clone = place.clone();
        drop(place);
        assert!(admit(&admission, &Method::GET, false).is_none());
        clone.claim().unwrap();
        assert_eq!(admission.in_flight.used(), 1, "claimed once");
        drop(clone);
        assert!(admit(&admission, &Method::GET, false).is_some());
        assert_eq!(admission.in_flight.used(), 0);
    }

    #[test]
    fn a_body_on_its_way_takes_no_place() {
        let (admission, _) = admission(1);
        let slow = [(); 5].map(|()| admit(&admission, &Method::PUT, true).unwrap());
        let quick = admit(&admission, &Method::GET, false).unwrap();
        assert!(admit(&admission, &Method::PUT, true).is_none(), "what cannot be served is not begun");
        assert!(slow[0].claim().is_err());
        drop(quick);
        slow[0].claim().unwrap();
        assert!(slow[1].claim().is_err());
        // only a PUT's body is read: any other request takes its place at once
        assert!(admit(&admission, &Method::DELETE, true).is_none());
    }

    #[test]
    fn memory_is_bounded() {
        let (admission, unsent) = admission(10);
        let place = admit(&admission, &Method::PUT, true).unwrap();
        let mut body = place.body();
        body.grow(FREE_BODY + MAX_BODIES - 1).unwrap();
        let mut other = place.body();
        other.grow(FREE_BODY).unwrap();
        assert!(other.grow(2).is_err(), "a large one");
        drop(body);
        other.grow(2).unwrap();
        drop(other);
        assert_eq!(admission.bodies.used(), 0);
        let answer = unsent.acquire(11);
        assert!(admit(&admission, &Method::GET, false).is_none());
        drop(answer);
        assert!(admit(&admission, &Method::GET, false).is_some());
    }

    #[test]
    fn retry_after_rounds_up() {
        let ms = Duration::from_millis;
        assert_eq!([1, 1000, 1001].map(|n| retry_after(ms(n))), [1, 1, 2]);
    }
}
