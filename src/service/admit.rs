//! Whether a call is taken on: the calls in progress, and the memory that unsent answers and unfinished
//! requests hold. What is refused is told when to come again (`grpc-retry-pushback-ms`), so that callers
//! know it from a failure.
//!
//! Health checks and reflection are neither counted nor refused for overload: a service that is busy is
//! not dead. Their streams have a bound of their own.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;

use crate::api::error::{Code, Error, chain};
use crate::config;
use crate::limit::{Limit, Permit};
use crate::server::metrics::{Metrics, Refusals, Refused};
use crate::telemetry::log::LogThrottle;

/// Largest request, bytes: a content of 32 KiB and its keys, several times over.
const MAX_REQUEST: usize = 256 * 1024;
/// Most that the requests which are being received hold together, bytes: 256 of the largest.
const MAX_REQUESTS: usize = 64 * 1024 * 1024;
/// Health watches and reflection streams at the same time: two for each of the default number of
/// connections, some 2 KB each.
const MAX_STREAMS: usize = 20_000;

/// The limits of a service instance.
pub struct Admission {
    service: &'static str,
    in_flight: Arc<Limit>,
    unsent: Arc<Limit>,
    requests: Arc<Limit>,
    streams: Arc<Limit>,
    refused: Refusals,
    overload: LogThrottle,
}

impl Admission {
    /// Returns the limits that the settings ask for; `unsent` is that of the server.
    #[must_use]
    pub fn new(
        service: &'static str,
        settings: &config::Grpc,
        unsent: Arc<Limit>,
        metrics: &Metrics,
    ) -> Arc<Self> {
        Arc::new(Self {
            service,
            in_flight: Limit::new(settings.max_in_flight, Some(metrics.grpc_in_flight(service))),
            unsent,
            requests: Limit::new(MAX_REQUESTS, None),
            streams: Limit::new(MAX_STREAMS, None),
            refused: metrics.grpc_refused(service),
            overload: LogThrottle::default(),
        })
    }

    /// Receives a request and returns it with a place among those in progress. It takes none until it is
    /// there: requests that come slowly, or never, must not take the places of others.
    ///
    /// # Errors
    /// When there is no place for it, or it is too large or broken.
    pub async fn receive(&self, body: Incoming) -> Result<(Bytes, Permit), Error> {
        if self.unsent.is_full() {
            return Err(self.refuse(Refused::Memory));
        }
        if self.in_flight.is_full() {
            return Err(self.refuse(Refused::InFlight));
        }
        // the call's own deadline is its caller's to choose, and may be far away
        let read = tokio::time::timeout(BODY_TIME, self.read(body)).await;
        let request = read.map_err(|_| Error::new(Code::Timeout, "the request did not arrive in time"))??;
        match self.in_flight.try_acquire(1) {
            Some(permit) => Ok((request, permit)),
            None => Err(self.refuse(Refused::InFlight)),
        }
    }

    /// Returns the place of a stream.
    ///
    /// # Errors
    /// When there is none.
    pub fn stream(&self) -> Result<Permit, Error> {
        self.streams.try_acquire(1).ok_or_else(|| self.refuse(Refused::InFlight))
    }

    /// Counts a call whose deadline has passed before any work.
    pub fn late(&self) {
        self.refused.note(Refused::Deadline);
    }

    async fn read(&self, mut body: Incoming) -> Result<Bytes, Error> {
        let (mut held, mut held_now) = (self.requests.acquire(0), 0);
        let (mut first, mut more) = (Bytes::new(), BytesMut::new());
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| {
                Error::bad("request", format!("could not be read to its end: {}", chain(&error)))
            })?;
            let Ok(part) = frame.into_data() else { continue };
            if first.len() + more.len() + part.len() > MAX_REQUEST {
                return Err(Error::bad("request", format!("is over {MAX_REQUEST} bytes")));
            }
            let counted = (first.len() + more.len() + part.len()).saturating_sub(FREE_REQUEST);
            if counted > held_now && !held.try_grow(counted - held_now) {
                return Err(self.refuse(Refused::Memory));
            }
            held_now = held_now.max(counted);
            if first.is_empty() {
                first = part; // most often the only one, and then not copied
            } else {
                more.extend_from_slice(&part);
            }
        }
        if more.is_empty() {
            return Ok(first);
        }
        let mut whole = BytesMut::with_capacity(first.len() + more.len());
        whole.extend_from_slice(&first);
        whole.extend_from_slice(&more);
        Ok(whole.freeze())
    }

    fn refuse(&self, reason: Refused) -> Error {
        self.refused.note(reason);
        if let Some(times) = self.overload.note() {
            tracing::warn!(service = self.service, times, ?reason, "refusing calls: overloaded");
        }
        Error::new(Code::Unavailable, OVERLOADED)
    }
}

/// Bytes of each request that are not counted: ordinary ones find room beside any number of large ones.
const FREE_REQUEST: usize = 8 * 1024;
/// Time for a whole request.
const BODY_TIME: Duration = Duration::from_secs(10);

/// The message of a refusal for overload.
const OVERLOADED: &str = "too many calls are in progress";

/// Returns true for a refusal for overload.
pub fn is_overload(error: &Error) -> bool {
    error.message == OVERLOADED
}
