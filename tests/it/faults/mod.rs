//! The faults that the system survives, each as a row: what is done, for how long, and the numbers that
//! it must hold.
//!
//! A row runs in two forms. The short one is a named test of the suite and takes seconds; numbers that
//! depend on how quiet the machine is are printed there and do not bind. The full one is run by
//! `tests/faults`, which prints every number beside its bound, and there all of them bind. A full run in
//! which other processes took more than a fifth of the cores proves nothing when a timed number is over
//! its bound: it is void, and tried again up to three times.

mod callpath;
mod chaos;
mod connections;
mod database;
mod edge;
mod limbo;
mod pauses;
mod postgres_speed;
mod registry;
mod slow;
mod sqlite;
mod store;
mod store_speed;
mod telemetry;
mod trust;
mod unread;
mod versions;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::process::Command;
use std::time::Duration;

use futures_util::future::LocalBoxFuture;

use crate::kit::ab::Comparison;
use crate::kit::cpu::Others;
use crate::kit::etcd;
use crate::kit::guarantees::{self, Verdict};
use crate::kit::load::Record;
use crate::kit::skip;

/// Every row, in the order of the table.
fn all() -> Vec<Row> {
    [
        registry::ROWS,
        limbo::ROWS,
        callpath::ROWS,
        slow::ROWS,
        connections::ROWS,
        pauses::ROWS,
        edge::ROWS,
        trust::ROWS,
        store::ROWS,
        sqlite::ROWS,
        store_speed::ROWS,
        versions::ROWS,
        postgres_speed::ROWS,
        database::cluster::ROWS,
        database::cluster::LONG,
        database::outage::LONG,
        database::one::ROWS,
        unread::ROWS,
        telemetry::ROWS,
        chaos::ROWS,
    ]
    .concat()
}

/// Makes the rows of a group, named `ROWS`, and the named tests of their short forms. `long_rows!` makes `LONG` of rows
/// that take too long for every run of the tests: their short forms run only by name.
macro_rules! rows {
    ($group:literal $($row:tt)*) => {
        $crate::faults::rows! { @ROWS #[cfg(test)] $group $($row)* }
    };
    (@$rows:ident #[$attribute:meta] $group:literal $(
        $name:literal $test:ident $run:ident $full:literal $short:literal $title:literal;
    )*) => {
        pub const $rows: &[super::Row] = &[$(super::Row {
            name: $name,
            group: $group,
            title: $title,
            full: std::time::Duration::from_secs($full),
            short: std::time::Duration::from_secs($short),
            run: |time| futures_util::FutureExt::boxed_local( $run(time)),
        }),*];
        $(
            #[tokio::test]
            #[$attribute]
            async fn $test() {
                super::short($name).await;
            }
        )*
    };
}
use rows;

