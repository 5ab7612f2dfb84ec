//! `tests/suite`: which failures of tests are tried once more, with a stand-in for cargo.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

/// Answers the first run with `$FIRST` and a failure, and the second one with the status `$SECOND`.
const CARGO: &str = "#!/bin/sh
case \"$*\" in
*--exact*) echo \"again: $*\"; exit \"$SECOND\" ;;
*) printf '%s' \"$FIRST\"; exit 101 ;;
esac
";

/// Runs the script; returns whether it succeeded, and which tests it ran again.
fn suite(first: &str, second: u8) -> (bool, Option<String>) {
    let stand_in = tempfile::tempdir().expect("a directory");
    let cargo = stand_in.path().join("cargo");
    fs::write(&cargo, CARGO).expect("a program");
    fs::set_permissions(&cargo, fs::Permissions::from_mode(0o755)).expect("ours");
    let path = format!("{}:{}", stand_in.path().display(), std::env::var("PATH").expect("a path"));
    let run = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/suite"))
        .envs([("PATH", path.as_str()), ("FIRST", first), ("SECOND", &second.to_string())])
        .output()
        .expect("tests/suite runs");
    let told = String::from_utf8_lossy(&run.stdout).into_owned();
    let again = told.lines().find_map(|line| line.strip_prefix("again: "));
    let names = again.map(|line| line.rsplit_once("--test-threads=1 ").expect("one at a time").1.to_owned());
    (run.status.success(), names)
}

#[test]
fn a_few_tests_that_fail_beside_the_others_run_once_more_alone() {
    let two = "test a::b ... ok\ntest a::c ... FAILED\ntest d - should panic ... FAILED\n\n\
               test result: FAILED. 1 passed; 2 failed; 0 ignored\n";
    assert_eq!(suite(two, 0), (true, Some("a::c d".to_owned())));
    assert_eq!(suite(two, 101), (false, Some("a::c d".to_owned())), "who fails twice fails the run");
}

#[test]
fn failures_of_another_kind_are_final() {
    let failed = "test a::c ... FAILED\n";
    let many = ["a", "b", "c", "d"].map(|name| format!("test {name} ... FAILED\n")).concat();
    for first in [
        "error: could not compile\n".to_owned(),
        format!("{many}test result: FAILED. 1 passed; 4 failed; 0 ignored\n"),
        // another test program ended without a word about its tests
        format!("{failed}test result: FAILED. 1 passed; 2 failed; 0 ignored\n"),
        format!("{failed}test result: FAILED. 1 passed; 1 failed; 0 ignored\n (signal: 6, SIGABRT)\n"),
    ] {
        assert_eq!(suite(&first, 0), (false, None), "{first}");
    }
}
