//! Reads what a caller sent: query parameters and JSON bodies. Whatever is wrong is named: the field,
//! and what it should be. What is not understood is refused, so that nothing accepted is lost.

use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use futures_util::stream::{BoxStream, StreamExt as _};
use http::{Method, header};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use percent_encoding::percent_decode_str;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;
use tokio::time::Instant;
use warp::{Filter, Rejection};

use super::App;
use super::admit::Place;
use super::reply::Problem;
use crate::api::error::Error;
use crate::context::Context;

/// Largest request body, bytes.
const MAX_BODY: usize = 256 * 1024;
/// Most members of a body or a query; no route has more than four.
const MAX_FIELDS: usize = 16;
/// How much more of a refused body is read, bytes, and for how long.
const DISCARD: usize = 1024 * 1024;
const DISCARD_TIME: Duration = Duration::from_millis(200);
/// Longest part of an unknown name that is repeated to the caller, characters.
const MAX_ECHO: usize = 64;
/// What an id must be.
const INTEGER: &str = "must be an integer that fits in 64 bits";

/// The caller's time limit for everything after its request has arrived.
#[derive(Clone, Copy, Debug)]
pub struct Limit(pub Duration);

/// A request that has found its route.
pub struct Request {
    /// Any method; the route says which it takes.
    pub method: Method,
    /// Its deadline and ids.
    pub context: Context,
    limit: Limit,
    place: Place,
    query: String,
    /// The body's length, if the caller told it.
    length: Option<u64>,
    body: Body,
}

type Body = BoxStream<'static, Result<Bytes, warp::Error>>;

/// Extracts a [`Request`]; rejects only what has no [`Context`], [`Limit`] and [`Place`].
pub fn filter() -> impl Filter<Extract = (Request,), Error = Rejection> + Clone {
    let query = warp::query::raw().or(warp::any().map(String::new)).unify();
    warp::method()
        .and(warp::ext::get::<Context>())
        .and(warp::ext::get::<Limit>())
        .and(warp::ext::get::<Place>())
        .and(query)
        .and(warp::header::optional::<u64>("content-length"))
        .and(warp::body::stream())
        .map(|method, context, limit, place, query, length, body| {
            let body = as_bytes(body);
            Request { method, context, limit, place, query, length, body }
        })
}

fn as_bytes<S, B>(body: S) -> Body
where
    S: futures_util::Stream<Item = Result<B, warp::Error>> + Send + 'static,
    B: Buf,
{
    body.map(|part| part.map(|mut part| part.copy_to_bytes(part.remaining()))).boxed()
}

impl Request {
    /// Returns the query parameters.
    pub fn query(&self) -> Result<Fields, Problem> {
        // an empty pair is harmless: the original's README has `?user_id=123&&size=2`
        let pairs = self.query.split('&').filter(|pair| !pair.is_empty());
        let decoded = pairs.take(MAX_FIELDS + 1).map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let name = decode(name).ok_or_else(|| Error::bad("query", "must be UTF-8"))?;
            let value = decode(value).ok_or_else(|| Error::bad(echo(&name), "must be UTF-8"))?;
            Ok((name, Value::String(value)))
        });
        let pairs = decoded.collect::<Result<Vec<_>, Error>>()?;
        Ok(Fields { textual: true, ..Fields::of("query", pairs)? })
    }

    /// Reads the body, takes the request's place, and returns the body's members, which must be those of
    /// one JSON object, and the context for what follows: the deadline starts now, a slow upload is not
    /// the services' fault.
    pub async fn json(mut self, app: &App) -> Result<(Fields, Context), Problem> {
        if self.length.is_some_and(|length| length > MAX_BODY as u64) {
            return Err(Problem::body_too_large(MAX_BODY)); // before a 100 (Continue) invites it
        }
        let body = match tokio::time::timeout(
            app.body_timeout,
            read(&mut self.body, self.length, &self.place),
        )
        .await
        {
            Ok(Ok(body)) => body,
            Ok(Err(problem)) => {
                // a caller that still sends would see a reset instead of the answer
                let _ = tokio::time::timeout(DISCARD_TIME, discard(&mut self.body)).await;
                return Err(problem);
            }
            Err(_) => return Err(Problem::slow_body()),
        };
        self.place.claim()?;
        let Members(members) = serde_json::from_slice(&body)
            .map_err(|error| Error::bad("body", format!("must be a JSON object: {error}")))?;
        self.context.deadline = Instant::now() + self.limit.0;
        Ok((Fields::of("body", members)?, self.context))
    }
}

