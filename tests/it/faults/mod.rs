//! The faults that the system survives, each as a row: what is done, for how long, and the numbers that
//! it must hold.
//!
//! A row runs in two forms. The short one is a named test of the suite and takes seconds; numbers that
//! depend on how quiet the machine is are printed there and do not bind. The full one is run by
//! `tests/faults`, which prints every number beside its bound, and there all of them bind. A full run in
//! which other processes took more than a fifth of the cores proves nothing when a timed number is over
//! its bound: it is void, and tried again up to three times.

mod callpath;
mod edge;
mod registry;
mod telemetry;

use std::fmt::Write as _;
use std::process::Command;
use std::time::Duration;

use futures_util::future::LocalBoxFuture;

use crate::kit::ab::Comparison;
use crate::kit::cpu::Others;
use crate::kit::etcd;
use crate::kit::guarantees::{self, Verdict};
use crate::kit::load::Record;

/// Every row, in the order of the table.
fn all() -> Vec<Row> {
    [registry::ROWS, callpath::ROWS, edge::ROWS, telemetry::ROWS].concat()
}

/// Makes the rows of a group and the named tests of their short forms.
macro_rules! rows {
    ($group:literal $($name:literal $test:ident $run:ident $full:literal $short:literal $title:literal;)*) => {
        pub const ROWS: &[super::Row] = &[$(super::Row {
            name: $name,
            group: $group,
            title: $title,
            full: std::time::Duration::from_secs($full),
            short: std::time::Duration::from_secs($short),
            run: |time| futures_util::FutureExt::boxed_local( $run(time)),
        }),*];
        $(
            #[tokio::test]
            async fn $test() {
                super::short($name).await;
            }
        )*
    };
}
use rows;

/// One second; bounds and rows count in it.
const SECOND: Duration = Duration::from_secs(1);

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
pub struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, what: &str, value: f64, unit: &'static str, bound: Bound, timed: bool) {
        self.0.push(Finding { what: what.to_owned(), value, unit, bound, timed });
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
        self.tell("calls", record.calls.len() as f64, "");
        self.count("calls not sent by the driver", record.unsent, 0);
        self.tell("sent again after a close without an answer", record.again() as f64, "");
        self.timed_guarantee("G6", guarantees::bounded_wait(record));
    }

    /// Notes a comparison; its median, or an end of its interval, is judged by the caller.
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
        if let Some(last) = self.0.last_mut() {
            last.timed = true;
        }
    }
}

/// Runs the short form of a row as a test: what does not depend on a quiet machine must hold.
async fn short(name: &str) {
    let row = all().into_iter().find(|row| row.name == name).expect("a row of the table");
    let findings = (row.run)(row.short).await;
    let mut report = String::new();
    for finding in &findings.0 {
        let _ = writeln!(report, "{name}  {}", finding.line());
    }
    eprint!("{report}");
    let broken = findings.0.iter().any(|finding| !finding.timed && !finding.holds());
    assert!(!broken, "{}\n{report}", row.title);
}

enum Result {
    Passed,
    Failed,
    Void,
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
        disturbed = others.share();
        for finding in &findings.0 {
            println!("      {}", finding.line());
        }
        let broken: Vec<_> = findings.0.iter().filter(|finding| !finding.holds()).collect();
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
    let wanted: Vec<_> = wanted.split_whitespace().map(str::to_lowercase).collect();
    let chosen = |row: &Row| {
        let names = |word: &String| *word == row.name.to_lowercase() || word == row.group;
        wanted.is_empty() || wanted.iter().any(names)
    };
    for word in &wanted {
        let groups = ["registry", "callpath", "store", "telemetry"];
        let known =
            groups.contains(&word.as_str()) || all().iter().any(|row| row.name.to_lowercase() == *word);
        assert!(known, "there is no fault or group {word:?}");
    }
    let chosen: Vec<_> = all().into_iter().filter(chosen).collect();
    let whole: Duration = chosen.iter().map(|row| row.full).sum();
    let minutes = std::env::var("FAULTS_MINUTES").ok().and_then(|text| text.parse::<f64>().ok());
    let scale = minutes.map_or(1.0, |minutes| (minutes * 60.0 / whole.as_secs_f64().max(1.0)).min(1.0));

    println!("\n{} with {}", word("date", &["-u", "+%Y-%m-%d %H:%M UTC"]), etcd_version());
    println!("microservice-app {}\n", microservice_app::build_info::VERSION);
    let (mut passed, mut failed, mut void) = (0, 0, 0);
    for row in chosen {
        match full(row, row.full.mul_f64(scale).max(row.short)) {
            Result::Passed => passed += 1,
            Result::Failed => failed += 1,
            Result::Void => void += 1,
        }
    }
    println!("\n{passed} passed, {failed} failed, {void} void");
    assert_eq!(failed, 0, "rows failed");
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
    let listed: std::collections::BTreeSet<_> =
        listed.take_while(|line| line.starts_with('|')).map(ToOwned::to_owned).collect();
    let rows = all().into_iter().map(|row| {
        let Row { name, group, title, full, .. } = row;
        format!("| {name} | {group} | {title} | {} |", full.as_secs())
    });
    assert_eq!(listed, rows.collect());
}
