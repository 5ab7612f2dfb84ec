//! The last layer: one unary gRPC exchange over a connection, as bytes. Frames the request, reads the answer
//! and its trailers; what an exchange that ended otherwise means is decided in [`crate::client::transport::outcome`].
//!
//! Not tonic's client, because it hides who said what: a reset, a GOAWAY and a refused connection reach
//! its caller as Unknown, Internal or Cancelled, as if the service had said so.

use std::sync::Arc;

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderValue, Request, Response, header};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use tonic::Status;

use crate::api::error::code_name;
use crate::api::error::{Code, Error, chain};
use crate::api::headers::{INSTANCE, SERVICE, WRONG_SERVICE};
use crate::client::call::{Answer, Call, Outcome, Reach, layer};
use crate::client::transport::outcome::{self, Ended, fold};
use crate::client::transport::pool::{Pool, Shared};
use crate::telemetry::trace::{Span, Trace};

/// Largest answer, bytes: the most content an answer carries, twice over for its frame and ids.
const MAX_ANSWER: usize = 2 * crate::api::validate::MAX_ANSWER;
/// Compression flag and length before each message.
const PREFIX: usize = 5;

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

/// The end of the path: sends a call over the pool of one instance.
#[derive(Clone)]
pub struct Exchange {
    service: &'static str,
    pool: Arc<Pool>,
    /// What is told of the instance that answers.
    answered: Arc<dyn Fn(&HeaderValue) + Send + Sync>,
}

impl Exchange {
    /// Returns the end of the path to an instance of `service`. `answered` is told the id in each answer.
    pub fn new(
        service: &'static str,
        pool: Arc<Pool>,
        answered: impl Fn(&HeaderValue) + Send + Sync + 'static,
    ) -> Self {
        Self { service, pool, answered: Arc::new(answered) }
    }

    async fn run(&self, call: Call) -> Outcome {
        let Some(mut on) = self.pool.pick() else {
            return fold(self.service, Ended::Kept("not connected".to_owned()));
        };
        let (trace, mut span) = call.context.trace.attempt(call.rpc, &self.pool.shared.addr);
        let before = call.context.previous_attempts.saturating_sub(call.attempts_above);
        span.tag("attempt", u64::from(before) + 1);
        span.tag("deadline_ms", call.context.remaining());
        let ended = self.exchange(on.live.sender.clone(), &call, &trace).await;
        on.ended();
        if !matches!(ended, Ended::Answered(_)) {
            let (_, trace_id) = call.context.ids();
            tracing::debug!(addr = self.pool.shared.addr, rpc = call.rpc.path(), %ended, %trace_id, "attempt failed");
        }
        let breaks = matches!(&ended, Ended::Failed(e) | Ended::BrokenOff(e) if !outcome::is_reset(e));
        let reason = format!("{}: {ended}", call.rpc.method());
        let mut folded = fold(self.service, ended);
        if let Err(failure) = &mut folded {
            failure.broken = breaks.then_some(on.live.number);
            if matches!(failure.error.code, Code::Unavailable | Code::Timeout | Code::Internal) {
                self.pool.note(reason);
            }
        }
        match &folded {
            // it never left, and is no attempt
            Err(failure) if failure.reach == Reach::Kept => span.discard(),
            _ => describe(span, &folded),
        }
        folded
    }

    async fn exchange(&self, mut sender: SendRequest<Full<Bytes>>, call: &Call, trace: &Trace) -> Ended {
        let Shared { addr, identity, .. } = &*self.pool.shared;
        let mut request = match request(addr, identity, call.rpc.path(), call.framed.clone()) {
            Ok(request) => request,
            Err(reason) => return Ended::Kept(reason),
        };
        call.context.write(request.headers_mut());
        trace.write(request.headers_mut());
        let response = match sender.try_send_request(request).await {
            Ok(response) => response,
            Err(mut error) => {
                let unsent = error.take_message().is_some();
                let error = error.into_error();
                return if unsent { Ended::Unsent(error) } else { Ended::Failed(error) };
            }
        };
        if let Some(other) = response.headers().get(WRONG_SERVICE) {
            self.pool.is_another_service(other);
            return Ended::WrongService;
        }
        if let Some(id) = response.headers().get(INSTANCE) {
            (self.answered)(id);
        }
        read(response).await
    }
}
layer!(Exchange);

/// Ends the span of an attempt.
fn describe(mut span: Span, outcome: &Outcome) {
    match outcome {
        Ok(answer) => {
            span.tag("grpc.status_code", code_name(tonic::Code::Ok));
            if let Some(id) = answer.headers.get(INSTANCE) {
                span.tag("instance", id);
            }
        }
        Err(failure) => {
            let code = code_name(failure.error.code.grpc());
            span.tag("grpc.status_code", code);
            if matches!(failure.error.code, Code::Unavailable | Code::Timeout | Code::Internal) {
                span.fail(code);
            }
        }
    }
    span.end();
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

/// Reads the answer of a unary call.
pub async fn read(response: Response<Incoming>) -> Ended {
    let (head, body) = response.into_parts();
    match Status::from_header_map(&head.headers) {
        Some(status) if status.code() == tonic::Code::Ok => return Ended::Garbled("no message".to_owned()),
        Some(status) => return Ended::Said(status), // headers only
        None => {}
    }
    if head.status != http::StatusCode::OK {
        return Ended::Garbled(format!("HTTP status {} instead of gRPC", head.status));
    }
    let body = match Limited::new(body, MAX_ANSWER).collect().await {
        Ok(body) => body,
        Err(error) if error.is::<LengthLimitError>() => return Ended::TooLong,
        Err(error) => {
            return match error.downcast::<hyper::Error>() {
                Ok(error) => Ended::BrokenOff(*error),
                Err(error) => Ended::Garbled(chain(error.as_ref())),
            };
        }
    };
    let Some(status) = body.trailers().and_then(Status::from_header_map) else {
        return Ended::Garbled("no grpc-status".to_owned());
    };
    if status.code() != tonic::Code::Ok {
        return Ended::Said(status);
    }
    match unframe(body.to_bytes()) {
        Some(message) => Ended::Answered(Answer { message, headers: head.headers, earlier: 0 }),
        None => Ended::Garbled("a garbled message".to_owned()),
    }
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
