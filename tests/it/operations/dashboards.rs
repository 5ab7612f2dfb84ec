//! The Grafana dashboards: that Grafana takes them, and that every query of theirs has an answer from a real
//! Prometheus that scraped the real system under load.

mod model;
mod picture;
mod query;
mod system;

use std::collections::{BTreeMap, BTreeSet};

use model::{Chart, Dashboard, Panel, Variable};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use system::System;

use crate::kit::prometheus::{Labels, Prometheus};
use crate::kit::skip;

/// The dashboards whose exporter need not be there, and the exporter's job.
const OPTIONAL: [(&str, &str); 1] = [("containers", "cadvisor")];

/// What stands for Grafana's `$__rate_interval` in an instant query.
const RATE_INTERVAL: &str = "15s";

#[test]
fn dashboards_have_what_grafana_takes_and_nothing_else() {
    let all = model::load();
    let names: Vec<_> = all.keys().map(String::as_str).collect();
    assert_eq!(names, ["callpath", "containers", "etcd", "hosts", "registry", "services"]);
    let titles: BTreeSet<_> = all.values().map(|dashboard| &dashboard.title).collect();
    assert_eq!(titles.len(), all.len(), "titles are the same");
    for (name, dashboard) in &all {
        // links from elsewhere, and Grafana's own store, know a dashboard by its uid: never change it
        assert_eq!(dashboard.uid, format!("msa-{name}"));
        assert_eq!(dashboard.schema_version, 41, "{name}: of Grafana 12; later ones bring it up to date");
        assert!(!dashboard.description.is_empty(), "{name}");
        assert_eq!(dashboard.links.len(), 1, "{name}: one link, to all others");
        assert_eq!(dashboard.links[0].tags, dashboard.tags, "{name}: the link finds its own kind");
        check_panels(name, dashboard);
        check_variables(name, dashboard);
    }
}

fn check_panels(name: &str, dashboard: &Dashboard) {
    let mut ids = BTreeSet::new();
    let mut taken = BTreeSet::new();
    for panel in &dashboard.panels {
        let (id, at) = match panel {
            Panel::Row(row) => (row.id, row.grid_pos),
            Panel::Timeseries(model::Kind { chart, .. }) | Panel::Stat(model::Kind { chart, .. }) => {
                (chart.id, chart.grid_pos)
            }
        };
        assert!(ids.insert(id), "{name}: panel {id} is there twice");
        assert!(at.w > 0 && at.h > 0 && at.x + at.w <= 24, "{name}: panel {id} is not on the grid of 24");
        for cell in (at.x..at.x + at.w).flat_map(|x| (at.y..at.y + at.h).map(move |y| (x, y))) {
            assert!(taken.insert(cell), "{name}: panel {id} lies over another one");
        }
    }
    assert!(dashboard.charts().count() > 2, "{name} has no panels");
    for chart in dashboard.charts() {
        let what = format!("{name}: {}", chart.title);
        assert!(!chart.title.is_empty() && chart.description.ends_with('.'), "{what}: no description");
        assert!(!chart.targets.is_empty(), "{what}: no query");
        let refs: BTreeSet<_> = chart.targets.iter().map(|target| &target.ref_id).collect();
        assert_eq!(refs.len(), chart.targets.len(), "{what}: a refId is there twice");
        let legends: BTreeSet<_> = chart.targets.iter().map(|target| &target.legend_format).collect();
        assert_eq!(legends.len(), chart.targets.len(), "{what}: two queries have the same legend");
        if chart.unit == model::Unit::Share {
            assert!(chart.max.is_none_or(|max| (max - 1.0).abs() < 1e-9), "{what}: a share goes up to 1");
        }
    }
}

fn check_variables(name: &str, dashboard: &Dashboard) {
    let mut known = BTreeSet::new();
    let mut used = BTreeSet::new();
    for variable in dashboard.variables() {
        match variable {
            Variable::Datasource(one) => {
                assert_eq!((one.name.as_str(), one.query.as_str()), ("datasource", "prometheus"), "{name}");
                known.insert(one.name.as_str());
            }
            Variable::Query(one) => {
                assert_eq!((one.datasource.kind.as_str(), one.datasource.uid.as_str()), DATASOURCE);
                for other in query::variables(&one.query.query) {
                    assert!(known.contains(other), "{name}: ${other} is not there before ${}", one.name);
                    used.insert(other);
                }
                known.insert(&one.name);
            }
        }
    }
    used.insert("datasource");
    for chart in dashboard.charts() {
        assert_eq!((chart.datasource.kind.as_str(), chart.datasource.uid.as_str()), DATASOURCE, "{name}");
        for target in &chart.targets {
            let texts = [&target.expr, &target.legend_format, &chart.title];
            used.extend(texts.into_iter().flat_map(|text| query::variables(text)));
        }
    }
    assert_eq!(used, known, "{name}: left the variables that are used, right those that are there");
}

/// Every panel has the data source that its reader chooses.
const DATASOURCE: (&str, &str) = ("prometheus", "${datasource}");

