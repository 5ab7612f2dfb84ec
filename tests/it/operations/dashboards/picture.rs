//! The picture in the README: what panels of the services dashboard show of a run in which things go wrong. The
//! queries and units are the dashboard's own, the data is a real Prometheus'; nothing is smoothed or left out.

use std::fmt::Write as _;
use std::time::{Duration, Instant, SystemTime};

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::model::{self, Chart, Unit};
use super::system::System;
use super::{choices, fill, query};
use crate::kit::prometheus::labels;

/// What is drawn, by row and title, two a line.
const PANELS: [(&str, &str); 6] = [
    ("HTTP", "Requests"),
    ("HTTP", "Latency, all routes"),
    ("HTTP", "Answers by status"),
    ("HTTP", "Server errors"),
    ("gRPC", "Calls"),
    ("Processes", "CPU"),
];
/// The phases of the run: seconds, requests a second.
const PHASES: [(u64, f64); 3] = [(45, 40.0), (45, 120.0), (30, 60.0)];
/// What happens meanwhile, and after how many seconds.
const EVENTS: [(u64, &str); 3] =
    [(60, "an instance of feed is killed"), (95, "topic ends"), (105, "topic is back")];
/// Stands for `$__rate_interval`.
const RATE_INTERVAL: &str = "5s";

const WIDTH: f64 = 900.0;
const COLORS: [&str; 10] = [
    "#4c8fd6", "#e08a2e", "#3f9f5f", "#d9534f", "#9b72cf", "#9c6b4e", "#d372b5", "#7f7f7f", "#a8a832",
    "#2fa9b8",
];

/// One line of a panel.
struct Line {
    name: String,
    /// Seconds since the run began, value.
    points: Vec<(f64, f64)>,
}