async fn read(parts: &mut Body, length: Option<u64>, place: &Place) -> Result<BytesMut, Problem> {
    // at most the largest body; what is not written to takes no memory
    let length = length.and_then(|length| usize::try_from(length).ok()).unwrap_or_default();
    let mut body = BytesMut::with_capacity(length.min(MAX_BODY));
    let mut account = place.body();
    while let Some(part) = parts.next().await {
        let part = part.map_err(|_| Error::bad("body", "could not be read to its end"))?;
        if body.len() + part.len() > MAX_BODY {
            return Err(Problem::body_too_large(MAX_BODY));
        }
        account.grow(part.len())?;
        body.extend_from_slice(&part);
    }
    Ok(body)
}

/// Reads and forgets a body that nobody wants, as far as that is cheap: then the caller sees the answer
/// and its connection can go on.
pub async fn discard_all(request: http::Request<Incoming>) {
    // whoever waits for 100 (Continue) has sent nothing, and is not to
    if request.body().is_end_stream() || request.headers().contains_key(header::EXPECT) {
        return;
    }
    let body = request.into_body().into_data_stream();
    let mut parts = std::pin::pin!(body);
    let _ = tokio::time::timeout(DISCARD_TIME, async {
        let mut left = DISCARD;
        while left > 0
            && let Some(Ok(part)) = parts.next().await
        {
            left = left.saturating_sub(part.len());
        }
    })
    .await;
}

/// Reads and forgets some more of a body.
async fn discard(parts: &mut Body) {
    let mut left = DISCARD;
    while left > 0
        && let Some(Ok(part)) = parts.next().await
    {
        left = left.saturating_sub(part.len());
    }
}

/// Decodes one part of a query; `None` if the result is not UTF-8.
fn decode(text: &str) -> Option<String> {
    let spaced = text.replace('+', " ");
    Some(percent_decode_str(&spaced).decode_utf8().ok()?.into_owned())
}

/// Returns as much of a caller's own name for something as is fit to repeat.
fn echo(name: &str) -> String {
    name.chars().take(MAX_ECHO).collect()
}

/// Named values, each taken out once; what is left at the end is unknown.
#[derive(Debug, Default)]
pub struct Fields {
    values: Vec<(String, Value)>,
    /// True if numbers come as text, as in a query; in JSON `"1"` is not 1.
    textual: bool,
}

impl Fields {
    /// Returns fields with distinct names; `whole` is what an error names if there are too many.
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

    /// Returns an integer that must be there.
    pub fn integer(&mut self, name: &'static str) -> Result<i64, Problem> {
        let value = self.optional_integer(name)?;
        value.ok_or_else(|| Error::bad(name, "is missing").into())
    }

    /// Returns an integer that may be left out.
    pub fn optional_integer(&mut self, name: &'static str) -> Result<Option<i64>, Problem> {
        let Some(value) = self.take(name) else {
            return Ok(None);
        };
        let parsed = match &value {
            Value::Number(number) => number.as_i64(),
            Value::String(text) if self.textual && is_decimal(text) => text.parse().ok(),
            _ => None,
        };
        parsed.map(Some).ok_or_else(|| Error::bad(name, INTEGER).into())
    }

    /// Returns a string that must be there.
    pub fn text(&mut self, name: &'static str) -> Result<String, Problem> {
        match self.take(name) {
            Some(Value::String(text)) => Ok(text),
            Some(_) => Err(Error::bad(name, "must be a string").into()),
            None => Err(Error::bad(name, "is missing").into()),
        }
    }

    /// Refuses what nobody asked for.
    pub fn finish(self) -> Result<(), Problem> {
        match self.values.first() {
            Some((name, _)) => Err(Error::bad(echo(name), "is not known here").into()),
            None => Ok(()),
        }
    }
}

fn is_decimal(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())
}

/// The members of a JSON object as they come, doubled ones too; at most one more than is allowed.
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
