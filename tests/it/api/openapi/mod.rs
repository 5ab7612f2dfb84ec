//! The description of the API against what the gateway does, and before the tools of others.

mod clients;
mod judges;
mod schema;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use microservice_app::gateway::{KINDS, ROUTES, openapi};
use serde_json::{Value, json};

use self::schema::faults;
use crate::kit::app::App;
use crate::kit::http::{Answer, request, send};
use crate::kit::skip;

/// Headers that every HTTP server may send; the description lists the others.
const STANDARD: [&str; 6] = [
    "content-type",
    "content-length",
    "date",
    "connection",
    "content-security-policy",
    "x-content-type-options",
];

fn description() -> Value {
    serde_json::from_str(openapi::text()).expect("JSON")
}

/// Follows a reference of the description.
fn resolve<'a>(all: &'a Value, value: &'a Value) -> &'a Value {
    match value["$ref"].as_str() {
        Some(reference) => all.pointer(reference.trim_start_matches('#')).expect("it leads somewhere"),
        None => value,
    }
}

/// One operation of the description.
struct Operation<'a> {
    all: &'a Value,
    path: &'a str,
    method: String,
    about: &'a Value,
}

impl<'a> Operation<'a> {
    fn each(all: &'a Value) -> Vec<Self> {
        let paths = all["paths"].as_object().expect("paths").iter();
        let operations = paths.flat_map(|(path, item)| {
            let methods = item.as_object().expect("methods").iter();
            methods.map(move |(method, about)| Self { all, path, method: method.to_uppercase(), about })
        });
        operations.collect()
    }

    /// Returns the input of the operation: each name, its schema, whether it is required, and its example.
    fn input(&self) -> Vec<(String, &'a Value, bool, Value)> {
        if let Some(media) = self.about.pointer("/requestBody/content/application~1json") {
            let required = media["schema"]["required"].as_array().expect("a list");
            let members = media["schema"]["properties"].as_object().expect("members").iter();
            let input = members.map(|(name, schema)| {
                (name.clone(), schema, required.contains(&json!(name)), media["example"][name].clone())
            });
            return input.collect();
        }
        let parameters = self.about["parameters"].as_array().expect("parameters").iter();
        let parameters =
            parameters.map(|parameter| resolve(self.all, parameter)).filter(|p| p["in"] == "query");
        let named = |p: &Value| p["name"].as_str().expect("a name").to_owned();
        parameters.map(|p| (named(p), &p["schema"], p["required"] == true, p["example"].clone())).collect()
    }

    /// Sends a request with this input.
    async fn send(&self, gateway: SocketAddr, input: &[(String, Value)]) -> Answer {
        let asked = if self.about.get("requestBody").is_some() {
            let body: serde_json::Map<String, Value> = input.iter().cloned().collect();
            request(&self.method, self.path, &Value::Object(body).to_string())
        } else {
            let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let pairs: Vec<_> = input.iter().map(|(name, value)| format!("{name}={}", text(value))).collect();
            let path = format!("{}?{}", self.path, pairs.join("&"));
            request(&self.method, path.trim_end_matches('?'), "")
        };
        let answer = send(gateway, asked).await.expect("an answer");
        self.fits(&answer);
        answer
    }

    /// Panics if an answer is not as the description says.
    fn fits(&self, answer: &Answer) {
        let what = format!("{} {}: {answer:?}", self.method, self.path);
        let described = self.about["responses"].get(answer.status.as_str());
        let described = resolve(self.all, described.unwrap_or_else(|| panic!("undocumented: {what}")));
        let headers = described["headers"].as_object().expect("headers");
        for (name, header) in headers {
            let required = resolve(self.all, header)["required"] == true;
            assert!(!required || answer.headers.contains_key(name.as_str()), "no {name}: {what}");
        }
        for name in answer.headers.keys() {
            let known = headers.contains_key(name.as_str()) || STANDARD.contains(&name.as_str());
            assert!(known || name == "referrer-policy", "undocumented {name}: {what}");
        }
        let media = described["content"].get(answer.header("content-type"));
        let media = media.unwrap_or_else(|| panic!("undocumented content type: {what}"));
        let found = faults(self.all, &media["schema"], &answer.json());
        assert!(found.is_empty(), "{found:?}: {what}");
    }
}

