//! The table and the file of a comparison.

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, ExitCode};

use super::goals::{Bound, Form, Verdict};
use super::headline::{Measure, Results, measured};
use super::kit::ab::Comparison;
use super::options::Options;
use super::sides::Side;

/// Share of the cores that others may take before nothing counts.
const DISTURBED: f64 = 0.2;
/// Around the table in docs/performance.md.
const BEGIN: &str = "<!-- tests/perf --accept writes from here -->";
const END: &str = "<!-- to here -->";

/// Writes target/perf/perf.json and target/perf/perf.md, prints the table, and the goals met and missed as the last line.
pub fn write(options: &Options, sides: &[Side], results: &Results, goals: &[Verdict]) -> ExitCode {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (table, dir) = (table(options, sides, results, goals), root.join("target/perf"));
    std::fs::create_dir_all(&dir).expect("a directory");
    std::fs::write(dir.join("perf.md"), &table).expect("a file");
    let verdict = |verdict: &Verdict| {
        let found = verdict.found.as_ref();
        serde_json::json!({
            "goal": verdict.goal.about, "bound": bound(verdict.goal.bound), "met": verdict.met(),
            "median": found.map(|found| found.median), "low": found.map(|found| found.low),
            "high": found.map(|found| found.high), "rounds": found.map(|found| &found.ratios),
        })
    };
    let json = serde_json::json!({
        "command": options.command, "machine": machine(), "version": version(&measured(options)), "rate": options.rate,
        "seconds": options.seconds, "results": results, "goals": goals.iter().map(verdict).collect::<Vec<_>>(),
    });
    std::fs::write(dir.join("perf.json"), serde_json::to_string_pretty(&json).expect("JSON"))
        .expect("a file");
    println!("\n{table}");
    if options.accept {
        accept(&root.join("docs/performance.md"), &table);
    }
    println!("{}", summary(options, results, goals));
    ExitCode::SUCCESS
}

fn summary(options: &Options, results: &Results, goals: &[Verdict]) -> String {
    let void = results.others > DISTURBED;
    if options.builds.is_some() {
        return if void { "void: the machine was not quiet".to_owned() } else { "compared".to_owned() };
    }
    let count = |met| goals.iter().filter(|verdict| verdict.met() == met).count();
    let missed: Vec<_> = goals
        .iter()
        .filter(|verdict| verdict.met() == Some(false))
        .map(|verdict| verdict.goal.about)
        .collect();
    let missed = if missed.is_empty() { String::new() } else { format!(" ({})", missed.join("; ")) };
    format!(
        "{}{} goals met, {} missed{missed}, {} not measured",
        if void { "void, the machine was not quiet: " } else { "" },
        count(Some(true)),
        count(Some(false)),
        count(None)
    )
}

fn table(options: &Options, sides: &[Side], results: &Results, goals: &[Verdict]) -> String {
    let mut text = format!(
        "`{}`; {} rounds, {} s a measurement, {} requests/s at the fixed rate; {}; {}; others took {:.0} % of the cores.\n\n",
        options.command,
        results.rounds,
        options.seconds,
        options.rate,
        machine(),
        version(&measured(options)),
        results.others * 100.0
    );
    text += "| Side | requests/s (least to greatest) | p50 / p99 ms at the peak | CPU us a request at the fixed rate: gateway + service | mean / p99 us there | MB |\n|---|---|---|---|---|---|\n";
    for side in sides {
        let _ = writeln!(text, "{}", row(side, results));
    }
    if options.builds.is_some() {
        text += "\n| After over before | Median | 95 % interval |\n|---|---|---|\n";
        for (name, measure) in [
            ("requests/s", Measure::Peak),
            ("gateway, CPU a request", Measure::GatewayCpu),
            ("feed, CPU a request", Measure::ServiceCpu),
            ("mean latency", Measure::Mean),
        ] {
            let value = |side, round| results.value(side, measure, round);
            let ratios = (0..results.rounds)
                .filter_map(|round| Some(value("after", round)? / value("before", round)?));
            let ratios: Vec<_> = ratios.collect();
            if !ratios.is_empty() {
                let found = Comparison::of(ratios, results.others);
                let _ = writeln!(
                    text,
                    "| {name} | {:.3} | {:.3} to {:.3} |",
                    found.median, found.low, found.high
                );
            }
        }
    } else {
        text += &layers(sides, results);
        text += "\n| Goal | Bound | Found | 95 % interval | |\n|---|---|---|---|---|\n";
        for verdict in goals {
            let _ = writeln!(text, "{}", goal(verdict));
        }
    }
    if !results.remarks.is_empty() {
        let _ = writeln!(text, "\n{} measurements did not count:\n", results.remarks.len());
        for remark in results.remarks.iter().take(20) {
            let _ = writeln!(text, "- {remark}");
        }
    }
    text
}

