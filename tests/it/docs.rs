//! The README against the program: what its tables list is what there is.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use microservice_app::app::metrics::Metrics;
use microservice_app::config::{self, Role, Source};
use microservice_app::telemetry::metrics::text;

/// Read when it is wanted: so an edited page rebuilds nothing, and a source tree without it builds.
static README: LazyLock<String> = LazyLock::new(|| {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{path}: {error}"))
});
/// The files that define metrics: every `metrics.rs`, and those of `telemetry/metrics`.
fn metric_sources(dir: &std::path::Path) -> String {
    let mut text = String::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            text += &metric_sources(&path);
        } else if path.ends_with("metrics.rs") || path.components().any(|part| part.as_os_str() == "metrics")
        {
            let source = std::fs::read_to_string(&path).unwrap();
            text += source.split("#[cfg(test)]").next().unwrap_or_default();
        }
    }
    text
}

const ROLES: [Role; 5] = [Role::Apigateway, Role::Feed, Role::Profile, Role::Topic, Role::Up];

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

/// Returns the settings of a role with nothing set but `key`.
fn load(role: Role, key: &str, value: &str) -> Result<config::Settings, String> {
    let name = format!("MSA__{}", key.to_uppercase().replace('.', "__"));
    let env = [(name, value.to_owned())].into_iter().filter(|_| !key.is_empty());
    let source = Source { env: Some(env.collect()), ..Source::default() };
    config::load(role, &source).map_err(|error| error.to_string())
}

/// Returns whether a role reads a key at all; if not, its default means nothing.
fn uses(role: Role, key: &str) -> bool {
    let (section, _) = key.split_once('.').unwrap();
    match section {
        "http" => matches!(role, Role::Apigateway | Role::Up),
        "store" => Role::SERVICES.contains(&role),
        "up" => role == Role::Up,
        _ if key == "grpc.addr" => Role::SERVICES.contains(&role),
        "grpc" => role != Role::Apigateway,
        _ => true,
    }
}

/// Returns what a cell of defaults says of a role: `` `x`, up `y` `` is `y` for `up` and `x` for all
/// others, `none` is the empty value.
fn default_of(cell: &str, role: Role) -> Option<String> {
    let value = |text: &str| if text == "none" { "" } else { code(text) }.to_owned();
    let parts = cell.split(", ");
    let own = parts.clone().find_map(|part| part.strip_prefix(role.name())?.strip_prefix(' '));
    let general = parts.clone().find(|part| !part.contains(' '));
    own.or(general).map(value)
}

#[test]
fn the_readme_lists_every_setting_with_its_default() {
    let documented: BTreeMap<_, _> = table("Key").into_iter().map(|row| (code(row[0]), row[1])).collect();
    let mut wrong = BTreeSet::new();
    for role in ROLES {
        let rows: BTreeMap<_, _> = config::rows(&load(role, "", "").unwrap()).into_iter().collect();
        for key in documented.keys().filter(|key| !rows.contains_key(**key)) {
            wrong.insert(format!("{key} is in the README, and {} does not know it", role.name()));
        }
        for (key, value) in &rows {
            let Some(cell) = documented.get(key.as_str()) else {
                wrong.insert(format!("{key} is not in the README"));
                continue;
            };
            if uses(role, key) && default_of(cell, role).as_deref() != Some(value) {
                wrong.insert(format!("{key} is {value:?} for {}, the README says {cell}", role.name()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_readme_lists_the_range_of_every_number() {
    let is_number = |cell: &str| code(cell).parse::<u64>().is_ok();
    let mut wrong = Vec::new();
    for row in table("Key").into_iter().filter(|row| is_number(row[1])) {
        let (key, range) = (code(row[0]), row[2]);
        let (low, high) = range.split_once(" to ").unwrap();
        let low: u64 = low.parse().unwrap();
        let high: u64 = high.parse().unwrap_or_else(|_| {
            assert_eq!((key, high), ("registry.keepalive_ms", "half of `registry.ttl_s`"));
            1500
        });
        // a number that is refused names its key; one that another key does not go with names the other
        let accepted = |value: u64| {
            let refused = load(Role::Feed, key, &value.to_string()).err();
            !refused.is_some_and(|error| error.contains(&format!("`{key}`")))
        };
        let below = low.checked_sub(1);
        if !accepted(low) || !accepted(high) || below.is_some_and(accepted) || accepted(high + 1) {
            wrong.push(format!("{key} is not {range}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Returns the name of every metric of the program.
pub fn metrics() -> BTreeSet<String> {
    let is_name = |text: &&str| {
        let families = ["build_", "client_", "grpc_", "http_", "registry_", "server_", "store_", "trace_"];
        families.iter().any(|family| text.starts_with(family))
            && text.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
    };
    // the names as the code has them: a family without a child yet is not in its text
    let code_only = metric_sources(std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src")));
    let names = code_only.split('"').skip(1).step_by(2).filter(is_name);
    let mut there: BTreeSet<_> = names.map(str::to_owned).collect();
    let text = text(&Metrics::register().unwrap().registry);
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
