//! The protocols of a listener, and what bounds a peer that speaks one of them.

use std::time::Duration;

use http::{HeaderMap, HeaderName, Request, header};
use hyper::server::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioTimer};

use super::rate::{FORWARDED, MAX_HOPS};
use crate::api::headers::REQUEST_ID;
use crate::tls::edge::HTTP2;

/// Largest head of an HTTP/1 request, bytes; hyper answers larger ones with 431. Larger than hyper's longest
/// URI, so that a URI that is too long is answered with 414.
const MAX_HEAD: usize = 128 * 1024;
/// Most header lines of an HTTP/1 request; hyper answers more with 431. The gateway holds requests over HTTP/2 to it as
/// well, see `bound_fields`.
pub const MAX_HEADERS: usize = 100;
/// Most resets, per connection, of calls that the server has not begun to serve. Callers that hang up in a
/// burst cause such resets: 256 of them exceed h2's default of 20, which ends the connection for all of its
/// users. A rapid reset attack still meets this bound, or before it that of `Meter`.
const MAX_PENDING_RESETS: usize = 10_000;
/// Interval of HTTP/2 pings to a caller, and the time for their answer: finds dead peers.
const PING: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(10));
/// Most resets, per connection, that this server sends because a peer broke a rule of a stream; then the
/// connection ends (CVE-2025-8671). hyper's default, stated here.
const MAX_ERROR_RESETS: usize = 1024;
/// Largest head of an HTTP/2 request, bytes as RFC 9113 (6.5.2) counts them. It bounds the number of
/// CONTINUATION frames too. h2 refuses larger heads with 431 and ends the connection for much larger ones.
const MAX_HEADER_LIST: u32 = 16 * 1024;
/// The same of a caller of the gateway, whose path and token may have 8 KiB each.
const EDGE_HEADER_LIST: u32 = 32 * 1024;
/// Requests at the same time on one HTTP/2 connection of a caller of the gateway (RFC 9113, 6.5.2: at least 100).
const EDGE_STREAMS: u32 = 128;
/// Most bytes of one stream in h2's buffer, beyond the part that is being sent.
const MAX_SEND_BUFFER: usize = 256 * 1024;
/// HTTP/2 windows for request bodies, bytes: the largest message fits without a round trip.
const WINDOW: u32 = 1024 * 1024;

/// The protocol of a listener.
#[derive(Clone, Copy, Debug)]
pub enum Protocol {
    /// HTTP/1.1. With TLS also HTTP/2, for those who ask for it.
    Http1 {
        /// Time for a request's head, and for a kept-alive connection to stay idle.
        header_timeout: Duration,
    },
    /// HTTP/2 with prior knowledge, for gRPC.
    Http2 {
        /// Calls at the same time on one connection.
        max_concurrent_streams: u32,
    },
}

impl Protocol {
    /// Returns the protocol of a connection on which `alpn` was agreed on.
    #[must_use]
    pub fn agreed(self, alpn: Option<&[u8]>) -> Self {
        match self {
            Self::Http1 { .. } if alpn == Some(HTTP2) => Self::Http2 { max_concurrent_streams: EDGE_STREAMS },
            listened => listened,
        }
    }

    /// Returns true for HTTP/1.1.
    #[must_use]
    pub const fn is_http1(self) -> bool {
        matches!(self, Self::Http1 { .. })
    }
}

/// The fields that the refusal of a head depends on, and how many lines of each: whose rate it counts against, its id, who
/// may read it, and whether a body follows.
const REFUSAL_FIELDS: [(HeaderName, usize); 5] = [
    (FORWARDED, MAX_HOPS),
    (REQUEST_ID, 1),
    (header::ORIGIN, 1),
    (header::ACCESS_CONTROL_REQUEST_METHOD, 1),
    (header::EXPECT, 1),
];

/// Marks a request that is to be refused because its head has more than [`MAX_HEADERS`] fields. In its extensions.
#[derive(Clone, Copy, Debug)]
pub struct TooManyFields;

/// Frees the fields of a request over HTTP/2 that has too many of them. Before anything else is read: one of them may take
/// one byte of the connection and a hundred of memory, and a peer may send many heads before the first one is answered.
pub fn bound_fields<B>(request: &mut Request<B>) {
    if request.headers().len() <= MAX_HEADERS {
        return;
    }
    let mut kept = HeaderMap::new();
    for (name, lines) in REFUSAL_FIELDS {
        let given: Vec<_> = request.headers().get_all(&name).iter().rev().take(lines).collect();
        // a proxy adds its line below the others
        for value in given.into_iter().rev() {
            kept.append(name.clone(), value.clone());
        }
    }
    *request.headers_mut() = kept;
    request.extensions_mut().insert(TooManyFields);
}

/// Returns what serves a connection of HTTP/1.
pub fn http1_builder(header_timeout: Duration) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(header_timeout)
        .max_buf_size(MAX_HEAD)
        .max_headers(MAX_HEADERS)
        .half_close(false);
    builder
}

/// Returns what serves a connection of HTTP/2, at the `edge` that of a caller of the gateway.
pub fn http2_builder(max_concurrent_streams: u32, edge: bool) -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .keep_alive_interval(PING.0)
        .keep_alive_timeout(PING.1)
        .max_concurrent_streams(max_concurrent_streams)
        .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
        .max_local_error_reset_streams(MAX_ERROR_RESETS)
        .max_header_list_size(if edge { EDGE_HEADER_LIST } else { MAX_HEADER_LIST })
        .max_send_buf_size(MAX_SEND_BUFFER)
        .initial_connection_window_size(WINDOW)
        .initial_stream_window_size(WINDOW);
    builder
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_too_many_fields_only_those_stay_that_the_refusal_needs() {
        for (count, marked) in [(MAX_HEADERS, false), (MAX_HEADERS + 1, true)] {
            let mut request = Request::new(());
            request.headers_mut().insert(REQUEST_ID, "id".parse().unwrap());
            for hop in 0..40 {
                request.headers_mut().append(FORWARDED, hop.into());
            }
            for n in request.headers().len()..count {
                request.headers_mut().append("x-many", n.into());
            }
            bound_fields(&mut request);
            assert_eq!(request.extensions().get::<TooManyFields>().is_some(), marked);
            if !marked {
                assert_eq!(request.headers().len(), count);
                continue;
            }
            assert_eq!(request.headers().len(), 1 + MAX_HOPS);
            assert!(request.headers().capacity() < MAX_HEADERS, "{}", request.headers().capacity());
            let hops: Vec<_> =
                request.headers().get_all(FORWARDED).iter().map(|hop| hop.to_str().unwrap()).collect();
            let last: Vec<_> = (40 - MAX_HOPS..40).map(|hop| hop.to_string()).collect();
            assert_eq!(hops, last);
            assert_eq!(request.headers()[REQUEST_ID], "id");
        }
    }
}
