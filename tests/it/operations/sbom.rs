//! The bill of materials: valid by its schema, complete, and the same at every run.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::kit::skip;

/// Checks a document with the schemas of cyclonedx-python-lib, whose code is not run.
const VALIDATE: &str = r#"
import json, pathlib, sys
import importlib.util, jsonschema_rs
schemas = pathlib.Path(importlib.util.find_spec("cyclonedx").origin).parent / "schema" / "_res"
read = lambda name: json.loads((schemas / f"{name}.SNAPSHOT.schema.json").read_text())
parts = [(f"http://cyclonedx.org/schema/{name}.SNAPSHOT.schema.json", read(name)) for name in ("spdx", "jsf-0.82")]
registry = jsonschema_rs.Registry(parts)
validator = jsonschema_rs.validator_for(read("bom-1.5"), registry=registry, validate_formats=True)
print("\n".join(str(error) for error in validator.iter_errors(json.load(open(sys.argv[1])))))
"#;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Writes the document; `None` if its program is not installed.
fn sbom(file: &Path) -> Option<Value> {
    let there = Command::new("bash")
        .args(["-c", "PATH=\"target/tools/bin:$PATH\" command -v cargo-cyclonedx"])
        .current_dir(root())
        .output()
        .unwrap();
    if !there.status.success() {
        skip("the bill of materials", "cargo-cyclonedx is not installed");
        return None;
    }
    let made = Command::new(root().join("deploy/sbom")).arg(file).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    Some(serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap())
}

/// Returns name and version of each package of a lock file that comes from the registry.
fn locked(file: &str) -> BTreeSet<(String, String)> {
    let text = std::fs::read_to_string(root().join(file)).unwrap();
    let package = |part: &str| {
        let value = |name: &str| {
            let line = part.lines().find_map(|line| line.strip_prefix(&format!("{name} = \"")))?;
            line.strip_suffix('"').map(str::to_owned)
        };
        value("source").and(Some((value("name")?, value("version")?)))
    };
    text.split("[[package]]").filter_map(package).collect()
}

/// Returns name and version of each package that cargo builds into the program.
fn built() -> BTreeSet<(String, String)> {
    let args =
        "tree --locked --offline --edges normal --target x86_64-unknown-linux-gnu --prefix none --no-dedupe";
    let tree = Command::new(env!("CARGO")).args(args.split(' ')).current_dir(root()).output().unwrap();
    assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
    let text = String::from_utf8(tree.stdout).unwrap();
    let package = |line: &str| {
        let (name, rest) = line.split_once(" v")?;
        Some((name.to_owned(), rest.split(' ').next()?.to_owned()))
    };
    let mut packages: BTreeSet<_> = text.lines().filter_map(package).collect();
    assert!(packages.remove(&(env!("CARGO_PKG_NAME").to_owned(), env!("CARGO_PKG_VERSION").to_owned())));
    assert!(packages.len() > 100, "{packages:?}");
    packages
}

/// Returns a version as numbers, so that 0.4.9 is before 0.4.16.
fn numbers(version: &str) -> Vec<u64> {
    version.split('.').map(|number| number.parse().unwrap()).collect()
}

#[test]
fn the_bill_of_materials_is_valid_complete_and_the_same_every_time() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (dir.path().join("one.json"), dir.path().join("two.json"));
    let Some(bom) = sbom(&one) else { return };
    sbom(&two);
    let text = std::fs::read_to_string(&one).unwrap();
    assert!(text == std::fs::read_to_string(&two).unwrap(), "two runs differ");
    assert!(!text.contains(root().to_str().unwrap()), "it tells where the sources are");

    assert_eq!((&bom["bomFormat"], &bom["specVersion"]), (&"CycloneDX".into(), &"1.5".into()));
    let own = &bom["metadata"]["component"];
    assert_eq!(
        (&own["name"], &own["version"]),
        (&"microservice-app".into(), &env!("CARGO_PKG_VERSION").into())
    );
    let components = bom["components"].as_array().unwrap();
    let name = |component: &Value| {
        let text = |name: &str| component[name].as_str().unwrap().to_owned();
        (text("name"), text("version"))
    };
    let listed: BTreeSet<_> = components.iter().map(name).collect();
    // what the program is made of is in the lock file, which has the tests' packages too
    let known = locked("Cargo.lock");
    let stray: Vec<_> = listed.difference(&known).collect();
    assert!(stray.is_empty(), "{stray:?}");
    let missing: Vec<_> = built().difference(&listed).cloned().collect();
    assert!(missing.is_empty(), "{missing:?}");
    assert!(!listed.iter().any(|(name, _)| name == "proptest"), "a crate of the tests is listed");
    for component in components {
        let (name, version) = name(component);
        assert_eq!(component["purl"], format!("pkg:cargo/{name}@{version}"));
        assert!(component["hashes"][0]["content"].as_str().is_some_and(|hash| hash.len() == 64), "{name}");
        assert!(!component["licenses"].as_array().unwrap().is_empty(), "{name}");
    }

    let python = root().join("target/web/python/bin/python");
    if !python.exists() {
        return skip("the schema of the bill of materials", "tests/web/build has left Python out");
    }
    let validate = |file: &Path| {
        let checked = Command::new(&python).args(["-c", VALIDATE]).arg(file).output().unwrap();
        assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
        String::from_utf8(checked.stdout).unwrap().trim().to_owned()
    };
    assert_eq!(validate(&one), "");
    // the schema finds what is wrong
    std::fs::write(&two, text.replacen("\"purl\"", "\"url\"", 1)).unwrap();
    assert!(validate(&two).contains("url"), "{}", validate(&two));
}

/// The fuzzers show something of the program only if they have the dependencies of the program. So an advisory that is
/// about one lock file is about both.
#[test]
fn the_fuzzers_have_the_dependencies_of_the_program() {
    // libFuzzer, and what builds it
    const OWN: [&str; 3] = ["arbitrary", "jobserver", "libfuzzer-sys"];
    let (fuzz, program) = (locked("fuzz/Cargo.lock"), locked("Cargo.lock"));
    let others: Vec<_> =
        fuzz.difference(&program).filter(|(name, _)| !OWN.contains(&name.as_str())).collect();
    assert!(others.is_empty(), "copy the versions of Cargo.lock to fuzz/Cargo.lock: {others:?}");
    let h2 = fuzz.iter().find(|(name, _)| name == "h2").map(|(_, version)| numbers(version));
    assert!(h2 >= Some(numbers("0.4.16")), "{h2:?}");
}
