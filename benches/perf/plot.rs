//! Plots: one SVG with panels side by side, each with a logarithmic axis to the right and one from 0 upwards.

use std::fmt::Write as _;
use std::path::Path;

use serde::Serialize;

const WIDTH: f64 = 420.0;
const HEIGHT: f64 = 300.0;
/// Around the field of a panel.
const LEFT: f64 = 58.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 44.0;
const BOTTOM: f64 = 44.0;
const COLOURS: [&str; 4] = ["#1f5fa8", "#c8553d", "#3a7d44", "#7b4b94"];

/// One line of a panel.
#[derive(Clone, Debug, Serialize)]
pub struct Series {
    pub name: String,
    pub points: Vec<(f64, f64)>,
}

/// What is drawn over the same numbers.
#[derive(Clone, Debug, Serialize)]
pub struct Panel {
    pub title: &'static str,
    /// What the axis to the right counts.
    pub of: &'static str,
    pub series: Vec<Series>,
}

impl Panel {
    pub fn new(title: &'static str, of: &'static str, series: Vec<(&str, Vec<(f64, f64)>)>) -> Self {
        let series =
            series.into_iter().map(|(name, points)| Series { name: name.to_owned(), points }).collect();
        Self { title, of, series }
    }
}

/// Writes a file with these panels.
pub fn write(file: &Path, panels: &[Panel]) {
    let width = WIDTH * panels.len() as f64;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"{width}\" height=\"{HEIGHT}\" fill=\"#ffffff\"/>\n"
    );
    for (number, panel) in panels.iter().enumerate() {
        let _ = writeln!(svg, "<g transform=\"translate({} 0)\">{}</g>", WIDTH * number as f64, draw(panel));
    }
    svg += "</svg>\n";
    std::fs::create_dir_all(file.parent().expect("a directory")).expect("a directory");
    std::fs::write(file, svg).expect("a file");
}

fn draw(panel: &Panel) -> String {
    let all = || panel.series.iter().flat_map(|series| &series.points);
    let low = all().map(|point| point.0).fold(f64::INFINITY, f64::min);
    let high = all().map(|point| point.0).fold(0.0, f64::max);
    let top = ceiling(all().map(|point| point.1).fold(0.0, f64::max));
    let across = WIDTH - LEFT - RIGHT;
    let up = HEIGHT - TOP - BOTTOM;
    let x = |value: f64| LEFT + across * (value / low).ln() / (high / low).ln().max(1e-9);
    let y = |value: f64| HEIGHT - BOTTOM - up * value / top;
    let mut svg = format!("<text x=\"{LEFT}\" y=\"16\" font-weight=\"bold\">{}</text>", panel.title);
    for step in 0..=4 {
        let value = top * f64::from(step) / 4.0;
        let (at, text) = (y(value), short(value));
        let _ = write!(
            svg,
            "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#dddddd\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{text}</text>",
            WIDTH - RIGHT,
            LEFT - 6.0,
            at + 4.0
        );
    }
    let mut marks: Vec<f64> = all().map(|point| point.0).collect();
    marks.sort_by(f64::total_cmp);
    marks.dedup();
    let mut last = f64::NEG_INFINITY;
    for value in marks {
        let at = x(value);
        if at - last < 34.0 {
            continue;
        }
        last = at;
        let _ = write!(
            svg,
            "<text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
            HEIGHT - BOTTOM + 16.0,
            short(value)
        );
    }
    let middle = LEFT + across / 2.0;
    let _ =
        write!(svg, "<text x=\"{middle}\" y=\"{}\" text-anchor=\"middle\">{}</text>", HEIGHT - 8.0, panel.of);
    let mut legend = LEFT;
    for (series, colour) in panel.series.iter().zip(COLOURS) {
        let points: Vec<_> =
            series.points.iter().map(|point| format!("{:.1},{:.1}", x(point.0), y(point.1))).collect();
        let _ = write!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            points.join(" ")
        );
        for (cx, cy) in series.points.iter().map(|point| (x(point.0), y(point.1))) {
            let _ = write!(svg, "<circle cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"3\" fill=\"{colour}\"/>");
        }
        let _ = write!(svg, "<text x=\"{legend}\" y=\"34\" fill=\"{colour}\">{}</text>", series.name);
        legend += 12.0 + 7.0 * series.name.len() as f64;
    }
    svg
}

/// Returns the next round number.
fn ceiling(value: f64) -> f64 {
    let power = 10_f64.powf(value.max(1e-6).log10().floor());
    [1.0, 2.0, 4.0, 5.0, 8.0, 10.0]
        .map(|step| step * power)
        .into_iter()
        .find(|top| *top >= value)
        .unwrap_or(value)
}

fn short(value: f64) -> String {
    match value {
        value if value >= 1e6 => format!("{}M", (value / 1e5).round() / 10.0),
        value if value >= 1e3 => format!("{}k", (value / 1e2).round() / 10.0),
        value => format!("{}", (value * 100.0).round() / 100.0),
    }
}
