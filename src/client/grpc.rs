//! One unary gRPC exchange over an endpoint, as bytes: frames the request, reads the answer and its
//! trailers, and folds whatever happened into one outcome.
//!
//! Not tonic's client, because it hides who said what: a reset, a GOAWAY and a refused connection reach
//! its caller as Unknown, Internal or Cancelled, as if the service had said so. Here only a
//! `grpc-status` that the peer sent counts as the peer's word; all else is `Unavailable`.

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Request, Response, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use tonic::Status;

use super::endpoint::{Endpoint, SendError};
use crate::context::{Context, INSTANCE, SERVICE, WRONG_SERVICE};
use crate::error::{Code, Error, chain};
use crate::rpc::Rpc;

/// Largest answer, bytes: the most content an answer carries, twice over for its frame and ids.
const MAX_ANSWER: usize = 2 * crate::check::MAX_ANSWER;
/// Compression flag and length before each message.
const PREFIX: usize = 5;

/// What one attempt came to.
#[derive(Debug)]
pub enum Failure {
    /// No handler has seen the call; it may go elsewhere whatever it is.
    NotSent(Error),
    /// Anything else.
    Failed(Error),
}

/// A successful answer.
#[derive(Debug)]
pub struct Answer {
    /// The encoded message.
    pub message: Bytes,
    /// The initial metadata.
    pub headers: HeaderMap,
}

/// Puts the length prefix before an encoded message.
pub fn frame(message: &impl prost::Message) -> Result<Bytes, Error> {
    let length = message.encoded_len();
    let too_long = |_| Error::new(Code::Internal, "the request is too long");
    let mut out = BytesMut::with_capacity(PREFIX + length);
    out.put_u8(0);
    out.put_u32(u32::try_from(length).map_err(|e| too_long(e.to_string()))?);
    message.encode(&mut out).map_err(|e| too_long(e.to_string()))?;
    Ok(out.freeze())
}

/// Runs one attempt at one endpoint. `framed` is what [`frame`] made.
pub async fn exchange(
    endpoint: &Endpoint,
    rpc: &Rpc,
    framed: Bytes,
    context: &Context,
) -> Result<Answer, Failure> {
    let request = request(&endpoint.instance.addr, &endpoint.identity, rpc.path, framed);
    let mut request = request.map_err(|e| Failure::NotSent(lost(endpoint, &e)))?;
    context.write(request.headers_mut());
    let response = endpoint.send(request).await.map_err(|error| match error {
        SendError::NotSent(reason) => Failure::NotSent(lost(endpoint, &reason)),
        SendError::Broken(error) => Failure::Failed(lost(endpoint, &chain(&error))),
    })?;
    if let Some(other) = response.headers().get(WRONG_SERVICE) {
        endpoint.is_another_service(other);
        return Err(Failure::NotSent(lost(endpoint, "it is another service")));
    }
    if let Some(id) = response.headers().get(INSTANCE) {
        endpoint.answered_as(id);
    }
    read(response).await.map_err(|error| {
        Failure::Failed(match error {
            Read::Said(status) => said(&status),
            Read::Lost(reason) => lost(endpoint, &reason),
        })
    })
}

/// Returns a gRPC request to `path` of the service that `identity` names.
pub fn request(
    addr: &str,
    identity: &HeaderValue,
    path: &str,
    framed: Bytes,
) -> Result<Request<Full<Bytes>>, String> {
    let request = Request::post(format!("http://{addr}{path}")).body(Full::new(framed));
    let mut request = request.map_err(|e| e.to_string())?;
    let headers = request.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(header::TE, HeaderValue::from_static("trailers"));
    headers.insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
    headers.insert(SERVICE, identity.clone());
    Ok(request)
}

const USER_AGENT: &str = concat!("microservice-app/", env!("CARGO_PKG_VERSION"));

/// Why a response holds no answer.
pub enum Read {
    /// The peer's own word.
    Said(Status),
    /// The peer said nothing that can be understood.
    Lost(String),
}

/// Reads the answer of a unary call.
pub async fn read(response: Response<Incoming>) -> Result<Answer, Read> {
    let (head, body) = response.into_parts();
    match Status::from_header_map(&head.headers) {
        Some(status) if status.code() == tonic::Code::Ok => return Err(Read::Lost("no message".to_owned())),
        Some(status) => return Err(Read::Said(status)), // headers only
        None => {}
    }
    if head.status != http::StatusCode::OK {
        return Err(Read::Lost(format!("HTTP status {} instead of gRPC", head.status)));
    }
    let body = Limited::new(body, MAX_ANSWER).collect().await;
    let body = body.map_err(|e| Read::Lost(chain(e.as_ref())))?;
    let trailers = body.trailers().cloned().unwrap_or_default();
    let status = Status::from_header_map(&trailers).ok_or_else(|| Read::Lost("no grpc-status".to_owned()))?;
    if status.code() != tonic::Code::Ok {
        return Err(Read::Said(status));
    }
    let message = unframe(body.to_bytes()).ok_or_else(|| Read::Lost("a garbled message".to_owned()))?;
    Ok(Answer { message, headers: head.headers })
}

/// Returns the one message of a body; `None` if it holds none, more than one, or a compressed one (which
/// we did not offer to read).
fn unframe(mut body: Bytes) -> Option<Bytes> {
    let prefix = body.split_to_checked(PREFIX)?;
    let length = u32::from_be_bytes(prefix.get(1..)?.try_into().ok()?);
    (prefix.first() == Some(&0) && body.len() == usize::try_from(length).ok()?).then_some(body)
}

trait SplitChecked: Sized {
    fn split_to_checked(&mut self, at: usize) -> Option<Self>;
}

impl SplitChecked for Bytes {
    fn split_to_checked(&mut self, at: usize) -> Option<Self> {
        (self.len() >= at).then(|| self.split_to(at))
    }
}

fn said(status: &Status) -> Error {
    Error::new(Code::of_peer(status.code()), status.message().to_owned())
}

/// The details are for the log; a caller of the gateway learns only which service failed.
fn lost(endpoint: &Endpoint, reason: &str) -> Error {
    let service = &endpoint.instance.service;
    tracing::info!(service, addr = endpoint.instance.addr, reason, "attempt failed");
    Error::unavailable(format!("{service} cannot be reached"))
}
