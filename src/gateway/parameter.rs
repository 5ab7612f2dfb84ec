//! What routes take: names, ranges and examples, from which the description of the API is made. The limits are those that
//! [`crate::api::validate`] enforces.

use serde_json::{Value, json};

use crate::api::validate::{DEFAULT_SIZE, MAX_CONTENT, MAX_NAME, MAX_SIZE, MIN_ID};

/// A parameter of a query, or a member of a JSON body.
pub struct Parameter {
    /// Its name.
    pub name: &'static str,
    /// What it means, a sentence of Markdown.
    pub about: &'static str,
    /// Which values are accepted.
    pub range: Range,
    /// True if it may not be left out.
    pub required: bool,
    /// A value.
    pub example: Example,
}

/// Which values are accepted.
#[derive(Clone, Copy)]
pub enum Range {
    /// A whole number.
    Integer {
        /// The smallest.
        min: i64,
        /// The largest.
        max: i64,
        /// What counts if it is left out.
        default: Option<i64>,
    },
    /// A text without U+0000.
    Text {
        /// The longest, bytes of UTF-8.
        max: usize,
    },
}

/// A value as an example.
#[derive(Clone, Copy)]
pub enum Example {
    /// A number.
    Number(i64),
    /// A text.
    Text(&'static str),
}

impl Parameter {
    /// An id.
    pub const fn id(name: &'static str, about: &'static str, example: i64) -> Self {
        let (range, example) = (Range::integer(MIN_ID, i64::MAX), Example::Number(example));
        Self { name, about, range, required: true, example }
    }

    /// An id, beyond which a page begins.
    pub const fn bound(name: &'static str, about: &'static str, min: i64, example: i64) -> Self {
        Self { range: Range::integer(min, i64::MAX), required: false, ..Self::id(name, about, example) }
    }

    /// The size of a page.
    pub const fn size(about: &'static str) -> Self {
        let range = Range::Integer { min: 0, max: MAX_SIZE, default: Some(DEFAULT_SIZE) };
        Self { name: "size", about, range, required: false, example: Example::Number(2) }
    }

    /// The content of a record.
    pub const fn content(about: &'static str, example: &'static str) -> Self {
        let range = Range::Text { max: MAX_CONTENT };
        Self { name: "content", about, range, required: true, example: Example::Text(example) }
    }

    /// A name of somebody or something.
    pub const fn name(name: &'static str, about: &'static str, example: &'static str) -> Self {
        let range = Range::Text { max: MAX_NAME };
        Self { name, about, range, required: true, example: Example::Text(example) }
    }
}

impl Range {
    /// A number within these bounds.
    pub const fn integer(min: i64, max: i64) -> Self {
        Self::Integer { min, max, default: None }
    }

    /// Returns the JSON Schema of its values.
    pub fn schema(self) -> Value {
        match self {
            Self::Integer { min, max, default } => {
                let mut schema =
                    json!({"type": "integer", "format": "int64", "minimum": min, "maximum": max});
                if let Some(default) = default {
                    schema["default"] = json!(default);
                }
                schema
            }
            // JSON Schema counts characters: a text of more of them than bytes are accepted is too long in any case
            Self::Text { max } => {
                json!({"type": "string", "maxLength": max, "x-max-bytes": max, "pattern": "^[^\\u0000]*$"})
            }
        }
    }

    /// Returns what the schema cannot say, a sentence.
    pub fn note(self) -> String {
        match self {
            Self::Integer { .. } => String::new(),
            Self::Text { max } => format!(" At most {max} bytes of UTF-8, without U+0000."),
        }
    }
}

impl From<Example> for Value {
    fn from(example: Example) -> Self {
        match example {
            Example::Number(number) => number.into(),
            Example::Text(text) => text.into(),
        }
    }
}