#[tokio::test]
async fn every_operation_answers_its_example_as_described() {
    let (app, all) = (App::start().await, description());
    // what is read has been written
    let mut operations = Operation::each(&all);
    operations.sort_by_key(|operation| {
        ["PUT", "GET", "DELETE"].iter().position(|known| operation.method == *known)
    });
    assert_eq!(operations.len(), ROUTES.len() + 1);
    for operation in operations {
        let example: Vec<_> =
            operation.input().into_iter().map(|(name, _, _, value)| (name, value)).collect();
        let answer = operation.send(app.gateway(), &example).await;
        assert_eq!(answer.status, 200, "{} {}: {answer:?}", operation.method, operation.path);
    }
}

/// Returns values at the edges of a schema and just outside.
fn edges(schema: &Value) -> (Vec<Value>, Vec<Value>) {
    if schema["type"] == "integer" {
        let limit = |name: &str| i128::from(schema[name].as_i64().expect("a limit"));
        let number = |number: i128| serde_json::from_str::<Value>(&number.to_string()).expect("a number");
        let (min, max) = (limit("minimum"), limit("maximum"));
        return (
            vec![number(min), number(max)],
            vec![number(min - 1), number(max + 1), json!("x"), json!(1.5)],
        );
    }
    let max = usize::try_from(schema["x-max-bytes"].as_u64().expect("a limit")).expect("it fits");
    let (fits, over) = ("\u{e9}".repeat(max / 2), "\u{e9}".repeat(max / 2) + "x");
    (
        vec![json!(""), json!("x".repeat(max)), json!(fits)],
        vec![json!(over), json!("a\0b"), json!(1), Value::Null],
    )
}

#[tokio::test]
async fn every_input_is_accepted_and_refused_at_the_edges_that_are_described() {
    let (app, all) = (App::start().await, description());
    let mut seen = 0;
    for operation in Operation::each(&all) {
        let input = operation.input();
        let with = |name: &str, value: Option<Value>| {
            let others = input.iter().filter(|(other, ..)| other != name);
            let mut given: Vec<_> =
                others.map(|(other, _, _, example)| (other.clone(), example.clone())).collect();
            given.extend(value.map(|value| (name.to_owned(), value)));
            given
        };
        for (name, schema, required, _) in &input {
            let what = format!("{} {} {name}", operation.method, operation.path);
            let (inside, outside) = edges(schema);
            for value in inside {
                let answer = operation.send(app.gateway(), &with(name, Some(value))).await;
                assert!(answer.status == 200 || answer.status == 404, "{what}: {answer:?}");
            }
            for value in outside {
                let answer = operation.send(app.gateway(), &with(name, Some(value.clone()))).await;
                assert_eq!(answer.status, 400, "{what} {value}: {answer:?}");
                assert_eq!(answer.json()["field"], *name, "{what} {value}: {answer:?}");
            }
            let answer = operation.send(app.gateway(), &with(name, None)).await;
            assert_eq!(answer.status == 400, *required, "{what}: {answer:?}");
            seen += 1;
        }
        let answer = operation.send(app.gateway(), &with("no_such_name", Some(json!(1)))).await;
        assert_eq!(
            (answer.status.as_u16(), &answer.json()["field"]),
            (400, &json!("no_such_name")),
            "{answer:?}"
        );
    }
    assert_eq!(seen, ROUTES.iter().map(|route| route.input.len()).sum::<usize>());
}