macro_rules! long_rows {
    ($($rows:tt)*) => {
        $crate::faults::rows! { @LONG #[ignore = "its preparations take long"] $($rows)* }
    };
}
use long_rows;

/// One second; bounds and rows count in it.
const SECOND: Duration = Duration::from_secs(1);
/// Fewest rounds of a comparison whose interval says something; with fewer its ratio has no bound.
const MIN_ROUNDS: usize = 6;

/// Returns the rounds of a row that measures `phases` times in each: 10, or 2 if a phase would be too short for a
/// number worth a bound.
fn rounds(time: Duration, phases: u32) -> u32 {
    if time / (10 * phases) >= SECOND / 4 { 10 } else { 2 }
}

/// One fault.
#[derive(Clone, Copy)]
pub struct Row {
    /// `F11`, or `P11` for a number that is no fault.
    pub name: &'static str,
    pub group: &'static str,
    pub title: &'static str,
    /// How long the fault lasts in the full form.
    pub full: Duration,
    /// The same in the short form.
    pub short: Duration,
    pub run: fn(Duration) -> LocalBoxFuture<'static, Findings>,
}

/// What a finding must be.
#[derive(Clone, Copy, Debug)]
enum Bound {
    AtMost(f64),
    AtLeast(f64),
    /// Only told.
    None,
}

/// One number of a row.
#[derive(Clone, Debug)]
struct Finding {
    what: String,
    value: f64,
    unit: &'static str,
    bound: Bound,
    /// It depends on how quiet the machine is.
    timed: bool,
}

impl Finding {
    fn holds(&self) -> bool {
        match self.bound {
            Bound::AtMost(most) => self.value <= most,
            Bound::AtLeast(least) => self.value >= least,
            Bound::None => true,
        }
    }

    fn line(&self) -> String {
        let bound = match self.bound {
            Bound::AtMost(most) => format!("<= {most}"),
            Bound::AtLeast(least) => format!(">= {least}"),
            Bound::None => String::new(),
        };
        let verdict = match self.bound {
            Bound::None => "",
            _ if self.holds() => "pass",
            _ => "FAIL",
        };
        let value = (self.value * 10_000.0).round() / 10_000.0;
        format!("{:<44} {:>10} {:<2} {:<10} {verdict}", self.what, value, self.unit, bound)
    }
}

/// The numbers of one run of a row.
#[derive(Debug, Default)]
pub struct Findings {
    numbers: Vec<Finding>,
    /// Why nothing was measured: what the row needs is not there.
    skipped: Option<&'static str>,
}

impl Findings {
    fn add(&mut self, what: &str, value: f64, unit: &'static str, bound: Bound, timed: bool) {
        self.numbers.push(Finding { what: what.to_owned(), value, unit, bound, timed });
    }

    /// Returns the findings of a row that cannot run here.
    pub fn skipped(why: &'static str) -> Self {
        Self { skipped: Some(why), ..Self::default() }
    }

    /// Returns those that are over their bound. A row that bounds nothing would pass whatever happens, so that is
    /// one as well.
    fn broken(&self) -> Vec<Finding> {
        let bounds = self.numbers.iter().filter(|finding| !matches!(finding.bound, Bound::None)).count();
        let mut broken: Vec<_> = self.numbers.iter().filter(|finding| !finding.holds()).cloned().collect();
        if bounds == 0 {
            let what = "numbers with a bound".to_owned();
            broken.push(Finding { what, value: 0.0, unit: "", bound: Bound::AtLeast(1.0), timed: false });
        }
        broken
    }

    /// Notes a number for the reader.
    pub fn tell(&mut self, what: &str, value: f64, unit: &'static str) {
        self.add(what, value, unit, Bound::None, false);
    }

    /// Notes a count that must not be over `most`.
    pub fn count(&mut self, what: &str, value: usize, most: usize) {
        self.add(what, value as f64, "", Bound::AtMost(most as f64), false);
    }

    /// Notes a share, 0 to 1, that must be at least `least`, on any machine.
    pub fn share(&mut self, what: &str, value: f64, least: f64) {
        self.add(what, value, "", Bound::AtLeast(least), false);
    }

    /// Notes a time that must not be over `most`, on a quiet machine.
    pub fn time(&mut self, what: &str, value: Duration, most: Duration) {
        self.add(what, value.as_secs_f64(), "s", Bound::AtMost(most.as_secs_f64()), true);
    }

    /// Notes a ratio or a share that must be at least `least`, on a quiet machine.
    pub fn timed_share(&mut self, what: &str, value: f64, least: f64) {
        self.add(what, value, "", Bound::AtLeast(least), true);
    }

    /// Notes a ratio or a share that must not be over `most`, on a quiet machine.
    pub fn ratio(&mut self, what: &str, value: f64, most: f64) {
        self.add(what, value, "", Bound::AtMost(most), true);
    }

    /// Notes what a run of calls must hold that no fault may disturb.
    pub fn no_failures(&mut self, record: &Record) {
        self.calls(record);
        self.count("failed calls", record.failed().len(), 0);
    }

    /// Notes how many calls there were, and judges what holds whether or not some failed.
    pub fn calls(&mut self, record: &Record) {
        if !record.failed().is_empty() {
            eprintln!("{}", record.failures());
        }
        self.share("calls", record.calls.len() as f64, 1.0);
        self.count("calls not sent by the driver", record.unsent, 0);
        self.tell("sent again after a close without an answer", record.again() as f64, "");
        self.timed_guarantee("G6", guarantees::bounded_wait(record));
    }

    /// Notes a comparison whose median must not be over `most`.
    pub fn compared_at_most(&mut self, what: &str, compared: &Comparison, most: f64) {
        self.compared(what, compared);
        if compared.ratios.len() >= MIN_ROUNDS {
            self.ratio(&format!("{what}: judged"), compared.median, most);
        }
    }

    /// Notes a comparison whose median must be at least `least`.
    pub fn compared_at_least(&mut self, what: &str, compared: &Comparison, least: f64) {
        self.compared(what, compared);
        if compared.ratios.len() >= MIN_ROUNDS {
            self.timed_share(&format!("{what}: judged"), compared.median, least);
        }
    }

    /// Notes a comparison of 99th percentiles, which scatter: it fails only if its whole interval is over `most`.
    pub fn p99_compared_at_most(&mut self, what: &str, compared: &Comparison, most: f64) {
        self.compared(what, compared);
        if compared.ratios.len() >= MIN_ROUNDS {
            self.ratio(&format!("{what}: judged, low end of the interval"), compared.low, most);
        }
    }

    /// Notes a comparison of 99th percentiles of which the whole interval must be below `most`. It wants many rounds, each
    /// with many calls.
    pub fn p99_compared_below(&mut self, what: &str, compared: &Comparison, most: f64) {
        self.compared(what, compared);
        if compared.ratios.len() >= MIN_ROUNDS {
            self.ratio(&format!("{what}: judged, high end of the interval"), compared.high, most);
        }
    }

    /// Notes a comparison without a bound.
    pub fn compared(&mut self, what: &str, compared: &Comparison) {
        let spread = compared.ratios.iter().copied();
        self.tell(&format!("{what}: median of the rounds"), compared.median, "");
        self.tell("  95 % interval, low", compared.low, "");
        self.tell("  95 % interval, high", compared.high, "");
        self.tell("  least round", spread.clone().fold(f64::INFINITY, f64::min), "");
        self.tell("  largest round", spread.fold(0.0, f64::max), "");
        self.tell("  share of the cores that others took", compared.others, "");
    }

    /// Notes whether a guarantee held.
    pub fn guarantee(&mut self, name: &str, verdict: Verdict) {
        let broken = f64::from(u8::from(verdict.is_err()));
        let what = verdict.err().unwrap_or_else(|| format!("{name} broken"));
        self.add(&what, broken, "", Bound::AtMost(0.0), false);
    }

    /// Notes whether a guarantee about times held, which binds on a quiet machine.
    pub fn timed_guarantee(&mut self, name: &str, verdict: Verdict) {
        self.guarantee(name, verdict);
        if let Some(last) = self.numbers.last_mut() {
            last.timed = true;
        }
    }
}

/// Runs the short form of a row as a test: what does not depend on a quiet machine must hold.
async fn short(name: &str) {
    let row = all().into_iter().find(|row| row.name == name).expect("a row of the table");
    let findings = (row.run)(row.short).await;
    if let Some(why) = findings.skipped {
        return skip(&format!("{name}, {}", row.title), why);
    }
    let mut report = String::new();
    for finding in &findings.numbers {
        let _ = writeln!(report, "{name}  {}", finding.line());
    }
    eprint!("{report}");
    let broken: Vec<_> = findings.broken().into_iter().filter(|finding| !finding.timed).collect();
    assert!(broken.is_empty(), "{}: {broken:#?}\n{report}", row.title);
}

enum Result {
    Passed,
    Failed,
    Void,
    Skipped(&'static str),
}

/// Runs the full form of a row and prints its lines.
fn full(row: Row, time: Duration) -> Result {
    println!("{:<5} {} ({} s)", row.name, row.title, time.as_secs());
    let mut disturbed = 0.0;
    for _ in 0..3 {
        let others = Others::watch();
        // a thread and a runtime of its own: nothing is left of it afterwards, and a panic ends this row alone
        let run = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on((row.run)(time))
        });
        let Ok(findings) = run.join() else {
            println!("      FAIL: it panicked");
            return Result::Failed;
        };
        if let Some(why) = findings.skipped {
            println!("      skipped: {why}");
            return Result::Skipped(why);
        }
        disturbed = others.share();
        for finding in &findings.numbers {
            println!("      {}", finding.line());
        }
        let broken = findings.broken();
        if broken.is_empty() {
            return Result::Passed;
        }
        if broken.iter().any(|finding| !finding.timed) || !others.disturbed() {
            return Result::Failed;
        }
        println!("      void: other processes took {:.0} % of the cores", disturbed * 100.0);
    }
    println!("      VOID three times, last with {:.0} % taken by others", disturbed * 100.0);
    Result::Void
}

