//! gRPC's format over HTTP/2: requests, answers, and the length prefix of messages. It neither connects nor
//! sends.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use http::uri::{self, Authority, InvalidUri, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, Method, Request, Response, Uri, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use tonic::Status;

use crate::api::error::{Code, Error};
use crate::api::headers::SERVICE;
use crate::client::call::Answer;
use crate::client::transport::outcome::ExchangeEnd;

/// Largest answer, bytes: twice the most content that an answer carries, for its framing and ids.
const MAX_ANSWER: usize = 2 * crate::api::validate::MAX_ANSWER;
/// Largest message of a stream, bytes: health messages, the only ones, have two.
const MAX_STREAMED_MESSAGE: usize = 1024;
/// Length of the prefix of each message, bytes: a compression flag and a length of four bytes.
const PREFIX: usize = 5;

/// Headers that a request usually has: four here, the deadline, the ids, and the trace.
const HEADERS: usize = 12;

const USER_AGENT: &str = concat!("microservice-app/", env!("CARGO_PKG_VERSION"));

/// Encodes a message with its length prefix.
///
/// # Errors
/// [`Code::Internal`] when it is longer than 4 GiB.
pub fn frame(message: &impl prost::Message) -> Result<Bytes, Error> {
    let length = message.encoded_len();
    let too_long = |_| Error::new(Code::Internal, "the request is too long");
    let mut out = BytesMut::with_capacity(PREFIX + length);
    out.put_u8(0);
    out.put_u32(u32::try_from(length).map_err(|e| too_long(e.to_string()))?);
    message.encode(&mut out).map_err(|e| too_long(e.to_string()))?;
    Ok(out.freeze())
}

/// Returns a gRPC request to the rpc at `path` of the service that `identity` names.
///
/// # Errors
/// When `addr` and `path` make no URI.
pub fn request(
    addr: &str,
    identity: &HeaderValue,
    path: &'static str,
    framed: Bytes,
) -> Result<Request<Full<Bytes>>, String> {
    request_to(&authority(addr)?, identity, path, framed)
}

/// Returns an address as the part of a URI.
///
/// # Errors
/// When it can be none.
pub fn authority(addr: &str) -> Result<Authority, String> {
    addr.parse().map_err(|error: InvalidUri| error.to_string())
}

/// Returns a gRPC request, as [`request`] does, to an address that was parsed before.
///
/// # Errors
/// When the address and `path` make no URI.
pub fn request_to(
    authority: &Authority,
    identity: &HeaderValue,
    path: &'static str,
    framed: Bytes,
) -> Result<Request<Full<Bytes>>, String> {
    let mut parts = uri::Parts::default();
    parts.scheme = Some(Scheme::HTTP);
    parts.authority = Some(authority.clone());
    let path = PathAndQuery::from_maybe_shared(Bytes::from_static(path.as_bytes()));
    parts.path_and_query = Some(path.map_err(|error| error.to_string())?);
    let mut request = Request::new(Full::new(framed));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = Uri::from_parts(parts).map_err(|error| error.to_string())?;
    let headers = request.headers_mut();
    headers.reserve(HEADERS);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(header::TE, HeaderValue::from_static("trailers"));
    headers.insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
    headers.insert(SERVICE, identity.clone());
    Ok(request)
}

/// Returns an HTTP/1.1 request for the page `/`.
///
/// # Errors
/// When `addr` is no host of a request.
pub fn page_request(addr: &str) -> Result<Request<Full<Bytes>>, String> {
    let request = Request::get("/").header(header::HOST, addr).header(header::USER_AGENT, USER_AGENT);
    request.body(Full::default()).map_err(|e| e.to_string())
}

/// Reads the answer of a unary call.
pub async fn read_answer(response: Response<Incoming>) -> ExchangeEnd {
    let (head, body) = response.into_parts();
    match Status::from_header_map(&head.headers) {
        Some(status) if status.code() == tonic::Code::Ok => {
            return ExchangeEnd::Malformed("no message".to_owned());
        }
        Some(status) => return ExchangeEnd::Status(status), // an answer of headers only
        None => {}
    }
    if head.status != http::StatusCode::OK {
        return ExchangeEnd::Malformed(format!("HTTP status {} instead of gRPC", head.status));
    }
    let (body, trailers) = match collect(body).await {
        Ok(collected) => collected,
        Err(end) => return end,
    };
    let Some(status) = trailers.as_ref().and_then(Status::from_header_map) else {
        return ExchangeEnd::Malformed("no grpc-status".to_owned());
    };
    if status.code() != tonic::Code::Ok {
        return ExchangeEnd::Status(status);
    }
    match only_message(body) {
        Some(message) => {
            ExchangeEnd::Answered(Answer { message, headers: head.headers, ..Answer::default() })
        }
        None => ExchangeEnd::Malformed("a malformed message".to_owned()),
    }
}

