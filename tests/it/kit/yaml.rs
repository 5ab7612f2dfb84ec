//! Reads YAML by Python's library, which Patroni brings along: a crate for the tests alone is not worth it.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::process::with_input;

const READ: &str = "import json, sys, yaml
json.dump([d for d in yaml.safe_load_all(sys.stdin) if d is not None], sys.stdout)";

/// Returns the documents of a text; panics if it is no YAML. Empty documents are left out.
pub fn documents(text: &str) -> Vec<Value> {
    let python = if Path::new("/usr/bin/python3").exists() { "/usr/bin/python3" } else { "python3" };
    let output = with_input(Command::new(python).args(["-c", READ]), text);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// Returns the only document of a file of the project.
pub fn file(path: &str) -> Value {
    let mut all = documents(&text(path));
    assert_eq!(all.len(), 1, "{path}");
    all.remove(0)
}

/// Returns the text of a file of the project.
pub fn text(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
