//! The keys of a Grafana dashboard that ours use, and no other: a key that Grafana does not know is no error
//! there, it just does nothing.
//!
//! The names and values are those of Grafana's `@grafana/schema`, compared by `tests/check-dashboards` with
//! 12.4.11 and 13.2.3. That comparison wants npm; this one is in every test run. A new key is added here after
//! it has passed there. What is left out has Grafana's default.

#![expect(dead_code, reason = "most keys only have to be known")]
#![expect(
    clippy::struct_excessive_bools,
    clippy::struct_field_names,
    reason = "the names and types are Grafana's"
)]

use std::collections::BTreeMap;

use serde::Deserialize;

/// One file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Dashboard {
    pub uid: String,
    pub title: String,
    pub description: String,
    pub tags: Vec<String>,
    pub schema_version: u32,
    editable: bool,
    graph_tooltip: u8,
    refresh: String,
    timezone: String,
    time: Time,
    pub links: Vec<Link>,
    templating: Templating,
    pub panels: Vec<Panel>,
}

impl Dashboard {
    /// Returns its variables.
    pub fn variables(&self) -> &[Variable] {
        &self.templating.list
    }

    /// Returns its panels that show something.
    pub fn charts(&self) -> impl Iterator<Item = &Chart> {
        self.panels.iter().filter_map(Panel::chart)
    }