#[tokio::test]
async fn the_refusals_of_every_operation_are_described() {
    let (app, all) = (App::start().await, description());
    let limited =
        App::start_with(|settings| (settings.http.rate_limit, settings.http.rate_burst) = (1, 1)).await;
    for operation in Operation::each(&all) {
        let long = format!("{}?{}", operation.path, "x".repeat(9000));
        for (status, name, value, path) in [
            (400, "x-request-timeout-ms", "0", operation.path),
            (400, "if-match", "*", operation.path),
            (417, "expect", "x", operation.path),
            (414, "accept", "*/*", long.as_str()),
        ] {
            let mut asked = request(&operation.method, path, "");
            asked.headers_mut().insert(name, value.parse().unwrap());
            let answer = send(app.gateway(), asked).await.expect("an answer");
            assert_eq!(answer.status, status, "{} {}: {answer:?}", operation.method, operation.path);
            operation.fits(&answer);
        }
        let answer = send(app.gateway(), request("POST", operation.path, "")).await.expect("an answer");
        assert_eq!(answer.status, 405, "{answer:?}");
        operation.fits(&answer);
        let mut last = send(limited.gateway(), request(&operation.method, operation.path, "")).await;
        for _ in 0..3 {
            last = send(limited.gateway(), request(&operation.method, operation.path, "")).await;
        }
        let last = last.expect("an answer");
        assert_eq!(last.status, 429, "{last:?}");
        operation.fits(&last);
    }
}

/// JSON Schema takes 1.0 and 1e2 for integers, and so does the gateway.
#[tokio::test]
async fn a_whole_number_may_have_a_fraction_or_an_exponent() {
    let app = App::start().await;
    for (id, stored) in
        [("1.0", 1), ("2e2", 200), ("3.5e1", 35), ("9007199254740991.0", 9_007_199_254_740_991_i64)]
    {
        let body = format!(r#"{{"topic_id":{id},"subject":"s","content":"c"}}"#);
        let answer = send(app.gateway(), request("PUT", "/api/topic/put_topic", &body)).await.unwrap();
        assert_eq!(answer.status, 200, "{id}: {answer:?}");
        let path = format!("/api/topic/view?topic_id={stored}");
        assert_eq!(send(app.gateway(), request("GET", &path, "")).await.unwrap().json()["topic_id"], stored);
    }
}

#[test]
fn each_problem_is_described_once() {
    let all = description();
    let types: Vec<_> =
        all["components"]["schemas"]["Problem"]["properties"]["type"]["enum"].as_array().unwrap().clone();
    let names: BTreeSet<_> =
        KINDS.iter().map(|kind| format!("urn:microservice-app:problem:{}", kind.name)).collect();
    assert_eq!(types.len(), names.len());
    assert!(types.iter().all(|known| names.contains(known.as_str().unwrap())));
    for response in all["components"]["responses"].as_object().unwrap().values() {
        let examples = response.pointer("/content/application~1problem+json/examples");
        for example in examples.and_then(Value::as_object).into_iter().flat_map(serde_json::Map::values) {
            let found = faults(&all, &json!({"$ref": "#/components/schemas/Problem"}), &example["value"]);
            assert!(found.is_empty(), "{found:?}: {example}");
        }
    }
}

/// Returns a file that `tests/web/build` makes; none, and says so, if it is not there.
pub fn part(name: &str, check: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/web").join(name);
    if !path.exists() {
        skip(check, &format!("{name} is not installed: see what tests/web/build says"));
    }
    path.exists().then_some(path)
}

/// Returns a file of the repository.
pub fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// Runs a command to its end, at most five minutes (on a quiet machine none takes half a minute), off the runtime's thread; returns what it said. Panics unless it
/// succeeds.
pub async fn succeed(mut command: Command) -> String {
    let run = move || {
        let dir = tempfile::tempdir().unwrap();
        let said = dir.path().join("said");
        let out = std::fs::File::create(&said).unwrap();
        command.stdin(std::process::Stdio::null()).stderr(out.try_clone().unwrap()).stdout(out);
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let begun = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break Some(status);
            }
            if begun.elapsed() > Duration::from_mins(5) {
                let _ = child.kill();
                let _ = child.wait();
                break None;
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        let said = String::from_utf8_lossy(&std::fs::read(&said).unwrap()).into_owned();
        assert!(status.is_some_and(|status| status.success()), "{command:?}: {status:?}\n{said}");
        said
    };
    tokio::task::spawn_blocking(run).await.expect("it succeeds")
}
