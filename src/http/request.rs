//! Reads what a caller sent: query parameters and JSON bodies. Whatever is wrong is named: the field,
//! and what it should be. What is not understood is refused, so that nothing accepted is lost.

use bytes::{Buf, Bytes, BytesMut};
use futures_util::stream::{BoxStream, StreamExt as _};
use http::Method;
use percent_encoding::percent_decode_str;
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::Value;
use warp::{Filter, Rejection};

use super::App;
use super::reply::Problem;
use crate::context::Context;
use crate::error::Error;

/// Largest request body, bytes.
const MAX_BODY: usize = 256 * 1024;
/// Longest part of an unknown name that is repeated to the caller, characters.
const MAX_ECHO: usize = 64;
/// What an id must be.
const INTEGER: &str = "must be an integer that fits in 64 bits";

/// A request that has found its route.
pub struct Request {
    /// Any method; the route says which it takes.
    pub method: Method,
    /// Its deadline and ids.
    pub context: Context,
    query: String,
    body: BoxStream<'static, Result<Bytes, warp::Error>>,
}

/// Extracts a [`Request`]; rejects nothing.
pub fn filter() -> impl Filter<Extract = (Request,), Error = Rejection> + Clone {
    let query = warp::query::raw().or(warp::any().map(String::new)).unify();
    warp::method()
        .and(warp::ext::get::<Context>())
        .and(query)
        .and(warp::body::stream())
        .map(|method, context, query, body| Request { method, context, query, body: as_bytes(body) })
}

fn as_bytes<S, B>(body: S) -> BoxStream<'static, Result<Bytes, warp::Error>>
where
    S: futures_util::Stream<Item = Result<B, warp::Error>> + Send + 'static,
    B: Buf,
{
    body.map(|part| part.map(|mut part| part.copy_to_bytes(part.remaining()))).boxed()
}

impl Request {
    /// Returns the query parameters.
    pub fn query(&self) -> Result<Fields, Problem> {
        let mut fields = Fields { textual: true, ..Fields::default() };
        // an empty pair is harmless: the original's README has `?user_id=123&&size=2`
        for pair in self.query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let name = decode(name).ok_or_else(|| Error::bad("query", "must be UTF-8"))?;
            let value = decode(value).ok_or_else(|| Error::bad(echo(&name), "must be UTF-8"))?;
            fields.add(name, Value::String(value)).map_err(|name| Error::bad(name, "is given twice"))?;
        }
        Ok(fields)
    }

    /// Reads the body and returns its members, which must be those of one JSON object.
    pub async fn json(self, app: &App) -> Result<Fields, Problem> {
        let body = match tokio::time::timeout(app.body_timeout, read(self.body)).await {
            Ok(body) => body?,
            Err(_) => return Err(Problem::slow_body()),
        };
        let fields: Result<Fields, _> = serde_json::from_slice(&body);
        fields.map_err(|error| {
            let text = error.to_string();
            let twice = text.strip_prefix(TWICE).and_then(|rest| rest.split_once('\n'));
            match twice {
                Some((name, _)) => Error::bad(name.to_owned(), "is given twice").into(),
                None => Error::bad("body", format!("must be a JSON object: {text}")).into(),
            }
        })
    }
}

async fn read(mut parts: BoxStream<'static, Result<Bytes, warp::Error>>) -> Result<BytesMut, Problem> {
    let mut body = BytesMut::new();
    while let Some(part) = parts.next().await {
        let part = part.map_err(|_| Error::bad("body", "could not be read to its end"))?;
        if body.len() + part.len() > MAX_BODY {
            return Err(Problem::body_too_large(MAX_BODY));
        }
        body.extend_from_slice(&part);
    }
    Ok(body)
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
    fn add(&mut self, name: String, value: Value) -> Result<(), String> {
        if self.values.iter().any(|(known, _)| *known == name) {
            return Err(echo(&name));
        }
        self.values.push((name, value));
        Ok(())
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

/// How a doubled member's name gets through serde's error text; the line feed cannot be part of it.
const TWICE: &str = "given twice: ";

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Fields;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut fields = Fields::default();
                while let Some((name, value)) = map.next_entry()? {
                    fields
                        .add(name, value)
                        .map_err(|name| A::Error::custom(format!("{TWICE}{}\n", name.replace('\n', " "))))?;
                }
                Ok(fields)
            }
        }
        deserializer.deserialize_map(Members)
    }
}