/// The table. `tests/faults` sets `FAULTS` (names and groups, all if empty) and `FAULTS_MINUTES` (time
/// for all rows together; each then lasts its share, at least its short form).
#[test]
#[ignore = "takes an hour; run by tests/faults"]
fn table() {
    let wanted = std::env::var("FAULTS").unwrap_or_default();
    let chosen = choose(&wanted).unwrap_or_else(|error| panic!("{error}"));
    let whole: Duration = chosen.iter().map(|row| row.full).sum();
    let minutes = std::env::var("FAULTS_MINUTES").unwrap_or_default();
    let scale = scale(&minutes, whole).unwrap_or_else(|error| panic!("{error}"));

    println!("\n{} with {}", word("date", &["-u", "+%Y-%m-%d %H:%M UTC"]), etcd_version());
    println!("microservice-app {}\n", microservice_app::build_info::VERSION);
    let (mut passed, mut failed, mut void, mut skipped) = (0, 0, 0, Vec::new());
    for row in chosen {
        match full(row, row.full.mul_f64(scale).max(row.short)) {
            Result::Passed => passed += 1,
            Result::Failed => failed += 1,
            Result::Void => void += 1,
            Result::Skipped(why) => skipped.push(format!("{}: {why}", row.name)),
        }
    }
    println!("\n{passed} passed, {failed} failed, {void} void, {} skipped", skipped.len());
    for row in skipped {
        println!("skipped {row}");
    }
    assert_eq!(failed, 0, "rows failed");
}

