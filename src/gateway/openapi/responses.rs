//! The answers of the API: those that succeed, by what they carry, and the problems, by status.

use http::{StatusCode, header};
use serde_json::{Map, Value, json};

use super::super::headers::{ANSWER_HEADERS, AnswerHeader, On};
use super::super::kind::{KINDS, Kind, PREFIX};
use super::super::routes::Answer;
use super::{component, schemas};

/// What the HTTP library answers by itself, too, without a body and headers.
const BY_THE_LIBRARY: [StatusCode; 2] =
    [StatusCode::URI_TOO_LONG, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE];

/// Of requests without the right.
pub const WITHOUT_RIGHT: [StatusCode; 2] = [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN];

/// Returns the answer of an operation that succeeds, with the headers that fit.
pub fn answered(answer: Answer, links: &Value, fits: impl Fn(On) -> bool) -> Value {
    let (schema, example) = schemas::of(answer);
    let mut response = json!({
        "description": if answer == Answer::Done { "It is done." } else { "What was asked for." },
        "headers": headers_of(fits),
        "content": {"application/json": {
            "schema": {"$ref": format!("#/components/schemas/{schema}")},
            "example": example,
        }},
    });
    if links.as_object().is_some_and(|links| !links.is_empty()) {
        response["links"] = links.clone();
    }
    response
}

/// Returns the answers of an operation that fails: these kinds.
pub fn of_kinds(kinds: &[&'static Kind]) -> Map<String, Value> {
    let statuses = kinds.iter().map(|kind| kind.status);
    statuses.map(|status| (status.as_str().to_owned(), reference(status))).collect()
}

/// Returns a reference to the answer with a status.
pub fn reference(status: StatusCode) -> Value {
    json!({"$ref": format!("#/components/responses/{}", name(status))})
}

/// Returns every failing answer by its name; those about tokens only with `auth`.
pub fn all(auth: bool) -> Map<String, Value> {
    let there = KINDS.iter().filter(|kind| auth || !WITHOUT_RIGHT.contains(&kind.status));
    there.map(|kind| (name(kind.status), problem(kind.status))).collect()
}

/// Returns the answer with a status: each of its kinds is an example.
fn problem(status: StatusCode) -> Value {
    let kinds = || KINDS.iter().filter(|kind| kind.status == status);
    let examples: Map<String, Value> = kinds().map(|kind| (kind.name.to_owned(), example(kind))).collect();
    let mut meaning: Vec<_> = kinds().map(|kind| format!("`{}`: {}.", kind.name, kind.when)).collect();
    if status == StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE {
        meaning.push("Without a body: the HTTP library refuses a head that is too large.".to_owned());
    }
    let fits = |on| match on {
        On::Every => true,
        On::Status(statuses) => statuses.contains(&status.as_u16()),
        _ => false,
    };
    let headers = match status {
        status if BY_THE_LIBRARY.contains(&status) => {
            let fitting = ANSWER_HEADERS.iter().filter(|header| fits(header.on));
            fitting.map(|header| (header.name.to_string(), described(header, false))).collect()
        }
        _ => headers_of(fits),
    };
    json!({
        "description": meaning.join(" "),
        "headers": headers,
        "content": {"application/problem+json": {
            "schema": {"$ref": "#/components/schemas/Problem"},
            "examples": examples,
        }},
    })
}

fn example(kind: &Kind) -> Value {
    let mut value = json!({
        "type": format!("{PREFIX}{}", kind.name),
        "title": kind.status.canonical_reason(),
        "status": kind.status.as_u16(),
        "detail": kind.when,
        "trace_id": "80f198ee56343ba864fe8b2a57d3eff7",
    });
    if kind.status == StatusCode::BAD_REQUEST {
        value["detail"] = json!("must be an integer that fits in 64 bits");
        value["field"] = json!("user_id");
    }
    json!({"summary": format!("{}.", kind.when), "value": value})
}

/// Returns references to the headers that fit.
pub fn headers_of(fits: impl Fn(On) -> bool) -> Map<String, Value> {
    let fitting = ANSWER_HEADERS.iter().filter(|header| fits(header.on));
    let reference = |name: &str| json!({"$ref": format!("#/components/headers/{}", component(name))});
    fitting.map(|header| (header.name.to_string(), reference(header.name.as_str()))).collect()
}

/// Returns every header by its component's name; the challenge only with `auth`.
pub fn headers(auth: bool) -> Map<String, Value> {
    let there = ANSWER_HEADERS.iter().filter(|header| auth || header.name != header::WWW_AUTHENTICATE);
    let all = there.map(|header| {
        let required = matches!(header.on, On::Every | On::File | On::Status(_));
        (component(header.name.as_str()), described(header, required))
    });
    all.collect()
}

fn described(header: &AnswerHeader, required: bool) -> Value {
    let mut schema = json!({"type": "string"});
    if !header.pattern.is_empty() {
        schema["pattern"] = json!(header.pattern);
    }
    json!({"description": header.about, "required": required, "schema": schema, "example": header.example})
}

/// Returns the name of the answer with a status: `BadRequest`.
fn name(status: StatusCode) -> String {
    let words = status.canonical_reason().unwrap_or("Error").split(|c: char| !c.is_ascii_alphanumeric());
    words.collect()
}
