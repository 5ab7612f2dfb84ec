//! The description of the API, OpenAPI 3.1: made from the tables of routes, headers and problems.
//!
//! docs/openapi.json is the same text; a test compares them.

mod access;
mod responses;
mod schemas;

use std::sync::LazyLock;

use http::Method;
use serde_json::{Map, Value, json};

use self::responses::{answered, headers_of, of_kinds};
use super::auth::Auth;
use super::headers::{On, REQUEST_HEADERS};
use super::kind::{self, KINDS, Kind};
use super::parameter::{Parameter, Range};
use super::routes::{Answer, ROUTES, Route};
use crate::build_info::PACKAGE_VERSION;

/// The path of [`text`].
pub const PATH: &str = "/openapi.json";

const ABOUT: &str = "\
The HTTP API of a microservice system: feeds, profiles and topics.

- A GET route also answers HEAD. `OPTIONS` answers with the methods of a route in the header `allow`.
- An error is `application/problem+json` (RFC 9457). What the HTTP library refuses before the gateway sees it has a status \
and no body: 431, a path and query of 64 KiB and more (414), bytes that are not HTTP/1.1 (400).
- A parameter or member that is unknown, missing or given twice is refused. A PUT takes no query, GET and DELETE take no \
body.
- Every write replaces or deletes by key, so it is safe to repeat.
- Ids have up to 63 bits. A client in JavaScript has to read and write those above 2^53 as text.";

/// Returns the description, JSON with a newline at its end.
#[must_use]
pub fn text() -> &'static str {
    static TEXT: LazyLock<String> = LazyLock::new(|| format!("{:#}\n", document(None)));
    &TEXT
}

/// Returns the description of a gateway whose callers need tokens.
#[must_use]
pub fn with_access(auth: &Auth) -> String {
    format!("{:#}\n", document(Some(auth)))
}

fn document(auth: Option<&Auth>) -> Value {
    let described = |route: &'static Route| {
        let mut operation = operation(route);
        if let Some(auth) = auth {
            access::add(&mut operation, auth.access(route));
        }
        (route.path.to_owned(), path_item(&route.method, operation))
    };
    let mut paths: Map<String, Value> = ROUTES.iter().map(described).collect();
    paths.insert(PATH.to_owned(), path_item(&Method::GET, itself()));
    let mut document = json!({
        "openapi": "3.1.0",
        "info": {
            "title": "microservice-app",
            "version": PACKAGE_VERSION,
            "summary": "Feeds, profiles and topics.",
            "description": ABOUT,
            "license": {"name": "Apache License 2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/", "description": "The gateway that serves this description."}],
        "security": [],
        "tags": [
            {"name": "feed", "description": "What users say."},
            {"name": "profile", "description": "Who users are."},
            {"name": "topic", "description": "What is talked about."},
            {"name": "description", "description": "This description."},
        ],
        "paths": paths,
        "components": {
            "schemas": schemas::all(),
            "parameters": REQUEST_HEADERS.iter().map(|header| (component(header.name.as_str()), request_header(header.name.as_str()))).collect::<Map<_, _>>(),
            "headers": responses::headers(auth.is_some()),
            "responses": responses::all(auth.is_some()),
        },
    });
    if auth.is_some() {
        document["components"]["securitySchemes"] = access::schemes();
    }
    document
}

fn path_item(method: &Method, operation: Value) -> Value {
    Value::Object([(method.as_str().to_ascii_lowercase(), operation)].into_iter().collect())
}

fn operation(route: &Route) -> Value {
    let tag = route.path.split('/').nth(2).unwrap_or_default();
    let mut parameters = common_parameters();
    let mut operation = json!({
        "operationId": route.name,
        "summary": route.description.trim_end_matches('.'),
        "description": route.description,
        "tags": [tag],
        "responses": responses(route),
    });
    if route.method == Method::PUT {
        operation["requestBody"] = body(route.input);
    } else {
        parameters.splice(0..0, route.input.iter().map(query_parameter));
    }
    operation["parameters"] = parameters.into();
    operation
}

/// The operation that answers with this description.
fn itself() -> Value {
    let mut parameters = common_parameters();
    let about =
        "The `etag` of a description that the caller has. If it is still this one, the answer is 304.";
    parameters.insert(
        0,
        json!({"name": "if-none-match", "in": "header", "required": false, "description": about,
        "schema": {"type": "string"}, "example": "\"0123456789abcdef\""}),
    );
    let headers = headers_of(|on| on == On::Every || on == On::File);
    let schema = json!({"type": "object", "required": ["openapi", "info", "paths"], "properties": {
        "openapi": {"type": "string", "pattern": "^3\\.1\\."}, "info": {"type": "object"}, "paths": {"type": "object"}}});
    let mut responses = of_kinds(
        &usual_kinds()
            .filter(|kind| kind.name != kind::TIMEOUT.name && kind.name != kind::UNAVAILABLE.name)
            .collect::<Vec<_>>(),
    );
    responses.insert(
        "200".to_owned(),
        json!({"description": "The description.", "headers": headers,
        "content": {"application/json": {"schema": schema}}}),
    );
    responses.insert(
        "304".to_owned(),
        json!({"description": "The caller has this description.", "headers": headers}),
    );
    json!({
        "operationId": "get_openapi",
        "summary": "Returns this description",
        "description": "Returns this description of the API.",
        "tags": ["description"],
        "parameters": parameters,
        "responses": responses,
    })
}

