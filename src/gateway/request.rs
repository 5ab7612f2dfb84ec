//! Reads what a caller sent: query parameters and JSON bodies. An error names the field and what it should be.
//! Unknown fields are refused, so that nothing is accepted and then ignored.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use futures_util::stream::{Stream, StreamExt as _};
use http::{HeaderMap, header};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use percent_encoding::percent_decode_str;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;
use tokio::time::Instant;

use super::auth::owner::Owner;
use super::problem::Problem;
use crate::api::error::Error;
use crate::api::headers::REQUEST_TIMEOUT;
use crate::context::{Context, MAX_DEADLINE_MS};
use crate::limit::Permit;
use crate::server::admission::{Admission, MAX_BODY};
use crate::server::pause::Pauses;
use crate::server::{Input, Peer, RequestBody};

/// Most members of a body or a query; no route has more than four.
const MAX_FIELDS: usize = 16;
/// Most bytes of a refused body that are still read, and the time for that.
const DISCARD: usize = 1024 * 1024;
const DISCARD_TIME: Duration = Duration::from_millis(200);
/// Longest part of an unknown name that an error repeats, characters.
const MAX_ECHO: usize = 64;
/// What is wrong with a value that is required and not there.
const MISSING: &str = "is missing";
/// What an id has to be.
const INTEGER: &str = "must be an integer that fits in 64 bits";

/// A request that was accepted, on its way to its route.
#[derive(Clone)]
pub struct Accepted {
    /// Its deadline and ids.
    pub context: Context,
    /// Time for everything after the request has arrived.
    pub time_limit: Duration,
    /// Length of the body, bytes, if the caller announced it.
    pub length: Option<u64>,
    /// True if the caller sends its body only when it is asked to (100, Continue).
    pub expects: bool,
    /// Bytes that the head holds while the body comes.
    pub head: usize,
    /// Its connection on HTTP/2, where it carries many requests.
    pub peer: Option<Peer>,
    /// The limits of the gateway, for the body and for the permit.
    pub admission: Arc<Admission>,
    /// Pauses of this process, which may have held it back.
    pub pauses: Arc<Pauses>,
    /// What its caller sends.
    pub caller: Arc<Input>,
    /// The right that its caller has to show, for a route that is for owners.
    pub owner: Option<Owner>,
    /// True if the request has no permit yet and needs one once its body is complete.
    pub needs_permit: bool,
}

/// Returns the time limit that the caller set, if it set one.
pub fn time_limit(headers: &HeaderMap) -> Result<Option<Duration>, Error> {
    let mut given = headers.get_all(REQUEST_TIMEOUT).iter();
    let Some(value) = given.next() else {
        return Ok(None);
    };
    // `parse` alone takes a sign
    let digits = value.to_str().ok().filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
    match digits.and_then(|text| text.parse::<u64>().ok()) {
        Some(millis @ 1..=MAX_DEADLINE_MS) if given.next().is_none() => {
            Ok(Some(Duration::from_millis(millis)))
        }
        _ => Err(Error::bad(
            REQUEST_TIMEOUT.as_str().to_owned(),
            format!("must be one integer from 1 to {MAX_DEADLINE_MS}"),
        )),
    }
}

/// Returns the parameters of a query.
pub fn query(query: &str) -> Result<Fields, Problem> {
    // an empty pair is harmless: the original's README has `?user_id=123&&size=2`
    let mut pairs = Vec::with_capacity(4);
    for pair in query.split('&').filter(|pair| !pair.is_empty()).take(MAX_FIELDS + 1) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let name = decode(name).ok_or_else(|| Error::bad("query", "must be UTF-8"))?;
        let value = decode(value).ok_or_else(|| Error::bad(echo(&name), "must be UTF-8"))?;
        pairs.push((name, Value::String(value)));
    }
    Ok(Fields { textual: true, ..Fields::of("query", pairs)? })
}

