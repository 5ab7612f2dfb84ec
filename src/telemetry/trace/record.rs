//! A span that has ended, as it waits to be exported.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::HeaderValue;
use opentelemetry::trace::{SpanId, TraceId};

/// A span that has ended.
#[derive(Clone, Debug)]
pub struct Record {
    pub trace_id: TraceId,
    pub id: SpanId,
    pub parent: Option<SpanId>,
    pub kind: Kind,
    pub name: Cow<'static, str>,
    pub start: SystemTime,
    pub duration: Duration,
    /// The role that made the span.
    pub local: Arc<Endpoint>,
    /// The other side of the request.
    pub remote: Endpoint,
    pub tags: Vec<(&'static str, Tag)>,
}

/// Which side of a request a span describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A request that was served.
    Server,
    /// One attempt to call another service.
    Client,
}

/// One side of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The role; empty if it is not known.
    pub service: &'static str,
    pub ip: Option<IpAddr>,
    pub port: Option<u16>,
}

/// The value of a tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tag {
    /// A word that is written in the code.
    Word(&'static str),
    /// A number.
    Number(u64),
    /// An id.
    Id(HeaderValue),
}

impl From<&'static str> for Tag {
    fn from(word: &'static str) -> Self {
        Self::Word(word)
    }
}

impl From<u64> for Tag {
    fn from(number: u64) -> Self {
        Self::Number(number)
    }
}

impl From<Duration> for Tag {
    /// Whole milliseconds.
    fn from(time: Duration) -> Self {
        Self::Number(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
    }
}

impl From<&HeaderValue> for Tag {
    fn from(id: &HeaderValue) -> Self {
        Self::Id(id.clone())
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Returns a span that took so many milliseconds.
    pub fn record(took: u64) -> Record {
        Record {
            trace_id: TraceId::from(0x463a_c35c_9f64_13ad_u128),
            id: SpanId::from(0xff),
            parent: Some(SpanId::from(0xfe)),
            kind: Kind::Client,
            name: Cow::Borrowed("feed.Feed/GetFeeds"),
            start: SystemTime::UNIX_EPOCH + Duration::from_secs(1),
            duration: Duration::from_millis(took),
            local: Arc::new(Endpoint {
                service: "apigateway",
                ip: Some(IpAddr::from([0, 0, 0, 0])),
                port: Some(8080),
            }),
            remote: Endpoint { service: "feed", ip: Some(IpAddr::from([192, 0, 2, 1])), port: Some(1) },
            tags: Vec::new(),
        }
    }
}
