//! Receives the message of a call, within bounds of time and memory.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::request::Parts;
use http_body_util::{BodyExt as _, Limited};

use super::failure::Failure;
use crate::api::error::{Code, Error, chain};
use crate::limit::Permit;
use crate::server::admission::{Admission, BodyBytes, MAX_BODY, head_bytes};
use crate::server::{Peer, RequestBody};

/// Time for a whole message. The deadline does not bound it well: the caller chooses it, and it may be far away.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// Largest message of a health check or of reflection, bytes: a name and little more. tonic receives these itself, so
/// no limit of all bodies counts them.
pub const MAX_STANDARD_MESSAGE: usize = 4096;

/// Receives a message and takes a permit for its call.
///
/// # Errors
/// When the service is overloaded, or the message is too large, too slow or broken.
pub async fn receive(
    admission: &Admission,
    head: &Parts,
    body: RequestBody,
) -> Result<(Bytes, Permit), Failure> {
    let peer = head.extensions.get::<Peer>();
    admission.check_memory(peer)?;
    admission.check_in_flight()?;
    let read = std::pin::pin!(read(admission.body(peer), head_bytes(&head.uri, &head.headers), body));
    let message = crate::timeout::timeout(BODY_TIMEOUT, read).await;
    let message = message.map_err(|_| late())??;
    check_single(&message)?;
    Ok((message, admission.acquire()?))
}

/// Receives the message of a health check or watch, which needs no permit.
///
/// # Errors
/// When the message is too large, too slow or broken.
pub async fn receive_health_request(body: RequestBody) -> Result<Bytes, Failure> {
    let message =
        crate::timeout::timeout(BODY_TIMEOUT, Limited::new(body, MAX_STANDARD_MESSAGE).collect()).await;
    let message = message.map_err(|_| late())?.map_err(|error| {
        Error::bad("request", format!("could not be read to its end: {}", chain(error.as_ref())))
    })?;
    let message = message.to_bytes();
    check_single(&message)?;
    Ok(message)
}

fn late() -> Error {
    Error::new(Code::Timeout, "the request did not arrive in time")
}

/// Refuses a body with bytes after its first message. What a message must be is checked where it is decoded.
///
/// *Source*: grpc-go and grpc-java refuse such a call as INTERNAL, as tonic does a call without a message. gRPC's own list
/// of statuses says UNIMPLEMENTED, which would tell a caller that this server does not have the rpc.
fn check_single(body: &[u8]) -> Result<(), Error> {
    let [_compressed, a, b, c, d, rest @ ..] = body else { return Ok(()) };
    let length = u32::from_be_bytes([*a, *b, *c, *d]);
    if usize::try_from(length).is_ok_and(|length| rest.len() > length) {
        return Err(Error::new(Code::Internal, "the request has one message, this one has more"));
    }
    Ok(())
}

async fn read(mut account: BodyBytes<'_>, head: usize, mut body: RequestBody) -> Result<Bytes, Failure> {
    // the head waits as well, and there are as many as calls that have begun
    account.grow(head)?;
    let (mut first, mut more) = (Bytes::new(), BytesMut::new());
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            Error::bad("request", format!("could not be read to its end: {}", chain(&error)))
        })?;
        let Ok(part) = frame.into_data() else { continue };
        if first.len() + more.len() + part.len() > MAX_BODY {
            return Err(Error::bad("request", format!("is over {MAX_BODY} bytes")).into());
        }
        account.grow(part.len())?;
        if first.is_empty() {
            first = part; // usually the only part, which then is not copied
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