/// Reads a body within `timeout` and takes the permit that its request needs. Returns the members of the JSON
/// object that the body has to be. The time limit of the request begins now: the services are not to blame for a
/// slow upload.
pub async fn body<S, B>(
    body: S,
    timeout: Duration,
    accepted: &mut Accepted,
) -> Result<(Fields, Option<Permit>), Problem>
where
    S: Stream<Item = Result<B, warp::Error>>,
    B: Buf,
{
    let mut parts = std::pin::pin!(body);
    if accepted.length.is_some_and(|length| length > MAX_BODY as u64) {
        // the end of the connection or a reset of the stream follows the answer, and a caller that still sends may see only that
        if !accepted.expects {
            let _ = tokio::time::timeout(DISCARD_TIME, discard(&mut parts)).await;
        }
        return Err(Problem::body_too_large(MAX_BODY));
    }
    let read = read(&mut parts, accepted);
    let body = match crate::timeout::timeout(timeout, read).await {
        Ok(Ok(body)) => body,
        Ok(Err(problem)) => {
            // a caller that is still sending would see a reset instead of the answer
            let _ = tokio::time::timeout(DISCARD_TIME, discard(&mut parts)).await;
            return Err(problem);
        }
        Err(_) => return Err(Problem::slow_body()),
    };
    let permit = if accepted.needs_permit { Some(accepted.admission.acquire()?) } else { None };
    let Members(members) = serde_json::from_slice(&body).map_err(|error| {
        // an error about another value repeats the whole value
        let detail = if error.is_data() { String::new() } else { format!(": {error}") };
        Error::bad("body", format!("must be a JSON object{detail}"))
    })?;
    accepted.context.deadline = Instant::now() + accepted.time_limit;
    Ok((Fields::of("body", members)?, permit))
}

async fn read<S, B>(parts: &mut S, accepted: &Accepted) -> Result<BytesMut, Problem>
where
    S: Stream<Item = Result<B, warp::Error>> + Unpin,
    B: Buf,
{
    let mut account = accepted.admission.body(accepted.peer.as_ref());
    // the head waits as well, and on HTTP/2 there are as many as requests that have begun
    account.grow(accepted.head)?;
    // room for the whole body; memory that is not written to costs nothing
    let length = accepted.length.and_then(|length| usize::try_from(length).ok()).unwrap_or_default();
    let mut body = BytesMut::with_capacity(length.min(MAX_BODY));
    while let Some(part) = parts.next().await {
        let part = part.map_err(|_| Error::bad("body", "could not be read to its end"))?;
        let size = part.remaining();
        if body.len() + size > MAX_BODY {
            return Err(Problem::body_too_large(MAX_BODY));
        }
        account.grow(size)?;
        bytes::BufMut::put(&mut body, part);
    }
    Ok(body)
}

/// Reads and drops the body of a refused request, as far as that is cheap: then the caller sees the answer, and
/// its connection stays open.
pub async fn discard_body(request: http::Request<RequestBody>) {
    // a caller that waits for 100 (Continue) has sent nothing yet
    if request.body().is_end_stream() || request.headers().contains_key(header::EXPECT) {
        return;
    }
    let mut parts = std::pin::pin!(request.into_body().into_data_stream());
    let _ = tokio::time::timeout(DISCARD_TIME, discard(&mut parts)).await;
}

/// Reads and drops at most [`DISCARD`] more bytes of a body.
async fn discard<B: Buf, E>(parts: &mut (impl Stream<Item = Result<B, E>> + Unpin)) {
    let mut left = DISCARD;
    while left > 0
        && let Some(Ok(part)) = parts.next().await
    {
        left = left.saturating_sub(part.remaining());
    }
}

/// Decodes one part of a query; `None` if the result is not UTF-8.
fn decode(text: &str) -> Option<String> {
    if !text.bytes().any(|byte| matches!(byte, b'+' | b'%')) {
        return Some(text.to_owned());
    }
    let spaced = text.replace('+', " ");
    Some(percent_decode_str(&spaced).decode_utf8().ok()?.into_owned())
}

