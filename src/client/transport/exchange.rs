//! The last layer: one unary gRPC exchange over a connection of the pool, as bytes. What its end means is decided
//! in [`crate::client::transport::outcome`].
//!
//! It is not tonic's client, because that hides the cause of a failure: a reset, a GOAWAY and a refused
//! connection reach its caller as Unknown, Internal or Cancelled, as if the service had answered so.

use std::sync::Arc;

use http::HeaderValue;
use http::uri::Authority;

use crate::api::error::{Code, chain, code_name};
use crate::api::headers::{INSTANCE, WRONG_SERVICE};
use crate::client::call::{Attempt, Call, CallLayer, Delivery, Outcome};
use crate::client::transport::connection::RequestSender;
use crate::client::transport::outcome::{self, ExchangeEnd, fold};
use crate::client::transport::pool::Pool;
use crate::client::transport::wire;
use crate::telemetry::trace::{Span, Trace};

/// Sends calls over the pool of one instance.
#[derive(Clone)]
pub struct Exchange {
    service: &'static str,
    pool: Arc<Pool>,
    /// The address of the instance, or why it is none.
    authority: Result<Authority, String>,
    /// Called with the instance id in each answer.
    on_answer: Arc<dyn Fn(&HeaderValue) + Send + Sync>,
}

impl Exchange {
    /// Returns the last layer to an instance of `service`. `on_answer` is called with the instance id in each
    /// answer.
    pub fn new(
        service: &'static str,
        pool: Arc<Pool>,
        on_answer: impl Fn(&HeaderValue) + Send + Sync + 'static,
    ) -> Self {
        let authority = wire::authority(pool.addr());
        Self { service, pool, authority, on_answer: Arc::new(on_answer) }
    }

    async fn exchange(&self, mut sender: RequestSender, call: &Call, trace: &Trace) -> ExchangeEnd {
        let request = match &self.authority {
            Ok(addr) => wire::request_to(addr, self.pool.identity(), call.rpc.path(), call.framed.clone()),
            Err(reason) => Err(reason.clone()),
        };
        let mut request = match request {
            Ok(request) => request,
            Err(reason) => return ExchangeEnd::NotSent(reason),
        };
        call.context.write(request.headers_mut());
        trace.write(request.headers_mut());
        let response = match sender.try_send_request(request).await {
            Ok(response) => response,
            Err(mut error) => {
                // hyper hands back a request that it has not sent
                let unsent = error.take_message().is_some();
                let error = error.into_error();
                return if unsent {
                    ExchangeEnd::NotSent(chain(&error))
                } else {
                    ExchangeEnd::NoResponse(error)
                };
            }
        };
        if let Some(other) = response.headers().get(WRONG_SERVICE) {
            self.pool.note_wrong_service(other);
            return ExchangeEnd::WrongService;
        }
        if let Some(id) = response.headers().get(INSTANCE) {
            (self.on_answer)(id);
        }
        wire::read_answer(response).await
    }
}

impl CallLayer for Exchange {
    async fn send(&self, call: Call) -> Outcome {
        let Some(mut on_connection) = self.pool.pick() else {
            return fold(self.service, ExchangeEnd::NotSent("not connected".to_owned()));
        };
        call.attempt.set_check(on_connection.suspect());
        let (trace, span) = call.context.trace.attempt(call.rpc, self.pool.addr());
        let mut span = AttemptSpan { span, attempt: &call.attempt };
        if !span.span.is_empty() {
            let before = call.context.previous_attempts.saturating_sub(call.inherited_attempts);
            span.span.tag("attempt", u64::from(before) + 1);
            span.span.tag("deadline_ms", call.context.remaining());
            if call.hedge {
                span.span.tag("hedge", "sent");
            }
        }
        let end = self.exchange(on_connection.sender(), &call, &trace).await;
        on_connection.set_ended(matches!(end, ExchangeEnd::Answered(_) | ExchangeEnd::Status(_)));
        let mut reason = None;
        let mut broke = false;
        if !matches!(end, ExchangeEnd::Answered(_)) {
            let (addr, (_, trace_id)) = (self.pool.addr(), call.context.ids());
            tracing::debug!(addr, rpc = call.rpc.path(), reason = %end, %trace_id, "attempt failed");
            broke = outcome::broke_connection(&end);
            reason = Some(format!("{}: {end}", call.rpc.method()));
        }
        let mut outcome = fold(self.service, end);
        if let Err(failure) = &mut outcome {
            failure.broken_connection = broke.then(|| on_connection.connection_number());
            if let Some(reason) = reason
                && matches!(failure.error.code, Code::Unavailable | Code::Timeout | Code::Internal)
            {
                self.pool.note_error(reason);
            }
        }
        match &outcome {
            // it was not sent, so it was not an attempt
            Err(failure) if failure.delivery == Delivery::NotSent => span.take().discard(),
            _ => end_span(span.take(), &outcome),
        }
        outcome
    }
}

/// The span of an attempt under way. One that is dropped is recorded as cancelled, unless another attempt has won.
struct AttemptSpan<'a> {
    span: Span,
    attempt: &'a Attempt,
}

impl AttemptSpan<'_> {
    fn take(&mut self) -> Span {
        std::mem::replace(&mut self.span, Span::empty())
    }
}

impl Drop for AttemptSpan<'_> {
    fn drop(&mut self) {
        if self.attempt.is_lost() {
            let mut span = self.take();
            span.tag("hedge", "lost");
            span.end();
        }
    }
}

/// Ends the span of an attempt.
fn end_span(mut span: Span, outcome: &Outcome) {
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