/// Reads a body to its end. Usually it is one part, which is not copied.
async fn collect(mut body: Incoming) -> Result<(Bytes, Option<HeaderMap>), ExchangeEnd> {
    let (mut first, mut whole, mut trailers) = (Bytes::new(), BytesMut::new(), None);
    while let Some(frame) = body.frame().await {
        match frame.map_err(ExchangeEnd::BodyFailed)?.into_data() {
            Ok(part) if first.len() + whole.len() + part.len() > MAX_ANSWER => {
                return Err(ExchangeEnd::TooLarge);
            }
            Ok(part) if first.is_empty() && whole.is_empty() => first = part,
            Ok(part) => {
                if whole.is_empty() {
                    whole.reserve(announced(&first).max(first.len() + part.len()));
                    whole.extend_from_slice(&std::mem::take(&mut first));
                }
                whole.extend_from_slice(&part);
            }
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
    }
    Ok((if whole.is_empty() { first } else { whole.freeze() }, trailers))
}

/// Returns the length of a body by the prefix of its message, 0 if that cannot be.
fn announced(first: &[u8]) -> usize {
    let length = first.first_chunk::<PREFIX>().map(|[_, length @ ..]| u32::from_be_bytes(*length));
    let length = length.and_then(|length| usize::try_from(length).ok()?.checked_add(PREFIX));
    length.filter(|length| *length <= MAX_ANSWER).unwrap_or(0)
}

/// Returns the message of a body that consists of one; `None` if the body holds none, more than one, or a
/// compressed one (we do not offer to read any).
fn only_message(mut body: Bytes) -> Option<Bytes> {
    let [compressed, length @ ..] = *body.first_chunk::<PREFIX>()?;
    body.advance(PREFIX);
    let length = usize::try_from(u32::from_be_bytes(length)).ok()?;
    (compressed == 0 && body.len() == length).then_some(body)
}

/// Takes the next message off the front of a stream's bytes; `None` if it has not all arrived.
///
/// # Errors
/// When it is compressed or longer than 1 KiB.
pub fn next_message(buffer: &mut BytesMut) -> Result<Option<Bytes>, String> {
    let Some(prefix) = buffer.first_chunk::<PREFIX>() else {
        return Ok(None);
    };
    let [compressed, length @ ..] = *prefix;
    let length = usize::try_from(u32::from_be_bytes(length)).map_err(|e| e.to_string())?;
    if compressed != 0 || length > MAX_STREAMED_MESSAGE {
        return Err("a malformed message".to_owned());
    }
    if buffer.len() < PREFIX + length {
        return Ok(None);
    }
    buffer.advance(PREFIX);
    Ok(Some(buffer.split_to(length).freeze()))
}

#[cfg(test)]
mod tests {
    use tonic_health::pb::HealthCheckResponse;

    use super::*;

    #[test]
    fn messages_are_taken_off_a_stream_as_they_arrive() {
        let framed = frame(&HealthCheckResponse { status: 1 }).unwrap();
        let message = framed.slice(PREFIX..);
        let mut buffer = BytesMut::new();
        for byte in &framed[..framed.len() - 1] {
            buffer.extend_from_slice(&[*byte]);
            assert_eq!(next_message(&mut buffer).unwrap(), None);
        }
        buffer.extend_from_slice(&framed[framed.len() - 1..]);
        buffer.extend_from_slice(&framed);
        for _ in 0..2 {
            assert_eq!(next_message(&mut buffer).unwrap().unwrap(), message);
        }
        assert_eq!(next_message(&mut buffer).unwrap(), None);
        buffer.extend_from_slice(&[0, 255, 0, 0, 0]);
        next_message(&mut buffer).unwrap_err();
    }

    #[test]
    fn an_answer_is_one_plain_message() {
        for (body, want) in [
            (&[0, 0, 0, 0, 2, 8, 1][..], Some(&[8, 1][..])),
            (&[0, 0, 0, 0, 0], Some(&[])),
            (&[], None),
            (&[0, 0, 0, 0], None),
            (&[0, 0, 0, 0, 2, 8], None),
            (&[0, 0, 0, 0, 1, 8, 1], None),
            (&[1, 0, 0, 0, 2, 8, 1], None),
        ] {
            assert_eq!(only_message(Bytes::from_static(body)).as_deref(), want, "{body:?}");
        }
    }
}