/// Returns the part of a caller's name that an error may repeat.
fn echo(name: &str) -> String {
    name.chars().take(MAX_ECHO).collect()
}

/// The named values of a request. Handlers take out those that they know; [`Self::finish`] refuses the rest.
#[derive(Debug, Default)]
pub struct Fields {
    values: Vec<(String, Value)>,
    /// True if numbers are written as text, as in a query; in JSON `"1"` is not 1.
    textual: bool,
}

impl Fields {
    /// Checks that the names are distinct. If there are too many values, the error names `whole`.
    fn of(whole: &'static str, values: Vec<(String, Value)>) -> Result<Self, Error> {
        if values.len() > MAX_FIELDS {
            return Err(Error::bad(whole, format!("must have at most {MAX_FIELDS} members")));
        }
        for (at, (name, _)) in values.iter().enumerate() {
            if values.iter().take(at).any(|(earlier, _)| earlier == name) {
                return Err(Error::bad(echo(name), "is given twice"));
            }
        }
        Ok(Self { values, textual: false })
    }

    fn take(&mut self, name: &str) -> Option<Value> {
        let at = self.values.iter().position(|(known, _)| known == name)?;
        Some(self.values.swap_remove(at).1)
    }

    /// Takes out an integer that is required.
    pub fn integer(&mut self, name: &'static str) -> Result<i64, Problem> {
        let value = self.optional_integer(name)?;
        value.ok_or_else(|| Error::bad(name, MISSING).into())
    }

    /// Takes out an integer that may be missing.
    pub fn optional_integer(&mut self, name: &'static str) -> Result<Option<i64>, Problem> {
        self.take(name).map(|value| self.read_integer(name, &value)).transpose()
    }

    /// Returns an integer that is required, and leaves it there.
    pub fn peek_integer(&self, name: &'static str) -> Result<i64, Problem> {
        let found = self.values.iter().find(|(known, _)| known == name);
        let (_, value) = found.ok_or_else(|| Error::bad(name, MISSING))?;
        self.read_integer(name, value)
    }

    fn read_integer(&self, name: &'static str, value: &Value) -> Result<i64, Problem> {
        let parsed = match value {
            Value::Number(number) => number.as_i64().or_else(|| whole(number.as_f64()?)),
            Value::String(text) if self.textual && is_decimal(text) => text.parse().ok(),
            _ => None,
        };
        parsed.ok_or_else(|| Error::bad(name, INTEGER).into())
    }

    /// Takes out a string that is required.
    pub fn text(&mut self, name: &'static str) -> Result<String, Problem> {
        match self.take(name) {
            Some(Value::String(text)) => Ok(text),
            Some(_) => Err(Error::bad(name, "must be a string").into()),
            None => Err(Error::bad(name, MISSING).into()),
        }
    }

    /// Checks that no value is left.
    pub fn finish(self) -> Result<(), Problem> {
        match self.values.first() {
            Some((name, _)) => Err(Error::bad(echo(name), "is not known here").into()),
            None => Ok(()),
        }
    }
}

/// Returns the integer that a JSON number with a fraction or an exponent is: `1.0` and `1e0` are 1, for JSON Schema as well.
/// Only below 2^53: from there on several integers are read as the same number.
#[expect(clippy::cast_possible_truncation, reason = "it is whole and below 2^53")]
fn whole(number: f64) -> Option<i64> {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    (number.fract() == 0.0 && number.abs() < EXACT).then_some(number as i64)
}

fn is_decimal(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())
}

/// The members of a JSON object in their order, repeated names included; at most one more than is allowed.
struct Members(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Members;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    if members.len() <= MAX_FIELDS {
                        members.push(member);
                    }
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Collect)
    }
}
