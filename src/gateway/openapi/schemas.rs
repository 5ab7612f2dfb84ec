//! The JSON Schemas of bodies.

use serde_json::{Map, Value, json};

use super::super::headers::TRACE_ID_PATTERN;
use super::super::kind::{KINDS, PREFIX};
use super::super::parameter::{Parameter, Range};
use super::super::routes::Answer;
use crate::api::validate::{MAX_CONTENT, MAX_NAME, MAX_SIZE, MIN_ID, PROFILE_FEEDS};

/// Returns the schemas of the members of a body, by name.
pub fn properties(members: &[Parameter]) -> Map<String, Value> {
    let described = members.iter().map(|member| {
        let mut schema = member.range.schema();
        schema["description"] = json!(format!("{}{}", member.about, member.range.note()));
        (member.name.to_owned(), schema)
    });
    described.collect()
}

/// Returns the name of the schema of an answer, and an example.
pub fn of(answer: Answer) -> (&'static str, Value) {
    let feed = json!({"id": 100, "user_id": 123, "content": "hello world"});
    match answer {
        Answer::Done => ("Done", json!({})),
        Answer::Feeds => ("Feeds", json!({"feeds": [feed]})),
        Answer::Profile => (
            "Profile",
            json!({"user_id": 123, "name": "Ada", "company": "Acme", "title": "engineer", "feeds": [feed]}),
        ),
        Answer::Topic => ("Topic", json!({"topic_id": 1, "subject": "rust", "content": "a language"})),
        Answer::Topics => ("Topics", json!({"topics": [{"topic_id": 1, "subject": "rust"}], "next": 1})),
    }
}

/// Returns every schema by its name.
pub fn all() -> Value {
    let id = |about: &str| described(Range::integer(MIN_ID, i64::MAX), about);
    let content = |about: &str| described(Range::Text { max: MAX_CONTENT }, about);
    let name = |about: &str| described(Range::Text { max: MAX_NAME }, about);
    let list = |of: &str, most: i64, about: &str| {
        json!({"type": "array", "maxItems": most, "description": about,
            "items": {"$ref": format!("#/components/schemas/{of}")}})
    };
    json!({
        "Done": object("It is done.", &[]),
        "Feed": object("A feed.", &[
            ("id", id("The feed, unique among those of its user.")),
            ("user_id", id("The user.")),
            ("content", content("The text of the feed.")),
        ]),
        "Feeds": object("A page of feeds.", &[
            ("feeds", list("Feed", MAX_SIZE, "In ascending order of their ids.")),
        ]),
        "Profile": object("A profile with feeds.", &[
            ("user_id", id("The user.")),
            ("name", name("The name of the user.")),
            ("company", name("Whom the user works for.")),
            ("title", name("What the user does there.")),
            ("feeds", list("Feed", PROFILE_FEEDS, "The newest feeds, in ascending order of their ids.")),
        ]),
        "Topic": object("A topic.", &[
            ("topic_id", id("The topic.")),
            ("subject", name("What the topic is about.")),
            ("content", content("The text of the topic.")),
        ]),
        "TopicSummary": object("A topic without its text.", &[
            ("topic_id", id("The topic.")),
            ("subject", name("What the topic is about.")),
        ]),
        "Topics": object("A page of topics.", &[
            ("topics", list("TopicSummary", MAX_SIZE, "In ascending order of their ids.")),
            ("next", json!({"type": ["integer", "null"], "format": "int64", "minimum": MIN_ID, "maximum": i64::MAX,
                "description": "`after` of the next page; null on the last page."})),
        ]),
        "Problem": problem(),
    })
}

/// An error as RFC 9457 writes it.
fn problem() -> Value {
    let types: Vec<_> = KINDS.iter().map(|kind| format!("{PREFIX}{}", kind.name)).collect();
    let mut statuses: Vec<_> = KINDS.iter().map(|kind| kind.status.as_u16()).collect();
    statuses.dedup();
    let mut schema = object(
        "Why a request was not answered.",
        &[
            ("type", json!({"type": "string", "enum": types, "description": "The kind of problem."})),
            ("title", json!({"type": "string", "description": "The status in words."})),
            (
                "status",
                json!({"type": "integer", "enum": statuses, "description": "The status of the answer."}),
            ),
            ("detail", json!({"type": "string", "description": "What is wrong, for people."})),
            (
                "trace_id",
                json!({"type": "string", "pattern": TRACE_ID_PATTERN,
            "description": "The trace of the request, as in `x-b3-traceid`."}),
            ),
        ],
    );
    schema["properties"]["field"] = json!({"type": "string", "description":
        "The parameter, member or header that is wrong, or `body`, `query` or `target`. Absent if the input is not to blame."});
    schema
}

/// Returns the schema of an object that has these members and no others.
fn object(about: &str, members: &[(&str, Value)]) -> Value {
    let names: Vec<_> = members.iter().map(|(name, _)| *name).collect();
    let properties: Map<String, Value> =
        members.iter().map(|(name, schema)| ((*name).to_owned(), schema.clone())).collect();
    let mut schema = json!({"type": "object", "description": about, "properties": properties, "additionalProperties": false});
    if !names.is_empty() {
        schema["required"] = json!(names);
    }
    schema
}

fn described(range: Range, about: &str) -> Value {
    let mut schema = range.schema();
    schema["description"] = json!(about);
    schema
}
