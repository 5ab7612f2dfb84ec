//! CPU profiles of this process, in the format that `go tool pprof` and its relatives read.
//!
//! The samples come from the crate `rpprof`: a timer that counts the CPU time of the process, and a signal handler
//! that walks the stack by the unwind tables, which every build has. Between two profiles it costs only the memory
//! that the first one took, about 25 MB.

use std::collections::HashMap;
use std::hash::Hash;
use std::io::Write as _;
use std::time::{Duration, UNIX_EPOCH};

use flate2::Compression;
use flate2::write::GzEncoder;
use prost::Message as _;
use rpprof::{ProfilerGuardBuilder, Report, Symbol};

use super::profile;

/// Samples per second of CPU time. Many kernels give at most 250. 99 rather than 100, so that samples are not in step
/// with other timers.
const HERTZ: i32 = 99;

/// Takes a profile until `wait` returns. Blocks.
///
/// *Shape*: a gzipped [`profile::Profile`].
///
/// # Errors
/// When `wait` returns false, or the profiler fails; the text says why.
pub fn take(wait: &dyn Fn() -> bool) -> Result<Vec<u8>, String> {
    let guard = ProfilerGuardBuilder::default().frequency(HERTZ).build().map_err(|e| e.to_string())?;
    if !wait() {
        return Err("the caller has gone".to_owned());
    }
    let report = guard.report().build().map_err(|e| e.to_string())?;
    drop(guard);
    // the symbols of the program, larger than the rest of the process
    backtrace::clear_symbol_cache();
    let samples = report.data.values().sum::<isize>();
    tracing::info!(samples, missed = report.missed_samples, "profile taken");
    let mut out = GzEncoder::new(Vec::new(), Compression::default());
    let written = out.write_all(&encode(&report).encode_to_vec()).and_then(|()| out.finish());
    written.map_err(|e| e.to_string())
}

/// Numbers values from 1; equal values have the same number.
struct Numbers<K>(HashMap<K, u64>);

impl<K: Hash + Eq> Numbers<K> {
    /// Returns the number of a value, and whether the value is new.
    fn of(&mut self, key: K) -> (u64, bool) {
        let next = self.0.len() as u64 + 1;
        let number = *self.0.entry(key).or_insert(next);
        (number, number == next)
    }
}

/// Builds the message. Each text, function and location is in it once.
struct Encoder {
    out: profile::Profile,
    strings: HashMap<String, i64>,
    /// By name and file.
    functions: Numbers<(i64, i64)>,
    /// By the functions and lines that were inlined into each other at the location.
    locations: Numbers<Vec<(u64, i64)>>,
}

impl Encoder {
    fn string(&mut self, text: String) -> i64 {
        let next = self.out.string_table.len();
        let table = &mut self.out.string_table;
        *self.strings.entry(text).or_insert_with_key(|text| {
            table.push(text.clone());
            i64::try_from(next).unwrap_or_default()
        })
    }

    fn value(&mut self, kind: &str, unit: &str) -> profile::ValueType {
        profile::ValueType { r#type: self.string(kind.to_owned()), unit: self.string(unit.to_owned()) }
    }

    fn location(&mut self, symbols: &[Symbol]) -> u64 {
        let lines: Vec<_> = symbols
            .iter()
            .map(|symbol| {
                let name = self.string(symbol.name());
                let system_name = self.string(symbol.sys_name().into_owned());
                let filename = self.string(symbol.filename().into_owned());
                let (id, new) = self.functions.of((system_name, filename));
                if new {
                    self.out.function.push(profile::Function {
                        id,
                        name,
                        system_name,
                        filename,
                        start_line: 0,
                    });
                }
                (id, i64::from(symbol.lineno()))
            })
            .collect();
        let (id, new) = self.locations.of(lines.clone());
        if new {
            let line = lines.into_iter().map(|(function_id, line)| profile::Line { function_id, line });
            self.out.location.push(profile::Location { id, line: line.collect() });
        }
        id
    }
}

/// Returns a report as a message.
fn encode(report: &Report) -> profile::Profile {
    let nanos = |time: Duration| i64::try_from(time.as_nanos()).unwrap_or(i64::MAX);
    let period = 1_000_000_000 / i64::from(HERTZ);
    let mut encoder = Encoder {
        out: profile::Profile::default(),
        strings: HashMap::new(),
        functions: Numbers(HashMap::new()),
        locations: Numbers(HashMap::new()),
    };
    encoder.string(String::new()); // the format wants the empty text at index 0
    let cpu = encoder.value("cpu", "nanoseconds");
    encoder.out.sample_type = vec![encoder.value("samples", "count"), cpu.clone()];
    encoder.out.period_type = Some(cpu);
    encoder.out.period = period;
    let started = report.timing.start_time.duration_since(UNIX_EPOCH);
    encoder.out.time_nanos = started.map(nanos).unwrap_or_default();
    encoder.out.duration_nanos = nanos(report.timing.duration);
    let thread = encoder.string("thread".to_owned());
    for (frames, count) in &report.data {
        let count = i64::try_from(*count).unwrap_or_default();
        let name = encoder.string(frames.thread_name_or_id());
        let sample = profile::Sample {
            location_id: frames.frames.iter().map(|symbols| encoder.location(symbols)).collect(),
            value: vec![count, count.saturating_mul(period)],
            label: vec![profile::Label { key: thread, str: name }],
        };
        encoder.out.sample.push(sample);
    }
    encoder.out
}