fn number(value: Option<f64>, digits: usize) -> String {
    value.map_or("-".to_owned(), |value| format!("{value:.digits$}"))
}

fn row(side: &Side, results: &Results) -> String {
    let median = |measure| results.median(&side.name, measure);
    let kilo = |value: f64| format!("{:.1}k", value / 1e3);
    let peak = median(Measure::Peak).map_or("-".to_owned(), |peak| {
        let (low, high) = results.spread(&side.name, Measure::Peak).unwrap_or((peak, peak));
        format!("{} ({} to {})", kilo(peak), kilo(low), kilo(high))
    });
    format!(
        "| `{}`: {} | {peak} | {} / {} | {} + {} | {} / {} | {} |",
        side.name,
        side.about,
        number(median(Measure::PeakP50), 2),
        number(median(Measure::PeakP99), 2),
        number(median(Measure::GatewayCpu), 1),
        number(median(Measure::ServiceCpu), 1),
        number(median(Measure::Mean), 0),
        number(median(Measure::P99), 0),
        number(median(Measure::Memory), 1)
    )
}

/// What each layer costs: how much less the chain without it needs.
fn layers(sides: &[Side], results: &Results) -> String {
    let mut text = String::new();
    for side in sides.iter().filter(|side| side.layer || side.name == "bare" || side.name == "traces-all") {
        let value = |side: &str, round| results.value(side, Measure::AllCpu, round);
        let each = (0..results.rounds)
            .filter_map(|round| Some(value("everything", round)? - value(&side.name, round)?));
        let differences: Vec<_> = each.collect();
        if differences.is_empty() {
            continue;
        }
        if text.is_empty() {
            text +=
                "\n| CPU us a request that `everything` needs more than | | 95 % interval |\n|---|---|---|\n";
        }
        let found = Comparison::of(differences, results.others);
        let _ = writeln!(
            text,
            "| `{}`: {} | {:.1} | {:.1} to {:.1} |",
            side.name, side.about, found.median, found.low, found.high
        );
    }
    text
}

fn goal(verdict: &Verdict) -> String {
    let digits = if verdict.goal.form == Form::Ratio { 3 } else { 1 };
    let found = verdict.found.as_ref();
    let interval = found.map_or("-".to_owned(), |f| format!("{:.digits$} to {:.digits$}", f.low, f.high));
    let met = match verdict.met() {
        Some(true) => "met",
        Some(false) => "**missed**",
        None => "not measured",
    };
    let found = number(found.map(|found| found.median), digits);
    format!("| {} | {} | {found} | {interval} | {met} |", verdict.goal.about, bound(verdict.goal.bound))
}

fn bound(bound: Bound) -> String {
    match bound {
        Bound::AtMost(bound) => format!("<= {bound}"),
        Bound::AtLeast(bound) => format!(">= {bound}"),
    }
}

fn machine() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    let model = model.trim_start_matches(['\t', ' ', ':']);
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    format!("{cores} cores, {model}")
}

/// Returns what a program says that it is.
pub fn version(program: &Path) -> String {
    let output = Command::new(program).arg("--version").output().expect("the program");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Puts a table between the marks of a page.
fn accept(page: &Path, table: &str) {
    let text = std::fs::read_to_string(page).expect("the page");
    let parts = text.split_once(BEGIN).and_then(|(before, rest)| Some((before, rest.split_once(END)?.1)));
    let (before, after) = parts.unwrap_or_else(|| panic!("{} has not both marks", page.display()));
    std::fs::write(page, format!("{before}{BEGIN}\n\n{}\n\n{END}{after}", table.trim())).expect("the page");
}