/// Returns the rows that a list of names and groups means; all for an empty one.
///
/// # Errors
/// A word that means no row, with those that would.
fn choose(wanted: &str) -> std::result::Result<Vec<Row>, String> {
    let all = all();
    let wanted: Vec<_> = wanted.split_whitespace().map(str::to_lowercase).collect();
    let means = |word: &str, row: &Row| word == row.name.to_lowercase() || word == row.group;
    if let Some(word) = wanted.iter().find(|word| !all.iter().any(|row| means(word, row))) {
        let groups: BTreeSet<_> = all.iter().map(|row| row.group).collect();
        let names: Vec<_> = all.iter().map(|row| row.name).collect();
        let groups = groups.into_iter().collect::<Vec<_>>().join(" ");
        return Err(format!(
            "there is no row or group {word:?}; groups: {groups}; rows: {}",
            names.join(" ")
        ));
    }
    let chosen = |row: &Row| wanted.is_empty() || wanted.iter().any(|word| means(word, row));
    Ok(all.into_iter().filter(chosen).collect())
}

/// Returns by what the times of rows that take `whole` are to be multiplied so that they take so many minutes; 1 for
/// no number.
///
/// # Errors
/// What is no time above 0.
fn scale(minutes: &str, whole: Duration) -> std::result::Result<f64, String> {
    if minutes.is_empty() {
        return Ok(1.0);
    }
    match minutes.parse::<f64>() {
        Ok(number) if number > 0.0 && number.is_finite() => {
            Ok((number * 60.0 / whole.as_secs_f64().max(1.0)).min(1.0))
        }
        _ => Err(format!("{minutes:?} is no number of minutes above 0")),
    }
}