#[tokio::test]
async fn every_query_of_every_panel_has_an_answer() {
    let system = System::start("500ms").await;
    let load = system.load(60.0).start();
    let writes = system.write_to_etcd().await;
    system.fail_in_every_way().await;
    system.wait_until_scraped(12).await;
    let mut wrong = Vec::new();
    let (mut queries, mut skipped) = (0, Vec::new());
    for (name, dashboard) in model::load() {
        if let Some((_, exporter)) = OPTIONAL.iter().find(|(optional, _)| *optional == name)
            && !system.has(exporter)
        {
            skipped.extend(dashboard.charts().map(|chart| format!("{name}: {} ({exporter})", chart.title)));
            continue;
        }
        let (all, single) = match choices(&system.prometheus, &dashboard).await {
            Ok(choices) => choices,
            Err(error) => {
                wrong.push(format!("{name}: {error}"));
                continue;
            }
        };
        for chart in dashboard.charts() {
            let exprs = chart.targets.iter().map(|target| &target.expr);
            if let Some(device) = exprs.into_iter().find_map(|expr| missing_device(expr)) {
                skipped.push(format!("{name}: {} ({device})", chart.title));
                continue;
            }
            queries += chart.targets.len();
            let errors = run(&system.prometheus, chart, &all, &single).await;
            wrong.extend(errors.into_iter().map(|error| format!("{name}: {}: {error}", chart.title)));
        }
    }
    writes.abort();
    load.finish().await;
    for panel in skipped {
        skip("a dashboard's panel has an answer", &panel);
    }
    assert!(queries > 100, "{queries} queries");
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Returns what an expression asks about that a sandbox may lack: a network beside loopback, a disk.
fn missing_device(expr: &str) -> Option<&'static str> {
    let lists = |dir: &str, wanted: fn(&str) -> bool| {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).any(|name| wanted(&name))
    };
    let network = |name: &str| name != "lo" && !name.starts_with("veth") && !name.starts_with("ifb");
    let disk = |name: &str| !name.starts_with("loop") && !name.starts_with("ram");
    if expr.contains("node_network_") && !lists("/sys/class/net", network) {
        return Some("no network");
    }
    (expr.contains("node_disk_") && !lists("/sys/block", disk)).then_some("no disk")
}

type Choices = BTreeMap<String, String>;

/// Returns the variables as the choice `All` and as one value each sets them.
async fn choices(prometheus: &Prometheus, dashboard: &Dashboard) -> Result<(Choices, Choices), String> {
    let (mut all, mut single) = (Choices::new(), Choices::new());
    for variable in dashboard.variables() {
        let Variable::Query(variable) = variable else {
            continue;
        };
        let query = fill(&variable.query.query, &all, RATE_INTERVAL);
        let asked = query.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')'));
        let (selector, label) =
            asked.and_then(|both| both.rsplit_once(", ")).ok_or_else(|| format!("what is {query}?"))?;
        let selector = utf8_percent_encode(selector, NON_ALPHANUMERIC);
        let found = prometheus.api(&format!("/api/v1/label/{label}/values?match[]={selector}")).await?;
        let values: Vec<String> = serde_json::from_value(found).map_err(|error| error.to_string())?;
        let Some(last) = values.last() else {
            return Err(format!("${}: {query} finds nothing", variable.name));
        };
        single.insert(variable.name.clone(), query::choice(std::slice::from_ref(last)));
        all.insert(variable.name.clone(), query::choice(&values));
    }
    Ok((all, single))
}

/// Returns a text with its variables set.
fn fill(text: &str, choices: &Choices, rate_interval: &str) -> String {
    let mut text = text.replace("$__rate_interval", rate_interval);
    for (name, value) in choices {
        text = text.replace(&format!("${name}"), value);
    }
    text
}

/// Runs the queries of a panel; returns what is wrong with them.
async fn run(prometheus: &Prometheus, chart: &Chart, all: &Choices, single: &Choices) -> Vec<String> {
    let mut wrong = Vec::new();
    for target in &chart.targets {
        let expr = fill(&target.expr, all, RATE_INTERVAL);
        match prometheus.try_query(&expr).await {
            Err(error) => wrong.push(format!("{expr}: {error}")),
            Ok(series) => {
                wrong.extend(judge(&series, &target.legend_format).map(|why| format!("{expr}: {why}")));
            }
        }
        // `x or y` answers though x has no series: so each selector is asked by itself
        let selectors = query::selectors(&expr);
        if selectors.is_empty() {
            wrong.push(format!("{expr} selects nothing"));
        }
        for selector in selectors {
            match prometheus.try_query(&format!("count(last_over_time({selector}[5m]))")).await {
                Ok(found) if !found.is_empty() => {}
                found => wrong.push(format!("{selector} selects nothing: {found:?}")),
            }
        }
        if let Err(error) = prometheus.try_query(&fill(&target.expr, single, RATE_INTERVAL)).await {
            wrong.push(format!("with one value for each variable: {error}"));
        }
    }
    wrong
}

/// Returns what is wrong with an answer.
fn judge(series: &[(Labels, f64)], legend: &str) -> Option<String> {
    if series.is_empty() {
        return Some("no answer".to_owned());
    }
    if series.iter().all(|(_, value)| value.is_nan()) {
        return Some("no number".to_owned());
    }
    let unnamed = query::labels(legend).find(|label| !series.iter().all(|(of, _)| of.contains_key(*label)));
    if let Some(label) = unnamed {
        return Some(format!("the legend's {label} is not in {:?}", series[0].0));
    }
    let names: BTreeSet<_> = series.iter().map(|(of, _)| query::name(legend, of)).collect();
    (names.len() < series.len()).then(|| format!("of {} series some have the same legend", series.len()))
}
