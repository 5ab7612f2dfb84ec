//! The Kubernetes manifests as kustomize makes them, and what the tests change of them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::kit::yaml::documents;

/// Every directory that `kubectl apply -k` takes.
pub const OVERLAYS: [&str; 4] = [
    "deploy/kubernetes/overlays/small",
    "deploy/kubernetes/overlays/ha",
    "deploy/kubernetes/monitoring",
    "deploy/kubernetes/overlays/trust",
];

/// Returns a program that tests/containers/build has built.
pub fn program(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/containers/bin").join(name);
    assert!(path.exists(), "{} is not there (make test-containers)", path.display());
    path
}

/// Returns the objects of an overlay.
pub fn objects(overlay: &str) -> Vec<Value> {
    documents(&text(overlay))
}

/// Returns the text of an overlay.
pub fn text(overlay: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(overlay);
    let output = Command::new(program("kubectl")).arg("kustomize").arg(path).output().unwrap();
    assert!(output.status.success(), "{overlay}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Returns the object of a kind and name.
pub fn find<'a>(objects: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let mut found =
        objects.iter().filter(|object| object["kind"] == kind && object["metadata"]["name"] == name);
    found.next().unwrap_or_else(|| panic!("no {kind} {name}"))
}

/// Returns the settings that all processes share. Their name ends with a hash of the content, and every process has it: so
/// that a change of a setting starts them anew.
pub fn settings(objects: &[Value]) -> &Value {
    let deployments = objects.iter().filter(|object| object["kind"] == "Deployment");
    let names = deployments.filter_map(|deployment| {
        let container = &deployment["spec"]["template"]["spec"]["containers"][0];
        container["envFrom"][0]["configMapRef"]["name"].as_str()
    });
    let names: Vec<_> = names.collect();
    assert_eq!(names.len(), 4, "{names:?}");
    assert!(names[0].starts_with("settings-") && names.iter().all(|name| *name == names[0]), "{names:?}");
    find(objects, "ConfigMap", names[0])
}

/// Returns where two values differ, `/path/to/it`, with the old and the new value; null stands for none.
pub fn differences(old: &Value, new: &Value) -> BTreeMap<String, (Value, Value)> {
    fn walk(path: &str, old: &Value, new: &Value, found: &mut BTreeMap<String, (Value, Value)>) {
        match (old, new) {
            (Value::Object(one), Value::Object(other)) => {
                let mut keys: Vec<_> = one.keys().chain(other.keys()).collect();
                keys.sort();
                keys.dedup();
                for key in keys {
                    walk(&format!("{path}/{key}"), &old[key], &new[key], found);
                }
            }
            (Value::Array(one), Value::Array(other)) if one.len() == other.len() => {
                for (index, (one, other)) in one.iter().zip(other).enumerate() {
                    walk(&format!("{path}/{index}"), one, other, found);
                }
            }
            _ if old == new => {}
            _ => {
                found.insert(path.to_owned(), (old.clone(), new.clone()));
            }
        }
    }
    let mut found = BTreeMap::new();
    walk("", old, new, &mut found);
    found
}