#[tokio::test]
#[ignore = "makes docs/services.svg in two minutes: cargo test --release --test it picture -- --ignored"]
async fn picture_of_the_services_dashboard() {
    let mut system = System::start("1s").await;
    system.wait_until_scraped(5).await;
    let (begun, clock) = (SystemTime::now(), Instant::now());
    let (mut due, mut sent, mut failed) = (0, 0, 0);
    let mut events = EVENTS.into_iter().peekable();
    for (seconds, rate) in PHASES {
        due += seconds;
        let load = system.load(rate).start();
        while clock.elapsed() < Duration::from_secs(due) {
            let now = clock.elapsed();
            if let Some((_, event)) = events.next_if(|(at, _)| now >= Duration::from_secs(*at)) {
                system.happen(event).await;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let record = load.finish().await;
        sent += record.calls.len();
        failed += record.calls.iter().filter(|call| !call.answered()).count();
    }
    let dashboard = model::load().remove("services").unwrap();
    let (all, _) = choices(&system.prometheus, &dashboard).await.unwrap();
    let start = begun.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64();
    let mut panels = Vec::new();
    for (row, title) in PANELS {
        let chart = dashboard.charts_of(row).find(|chart| chart.title == title).expect(title);
        let mut lines = Vec::new();
        for target in &chart.targets {
            let expr = fill(&target.expr, &all, RATE_INTERVAL);
            let expr = utf8_percent_encode(&expr, NON_ALPHANUMERIC);
            let path =
                format!("/api/v1/query_range?query={expr}&start={start}&end={}&step=1", start + due as f64);
            let data = system.prometheus.api(&path).await.unwrap();
            for series in data["result"].as_array().unwrap() {
                let name = query::name(&target.legend_format, &labels(&series["metric"]));
                let values = series["values"].as_array().unwrap().iter();
                let point = |value: &serde_json::Value| {
                    let number: f64 = value[1].as_str()?.parse().ok()?;
                    number.is_finite().then_some((value[0].as_f64()? - start, number))
                };
                lines.push(Line { name, points: values.filter_map(point).collect() });
            }
        }
        assert!(!lines.is_empty(), "{title}");
        lines.sort_by(|a, b| a.name.cmp(&b.name));
        panels.push((row, chart, lines));
    }
    let build = if cfg!(debug_assertions) { "a build without optimisation" } else { "the release build" };
    let cores = std::thread::available_parallelism().unwrap();
    let footer = format!(
        "{sent} requests, {failed} answered 5xx or not at all; {build}, {cores} cores shared with the load"
    );
    let svg = draw(&panels, due as f64, &footer);
    assert!(svg.len() < 150_000, "{} bytes", svg.len());
    std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/services.svg"), svg).unwrap();
}

fn draw(panels: &[(&str, &Chart, Vec<Line>)], seconds: f64, footer: &str) -> String {
    let (width, height, entry) = (WIDTH / 2.0 - 28.0, 130.0, 13.0);
    let mut body = String::new();
    let mut top = 8.0;
    for pair in panels.chunks(2) {
        let entries = pair.iter().map(|(_, _, lines)| lines.len().div_ceil(2)).max().unwrap_or(0);
        for (column, (row, chart, lines)) in pair.iter().enumerate() {
            let _ =
                write!(body, "<g transform=\"translate({},{top})\">", 10.0 + column as f64 * (WIDTH / 2.0));
            panel(&mut body, &format!("{row}: {}", chart.title), chart.unit, lines, (seconds, width, height));
            body.push_str("</g>\n");
        }
        top += height + 48.0 + entries as f64 * entry;
    }
    let text = |y: f64, text: &str| format!("<text class=\"s\" x=\"10\" y=\"{y}\">{}</text>", escape(text));
    let happened = EVENTS.map(|(at, what)| format!("{}: {what}", clock(at as f64))).join(", ");
    body.push_str(&text(top + 4.0, &format!("Dashed lines: {happened}.")));
    body.push_str(&text(top + 19.0, &format!("{footer}. Times are minutes:seconds.")));
    let mut style = String::from(
        "text{font:12px sans-serif;fill:#424a53}.s{font-size:10px;fill:#59636e}.g{stroke:#8b949e;stroke-opacity:.3}\
         .e{stroke:#8b949e;stroke-dasharray:3 3}polyline{fill:none;stroke-width:1.4;stroke-linejoin:round}\
         @media(prefers-color-scheme:dark){text{fill:#d1d7e0}.s{fill:#9198a1}}",
    );
    for (number, color) in COLORS.iter().enumerate() {
        let _ = write!(style, ".c{number}{{stroke:{color}}}");
    }
    let height = top + 28.0;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" \
         role=\"img\" aria-label=\"Panels of the services dashboard\"><style>{style}</style>\n{body}</svg>\n"
    )
}

fn panel(
    out: &mut String,
    title: &str,
    unit: Unit,
    lines: &[Line],
    (seconds, width, height): (f64, f64, f64),
) {
    let (left, top) = (44.0, 22.0);
    let highest = lines.iter().flat_map(|line| &line.points).map(|point| point.1).fold(0.0, f64::max);
    let step = nice(highest / 3.0);
    let most = step * (highest / step).ceil().max(1.0);
    let x = |at: f64| left + at / seconds * (width - left);
    let y = |value: f64| top + height - value / most * height;
    let _ = write!(out, "<text x=\"0\" y=\"12\">{}</text>", escape(title));
    let mut mark = 0.0;
    while mark <= most * 1.001 {
        let at = y(mark);
        let _ = write!(out, "<path class=\"g\" d=\"M{left} {at:.1}H{width}\"/>");
        let label = format(unit, mark);
        let _ = write!(
            out,
            "<text class=\"s\" x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
            left - 4.0,
            at + 3.0
        );
        mark += step;
    }
    for (at, _) in EVENTS {
        let _ = write!(out, "<path class=\"e\" d=\"M{:.1} {top}V{}\"/>", x(at as f64), top + height);
    }
    let mut minute = 0.0;
    while minute <= seconds {
        let label = clock(minute);
        let _ = write!(
            out,
            "<text class=\"s\" x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{label}</text>",
            x(minute),
            top + height + 12.0
        );
        minute += 30.0;
    }
    for (number, line) in lines.iter().enumerate() {
        let (color, dash) =
            (number % COLORS.len(), if number < COLORS.len() { "" } else { " stroke-dasharray=\"4 2\"" });
        let points = line.points.iter().map(|(at, value)| format!("{:.1},{:.1}", x(*at), y(*value)));
        let points = points.collect::<Vec<_>>().join(" ");
        let _ = write!(out, "<polyline class=\"c{color}\"{dash} points=\"{points}\"/>");
        let (entry_x, entry_y) = (
            left + (number % 2) as f64 * (width - left) / 2.0,
            top + height + 26.0 + (number / 2) as f64 * 13.0,
        );
        let _ = write!(
            out,
            "<polyline class=\"c{color}\"{dash} points=\"{entry_x},{0:.0} {1},{0:.0}\"/><text class=\"s\" x=\"{2}\" y=\"{entry_y}\">{3}</text>",
            entry_y - 3.0,
            entry_x + 12.0,
            entry_x + 16.0,
            escape(&line.name)
        );
    }
}

/// Returns 1, 2 or 5 times a power of ten, at least `least`.
fn nice(least: f64) -> f64 {
    let power = 10f64.powf(least.max(1e-9).log10().floor());
    [1.0, 2.0, 5.0, 10.0]
        .map(|times| times * power)
        .into_iter()
        .find(|step| *step >= least * 0.999)
        .unwrap_or(power)
}

/// Returns a value as an axis shows it.
fn format(unit: Unit, value: f64) -> String {
    let short = |value: f64| format!("{}", (value * 1000.0).round() / 1000.0);
    match unit {
        Unit::Seconds if value == 0.0 => "0".to_owned(),
        Unit::Seconds if value < 1.0 => format!("{} ms", short(value * 1000.0)),
        Unit::Seconds => format!("{} s", short(value)),
        Unit::Share => format!("{} %", short(value * 100.0)),
        Unit::RequestsPerSecond => format!("{}/s", short(value)),
        _ => short(value),
    }
}

/// Returns seconds as minutes and seconds.
fn clock(seconds: f64) -> String {
    format!("{}:{:02}", seconds as u64 / 60, seconds as u64 % 60)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