    /// Returns the panels below a row's title.
    pub fn charts_of(&self, row: &str) -> impl Iterator<Item = &Chart> {
        let after = self.panels.iter().skip_while(move |panel| !panel.is_row(|title| title == row)).skip(1);
        after.take_while(|panel| !panel.is_row(|_| true)).filter_map(Panel::chart)
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Time {
    from: String,
    to: String,
}

/// A link in a dashboard's head.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Link {
    #[serde(rename = "type")]
    kind: LinkType,
    title: String,
    pub tags: Vec<String>,
    as_dropdown: bool,
    icon: String,
    include_vars: bool,
    keep_time: bool,
    target_blank: bool,
    tooltip: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum LinkType {
    Dashboards,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Templating {
    list: Vec<Variable>,
}

/// A variable that the reader chooses.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Variable {
    Datasource(DatasourceVariable),
    Query(QueryVariable),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatasourceVariable {
    pub name: String,
    label: String,
    pub query: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct QueryVariable {
    pub name: String,
    label: String,
    description: String,
    pub datasource: Datasource,
    pub query: VariableQuery,
    refresh: u8,
    sort: u8,
    multi: bool,
    include_all: bool,
    current: Choice,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct VariableQuery {
    qry_type: u8,
    /// `label_values(SELECTOR, LABEL)`
    pub query: String,
    ref_id: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Choice {
    text: Vec<String>,
    value: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Datasource {
    #[serde(rename = "type")]
    pub kind: String,
    pub uid: String,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Panel {
    Row(Row),
    Timeseries(Kind<Lines, TimeseriesOptions>),
    Stat(Kind<NoCustom, StatOptions>),
}

impl Panel {
    fn chart(&self) -> Option<&Chart> {
        match self {
            Self::Row(_) => None,
            Self::Timeseries(Kind { chart, .. }) | Self::Stat(Kind { chart, .. }) => Some(chart),
        }
    }

    fn is_row(&self, fits: impl Fn(&str) -> bool) -> bool {
        matches!(self, Self::Row(row) if fits(&row.title))
    }
}

/// A title over the panels below it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Row {
    pub id: u32,
    title: String,
    collapsed: bool,
    pub grid_pos: GridPos,
    panels: [u8; 0],
}

/// A panel with data, by what is special about its type: fields and options.
#[derive(Debug, Deserialize)]
#[serde(from = "Whole<F, O>", bound = "F: Deserialize<'de>, O: Deserialize<'de>")]
pub struct Kind<F, O> {
    pub chart: Chart,
    custom: Option<F>,
    options: O,
}

/// What all panels with data have.
#[derive(Debug)]
pub struct Chart {
    pub id: u32,
    pub title: String,
    pub description: String,
    pub grid_pos: GridPos,
    pub datasource: Datasource,
    pub targets: Vec<Target>,
    pub unit: Unit,
    /// Upper end of the axis.
    pub max: Option<f64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Whole<F, O> {
    id: u32,
    title: String,
    description: String,
    grid_pos: GridPos,
    datasource: Datasource,
    targets: Vec<Target>,
    field_config: FieldConfig<F>,
    options: O,
}

impl<F, O> From<Whole<F, O>> for Kind<F, O> {
    fn from(whole: Whole<F, O>) -> Self {
        let Whole { id, title, description, grid_pos, datasource, targets, field_config, options } = whole;
        let Defaults { unit, max, custom, .. } = field_config.defaults;
        let chart = Chart { id, title, description, grid_pos, datasource, targets, unit, max };
        Self { chart, custom, options }
    }
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GridPos {
    pub x: u32,
    pub y: u32,
    pub w: u32,
    pub h: u32,
}

/// A query.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Target {
    pub ref_id: String,
    pub expr: String,
    pub legend_format: String,
    #[serde(default)]
    instant: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, bound = "F: Deserialize<'de>")]
struct FieldConfig<F> {
    defaults: Defaults<F>,
    overrides: Vec<Override>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, bound = "F: Deserialize<'de>")]
struct Defaults<F> {
    unit: Unit,
    decimals: Option<u8>,
    min: Option<f64>,
    max: Option<f64>,
    thresholds: Option<Thresholds>,
    custom: Option<F>,
}

/// The ids of units, as Grafana's value formats have them.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
pub enum Unit {
    #[serde(rename = "none")]
    None,
    #[serde(rename = "short")]
    Short,
    #[serde(rename = "percentunit")]
    Share,
    #[serde(rename = "s")]
    Seconds,
    #[serde(rename = "dtdurations")]
    Duration,
    #[serde(rename = "bytes")]
    Bytes,
    #[serde(rename = "Bps")]
    BytesPerSecond,
    #[serde(rename = "bps")]
    BitsPerSecond,
    #[serde(rename = "pps")]
    PacketsPerSecond,
    #[serde(rename = "reqps")]
    RequestsPerSecond,
    #[serde(rename = "ops")]
    OperationsPerSecond,
    #[serde(rename = "cps")]
    CountsPerSecond,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Thresholds {
    mode: Absolute,
    steps: Vec<Step>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Absolute {
    Absolute,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Step {
    color: String,
    /// None for the first one: from minus infinity.
    value: Option<f64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Override {
    matcher: Matcher,
    properties: Vec<Property>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Matcher {
    id: ByRegexp,
    options: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
enum ByRegexp {
    ByRegexp,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "id", content = "value", rename_all = "lowercase", deny_unknown_fields)]
enum Property {
    Color(Color),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Color {
    mode: Fixed,
    fixed_color: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Fixed {
    Fixed,
}

/// How lines are drawn.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Lines {
    fill_opacity: u8,
    show_points: Never,
    stacking: Option<Stacking>,
    line_interpolation: Option<Interpolation>,
    thresholds_style: Option<ThresholdsStyle>,
}

/// A stat panel has no such fields.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoCustom {}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Never {
    Never,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stacking {
    group: String,
    mode: Normal,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Normal {
    Normal,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Interpolation {
    StepAfter,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ThresholdsStyle {
    mode: Dashed,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Dashed {
    Dashed,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TimeseriesOptions {
    tooltip: Tooltip,
    legend: Option<Legend>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Tooltip {
    mode: Multi,
    sort: Descending,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Multi {
    Multi,
}

#[derive(Debug, Deserialize)]
enum Descending {
    #[serde(rename = "desc")]
    Descending,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Legend {
    show_legend: bool,
    display_mode: DisplayMode,
    placement: Placement,
    calcs: Vec<Calc>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum DisplayMode {
    Table,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Placement {
    Bottom,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Calc {
    Mean,
    Max,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct StatOptions {
    graph_mode: GraphMode,
    text_mode: Option<TextMode>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum GraphMode {
    None,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum TextMode {
    ValueAndName,
}

/// Reads every dashboard, by the name of its file.
///
/// # Panics
/// If one is not what Grafana takes: the message names file, line and key.
pub fn load() -> BTreeMap<String, Dashboard> {
    let dir = crate::kit::prometheus::shipped("dashboards");
    let files = std::fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let mut found = BTreeMap::new();
    for path in files.map(|file| file.expect("an entry").path()) {
        let text = std::fs::read_to_string(&path).expect("a text file");
        let read = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        found.insert(path.file_stem().unwrap_or_default().to_string_lossy().into_owned(), read);
    }
    found
}