#[test]
fn a_choice_of_rows_runs_what_it_names_or_is_refused() {
    let names = |wanted: &str| choose(wanted).map(|rows| rows.iter().map(|row| row.name).collect::<Vec<_>>());
    assert_eq!(names("").map(|rows| rows.len()), Ok(all().len()));
    assert_eq!(names("P12 f11"), Ok(vec!["F11", "P12"]));
    let groups: BTreeSet<_> = all().iter().map(|row| row.group).collect();
    for group in groups {
        assert!(choose(group).is_ok_and(|rows| !rows.is_empty()), "{group}");
    }
    for wrong in ["F0", "stores", "registry F11x"] {
        let error = names(wrong).unwrap_err();
        assert!(error.contains("groups: callpath chaos registry store telemetry; rows: F11 F12"), "{error}");
    }
    let hour = Duration::from_hours(1);
    assert_eq!((scale("", hour), scale("30", hour), scale("90.5", hour)), (Ok(1.0), Ok(0.5), Ok(1.0)));
    for wrong in ["0", "0.0", "-1", "x", ".", "1.2.3", "inf", "nan"] {
        assert!(scale(wrong, hour).is_err(), "{wrong}");
    }
}

/// The script reads the names from the code, to refuse a wrong one before it builds anything.
#[test]
fn the_script_knows_every_row_and_group() {
    let script = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/faults")).arg("F0").output();
    let script = script.expect("tests/faults runs");
    assert_eq!(script.status.code(), Some(2));
    let told = String::from_utf8_lossy(&script.stderr).into_owned();
    let list = |head: &str| {
        let line = told.lines().find_map(|line| line.strip_prefix(head)).unwrap_or_default();
        line.split_whitespace().map(ToOwned::to_owned).collect::<BTreeSet<_>>()
    };
    assert_eq!(list("rows: "), all().iter().map(|row| row.name.to_owned()).collect(), "{told}");
    assert_eq!(list("groups: "), all().iter().map(|row| row.group.to_owned()).collect(), "{told}");
}

#[test]
fn a_row_without_a_bound_or_with_no_number_is_broken() {
    let mut findings = Findings::default();
    assert_eq!(findings.broken().len(), 1);
    findings.tell("told", 1.0, "");
    assert_eq!(findings.broken().len(), 1);
    findings.count("bound", 0, 0);
    assert_eq!(findings.broken().len(), 0);
    findings.ratio("not a number", f64::NAN, 1.0);
    assert_eq!(findings.broken().len(), 1);
}

fn word(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output();
    output.map_or_else(|e| e.to_string(), |out| String::from_utf8_lossy(&out.stdout).trim().to_owned())
}

fn etcd_version() -> String {
    word(&etcd::program(), &["--version"]).lines().next().unwrap_or("no etcd").to_owned()
}

/// The page lists every row, and no other.
#[test]
fn the_page_lists_the_rows() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/faults.md");
    let page = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let listed = page.lines().skip_while(|line| !line.starts_with("| Row |")).skip(2);
    let listed: BTreeSet<_> =
        listed.take_while(|line| line.starts_with('|')).map(ToOwned::to_owned).collect();
    let rows = all().into_iter().map(|row| {
        let Row { name, group, title, full, .. } = row;
        format!("| {name} | {group} | {title} | {} |", full.as_secs())
    });
    assert_eq!(listed, rows.collect());
}