/// The answers of a route, by status.
fn responses(route: &Route) -> Map<String, Value> {
    let mut kinds: Vec<_> = usual_kinds().collect();
    if route.method == Method::PUT {
        kinds.extend([&kind::SLOW_REQUEST, &kind::BODY_TOO_LARGE, &kind::UNSUPPORTED_MEDIA_TYPE]);
    } else if route.input.iter().any(|parameter| parameter.required) {
        // it reads or deletes what is named
        kinds.push(&kind::NOT_FOUND);
    }
    let mut responses = of_kinds(&kinds);
    responses.insert(
        "200".to_owned(),
        answered(route.answer, &links(route.name), |on| match on {
            On::Every | On::Service => true,
            On::Read => route.method == Method::GET,
            On::Shortened => route.answer == Answer::Feeds,
            On::File | On::Status(_) => false,
        }),
    );
    responses
}

/// The kinds of problems that every route has.
fn usual_kinds() -> impl Iterator<Item = &'static Kind> {
    let usual = [
        &kind::BAD_REQUEST,
        &kind::METHOD_NOT_ALLOWED,
        &kind::URI_TOO_LONG,
        &kind::EXPECTATION_FAILED,
        &kind::MISDIRECTED_REQUEST,
        &kind::TOO_MANY_REQUESTS,
        &kind::TOO_MANY_FIELDS,
        &kind::INTERNAL,
        &kind::UNAVAILABLE,
        &kind::OVERLOADED,
        &kind::TIMEOUT,
    ];
    KINDS.iter().copied().filter(move |kind| usual.contains(kind))
}

/// What a caller may do next with the answer of an operation.
fn links(operation: &str) -> Value {
    let body = |member: &str| format!("$request.body#/{member}");
    match operation {
        "create_feed" => json!({
            "get_feeds": {"operationId": "get_feeds", "description": "The feeds of the user, this one among them.",
                "parameters": {"user_id": body("user_id")}},
            "delete_feed": {"operationId": "delete_feed", "description": "Deletes the feed.",
                "parameters": {"user_id": body("user_id"), "id": body("id")}},
        }),
        "put_profile" => json!({
            "get_profile": {"operationId": "get_profile", "description": "The profile.",
                "parameters": {"user_id": body("user_id")}},
        }),
        "put_topic" => json!({
            "get_topic": {"operationId": "get_topic", "description": "The topic.",
                "parameters": {"topic_id": body("topic_id")}},
        }),
        _ => json!({}),
    }
}

fn common_parameters() -> Vec<Value> {
    let reference = |name: &str| json!({"$ref": format!("#/components/parameters/{}", component(name))});
    REQUEST_HEADERS.iter().map(|header| reference(header.name.as_str())).collect()
}

fn request_header(name: &str) -> Value {
    let Some(header) = REQUEST_HEADERS.iter().find(|header| header.name == name) else { return Value::Null };
    let example = match header.range {
        Some(Range::Integer { .. }) => header.example.parse::<i64>().map_or(Value::Null, Value::from),
        _ => header.example.into(),
    };
    let schema = header.range.map_or_else(|| json!({"type": "string"}), Range::schema);
    json!({"name": name, "in": "header", "required": false, "description": header.about, "schema": schema,
        "example": example})
}

fn query_parameter(parameter: &Parameter) -> Value {
    json!({
        "name": parameter.name,
        "in": "query",
        "required": parameter.required,
        "description": format!("{}{}", parameter.about, parameter.range.note()),
        "schema": parameter.range.schema(),
        "example": Value::from(parameter.example),
    })
}

fn body(members: &[Parameter]) -> Value {
    let required: Vec<_> =
        members.iter().filter(|member| member.required).map(|member| member.name).collect();
    let example: Map<String, Value> =
        members.iter().map(|member| (member.name.to_owned(), member.example.into())).collect();
    json!({
        "required": true,
        "description": "Read as JSON, whatever `content-type` says.",
        "content": {"application/json": {
            "schema": {
                "type": "object",
                "properties": schemas::properties(members),
                "required": required,
                "additionalProperties": false,
            },
            "example": example,
        }},
    })
}

/// Returns the name of a component for a header: `XRequestId`.
fn component(header: &str) -> String {
    let capital = |word: &str| {
        let (first, rest) = word.split_at(word.len().min(1));
        format!("{}{rest}", first.to_ascii_uppercase())
    };
    header.split('-').map(capital).collect()
}
