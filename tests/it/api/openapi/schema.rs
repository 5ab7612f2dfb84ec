//! JSON Schema, as much of it as the description uses.

use serde_json::Value;

use super::resolve;

/// What only explains, or what a type of its own holds already.
const SILENT: [&str; 6] = ["description", "format", "default", "x-max-bytes", "$ref", "type"];

/// Returns what is wrong with a value, a line each. Panics if the schema uses something that is not known here.
pub fn faults(all: &Value, schema: &Value, value: &Value) -> Vec<String> {
    let schema = resolve(all, schema);
    let mut found = Vec::new();
    if !has_type(&schema["type"], value) {
        return vec![format!("{value} is not {}", schema["type"])];
    }
    for (keyword, wanted) in schema.as_object().expect("a schema") {
        let number = |value: &Value| value.as_f64();
        let wrong = match keyword.as_str() {
            keyword if SILENT.contains(&keyword) => false,
            "enum" => !wanted.as_array().expect("a list").contains(value),
            "minimum" => number(value).is_some_and(|number| number < wanted.as_f64().expect("a number")),
            "maximum" => number(value).is_some_and(|number| number > wanted.as_f64().expect("a number")),
            "maxLength" => {
                value.as_str().is_some_and(|text| text.chars().count() as u64 > wanted.as_u64().unwrap())
            }
            "maxItems" => value.as_array().is_some_and(|items| items.len() as u64 > wanted.as_u64().unwrap()),
            "pattern" => {
                value.as_str().is_some_and(|text| !matches(wanted.as_str().expect("a pattern"), text))
            }
            "required" => wanted
                .as_array()
                .expect("a list")
                .iter()
                .any(|name| value.get(name.as_str().unwrap()).is_none()),
            "additionalProperties" => {
                let members = value.as_object().expect("an object").keys();
                members.into_iter().any(|name| schema["properties"].get(name).is_none())
            }
            "properties" => {
                for (name, inner) in wanted.as_object().expect("members") {
                    found.extend(value.get(name).into_iter().flat_map(|value| faults(all, inner, value)));
                }
                false
            }
            "items" => {
                found.extend(
                    value.as_array().expect("a list").iter().flat_map(|value| faults(all, wanted, value)),
                );
                false
            }
            other => panic!("the test does not know `{other}`"),
        };
        if wrong {
            found.push(format!("{value} breaks {keyword}: {wanted}"));
        }
    }
    found
}

fn has_type(wanted: &Value, value: &Value) -> bool {
    let is = |name: &Value| match name.as_str().expect("a type") {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.is_i64(),
        "null" => value.is_null(),
        other => panic!("the test does not know the type `{other}`"),
    };
    wanted.as_array().map_or_else(|| is(wanted), |names| names.iter().any(is))
}

/// Each pattern of the description, in Rust.
fn matches(pattern: &str, text: &str) -> bool {
    match pattern {
        "^[^\\u0000]*$" => !text.contains('\0'),
        "^([0-9a-f]{16}){1,2}$" => {
            matches!(text.len(), 16 | 32)
                && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        }
        "^3\\.1\\." => text.starts_with("3.1."),
        other => panic!("the test does not know the pattern `{other}`"),
    }
}

#[test]
fn faults_are_found() {
    use serde_json::json;
    let text = json!({"type": "string", "maxLength": 2, "pattern": "^[^\\u0000]*$"});
    let object = json!({"type": "object", "required": ["a"], "properties": {"a": text}, "additionalProperties": false});
    let number = json!({"type": ["integer", "null"], "minimum": 1, "maximum": 3});
    let list = json!({"type": "array", "maxItems": 1, "items": number});
    for (schema, good) in [(&object, json!({"a": "\u{e9}b"})), (&list, json!([3])), (&list, json!([null]))] {
        assert!(faults(&json!({}), schema, &good).is_empty(), "{schema} {good}");
    }
    for (schema, bad) in [
        (&object, json!({})),
        (&object, json!({"a": "abc"})),
        (&object, json!({"a": "\0"})),
        (&object, json!({"a": "", "b": ""})),
        (&object, json!([])),
        (&list, json!([4])),
        (&list, json!([0])),
        (&list, json!(["1"])),
        (&list, json!([1, 1])),
    ] {
        assert_eq!(faults(&json!({}), schema, &bad).len(), 1, "{schema} {bad}");
    }
}
