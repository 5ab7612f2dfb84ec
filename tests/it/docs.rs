//! The README against the program: what its tables list is what there is.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use microservice_app::telemetry::metrics::Metrics;

/// Read when it is wanted: so an edited page rebuilds nothing, and a source tree without it builds.
static README: LazyLock<String> = LazyLock::new(|| {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{path}: {error}"))
});
const METRICS: &str = include_str!("../../src/telemetry/metrics/mod.rs");

/// Returns the rows of the README's table whose first column has this title, cell by cell.
fn table(title: &str) -> Vec<Vec<&'static str>> {
    let head = format!("| {title} |");
    let lines = README.lines().skip_while(|line| !line.starts_with(&head));
    let rows = lines.skip(2).take_while(|line| line.starts_with('|'));
    let cells = |row: &'static str| row.trim_matches('|').split(" | ").map(str::trim).collect();
    let rows: Vec<Vec<_>> = rows.map(cells).collect();
    assert!(!rows.is_empty(), "the README has no table that begins with {head}");
    rows
}

/// Returns the text between backticks.
fn code(cell: &str) -> &str {
    cell.strip_prefix('`').and_then(|rest| rest.strip_suffix('`')).unwrap_or(cell)
}

/// Returns the name of every metric of the program.
pub fn metrics() -> BTreeSet<String> {
    let is_name = |text: &&str| {
        let families = ["build_", "client_", "grpc_", "http_", "registry_", "server_", "store_", "trace_"];
        families.iter().any(|family| text.starts_with(family))
            && text.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
    };
    // the names as the code has them: a family without a child yet is not in its text
    let (code_only, _) = METRICS.split_once("#[cfg(test)]").unwrap();
    let names = code_only.split('"').skip(1).step_by(2).filter(is_name);
    let mut there: BTreeSet<_> = names.map(str::to_owned).collect();
    let text = Metrics::new().unwrap().text();
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    there.extend(types.map(str::to_owned));
    assert!(there.len() > 5, "{there:?}");
    there
}

#[test]
fn the_readme_lists_every_metric() {
    let there = metrics();
    let documented: BTreeSet<_> = table("Metric").into_iter().map(|row| code(row[0])).collect();
    let covers = |line: &str, name: &str| match line.strip_suffix('*') {
        Some(family) => name.starts_with(family),
        None => name == line,
    };
    let missing: Vec<_> =
        there.iter().filter(|name| !documented.iter().any(|line| covers(line, name))).collect();
    assert!(missing.is_empty(), "the README lacks {missing:?}");
    let invented: Vec<_> =
        documented.iter().filter(|line| !there.iter().any(|name| covers(line, name))).collect();
    assert!(invented.is_empty(), "the README has {invented:?}, the program has not");
}
