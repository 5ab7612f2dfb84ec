//! Sends spans to Zipkin's API v2: a JSON array in a POST request.
//!
//! The exporter of opentelemetry-zipkin is not used: it is deprecated, and writes neither the service name nor the
//! remote endpoint.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::Full;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::Serialize;
use serde::ser::{SerializeMap as _, Serializer};

use super::id::Id;
use super::record::{Endpoint, Kind, Record, Tag};
use crate::api::error::chain;

/// Longest time to send a batch. A slower collector counts as failed.
const LIMIT: Duration = Duration::from_secs(10);
/// Longest time to connect.
const CONNECT: Duration = Duration::from_secs(3);

/// A client of a Zipkin collector.
pub struct Zipkin {
    client: Client<HttpConnector, Full<Bytes>>,
    uri: Uri,
}

impl Zipkin {
    /// Returns a client that connects when it is used.
    pub fn new(uri: Uri) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT));
        connector.set_nodelay(true);
        let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(1).build(connector);
        Self { client, uri }
    }

    /// Sends a batch, in at most [`LIMIT`].
    ///
    /// # Errors
    /// Why the collector did not accept the batch.
    pub async fn send(&self, spans: Vec<Record>) -> Result<(), String> {
        // on another thread: requests must not wait while a batch is encoded
        let body = tokio::task::spawn_blocking(move || encode(&spans));
        let body = body.await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
        let mut request = Request::new(Full::new(Bytes::from(body)));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.uri.clone();
        let json = HeaderValue::from_static("application/json");
        request.headers_mut().insert(header::CONTENT_TYPE, json);
        let answer = tokio::time::timeout(LIMIT, self.client.request(request)).await;
        let answer = answer.map_err(|_| format!("no answer within {LIMIT:?}"))?.map_err(|e| chain(&e))?;
        match answer.status() {
            status if status.is_success() => Ok(()),
            StatusCode::NOT_FOUND => {
                Err(format!("404 Not Found: {} is not a path of Zipkin", self.uri.path()))
            }
            status => Err(status.to_string()),
        }
    }
}

fn encode(spans: &[Record]) -> serde_json::Result<Vec<u8>> {
    let mut out = Vec::with_capacity(spans.len() * 600);
    let mut json = serde_json::Serializer::new(&mut out);
    json.collect_seq(spans.iter().map(Span::from))?;
    Ok(out)
}

/// A span as Zipkin's JSON has it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Span<'a> {
    #[serde(serialize_with = "text")]
    trace_id: Id,
    #[serde(serialize_with = "text")]
    id: opentelemetry::trace::SpanId,
    #[serde(serialize_with = "text", skip_serializing_if = "String::is_empty")]
    parent_id: String,
    kind: &'static str,
    name: &'a str,
    /// Microseconds since 1970.
    timestamp: u64,
    /// Microseconds, at least 1.
    duration: u64,
    local_endpoint: &'a Endpoint,
    remote_endpoint: &'a Endpoint,
    tags: Tags<'a>,
}

fn text<T: std::fmt::Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

impl<'a> From<&'a Record> for Span<'a> {
    fn from(record: &'a Record) -> Self {
        let since = record.start.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self {
            trace_id: Id(record.trace_id),
            id: record.id,
            parent_id: record.parent.map_or_else(String::new, |id| id.to_string()),
            kind: match record.kind {
                Kind::Server => "SERVER",
                Kind::Client => "CLIENT",
            },
            name: &record.name,
            timestamp: micros(since),
            duration: micros(record.duration).max(1),
            local_endpoint: &record.local,
            remote_endpoint: &record.remote,
            tags: Tags(&record.tags),
        }
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

impl Serialize for Endpoint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        if !self.service.is_empty() {
            map.serialize_entry("serviceName", self.service)?;
        }
        // an unspecified address (every interface) is left out
        match self.ip.map(|ip| ip.to_canonical()).filter(|ip| !ip.is_unspecified()) {
            Some(IpAddr::V4(ip)) => map.serialize_entry("ipv4", &ip)?,
            Some(IpAddr::V6(ip)) => map.serialize_entry("ipv6", &ip)?,
            None => {}
        }
        if let Some(port) = self.port.filter(|port| *port > 0) {
            map.serialize_entry("port", &port)?;
        }
        map.end()
    }
}

struct Tags<'a>(&'a [(&'static str, Tag)]);

impl Serialize for Tags<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(key, value)| (*key, value)))
    }
}

impl Serialize for Tag {
    /// Zipkin's tags are strings.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Word(word) => serializer.serialize_str(word),
            Self::Number(number) => serializer.collect_str(number),
            Self::Id(id) => serializer.serialize_str(id.to_str().unwrap_or("?")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::trace::record::tests::record;

    #[test]
    fn a_span_is_what_zipkin_reads() {
        let mut span = record(5);
        span.parent = None;
        span.tags.push(("instance", Tag::Id(HeaderValue::from_static("a\"b"))));
        span.tags.push(("attempt", Tag::Number(2)));
        let json: serde_json::Value = serde_json::from_slice(&encode(&[span, record(0)]).unwrap()).unwrap();
        assert_eq!(
            json[0],
            serde_json::json!({
                "traceId": "463ac35c9f6413ad", "id": "00000000000000ff", "kind": "CLIENT", "name": "feed.Feed/GetFeeds",
                "timestamp": 1_000_000, "duration": 5000,
                "localEndpoint": {"serviceName": "apigateway", "port": 8080},
                "remoteEndpoint": {"serviceName": "feed", "ipv4": "192.0.2.1", "port": 1},
                "tags": {"instance": "a\"b", "attempt": "2"},
            })
        );
        assert_eq!((&json[1]["parentId"], &json[1]["duration"]), (&"00000000000000fe".into(), &1.into()));
    }
}
