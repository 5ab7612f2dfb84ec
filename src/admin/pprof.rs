//! `/debug/pprof/profile?seconds=N`: where the process spends its processor time, in the format that
//! `go tool pprof` and its relatives read.
//!
//! The profiler is a crate's: a timer on processor time, and a signal handler that walks the stack by its
//! unwind tables, which every build has. Between profiles it costs nothing but the memory it took at the
//! first (some 25 MB). All work is done on a thread of its own.

use std::collections::HashMap;
use std::hash::Hash;
use std::io::Write as _;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, UNIX_EPOCH};

use flate2::Compression;
use flate2::write::GzEncoder;
use http::{HeaderValue, StatusCode, header};
use prost::Message as _;
use rpprof::{ProfilerGuardBuilder, Report, Symbol};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::reply::Response;

use super::peer::Peer;
use super::profile;
use super::reply::{Refusal, text};

/// Samples a second of processor time. The kernel gives no more than 250 on many systems, and a number that
/// others do not use is not in step with their timers.
const HERTZ: i32 = 99;
/// Range of `seconds`.
const SECONDS: std::ops::RangeInclusive<u64> = 1..=60;
/// What it is by default.
const DEFAULT_SECONDS: u64 = 10;

const NO_HEAP: &str = "\
heap profiles are not built in: they would cost every allocation. Attach heaptrack to the process instead
(Debian and nixpkgs: heaptrack), wait, press Ctrl-C, then look at what it wrote:

  heaptrack --pid PID
  heaptrack_print heaptrack.*
";

/// Returns the routes below `/debug/pprof`.
pub fn routes() -> BoxedFilter<(Response,)> {
    let one = Arc::new(Semaphore::new(1));
    let profile = warp::path!("debug" / "pprof" / "profile")
        .and(warp::ext::get::<Peer>())
        .and(warp::query::raw().or(warp::any().map(String::new)).unify())
        .then(move |peer, query: String| {
            let one = one.clone();
            async move { cpu(peer, &query, one).await.unwrap_or_else(Response::from) }
        });
    let heap =
        warp::path!("debug" / "pprof" / "heap").map(|| text(StatusCode::NOT_IMPLEMENTED, NO_HEAP.to_owned()));
    profile.or(heap).unify().boxed()
}

/// *Cancellation*: a caller that hangs up ends the profile.
async fn cpu(peer: Peer, query: &str, one: Arc<Semaphore>) -> Result<Response, Refusal> {
    peer.local()?;
    let time = seconds(query).map_err(|reason| Refusal(StatusCode::BAD_REQUEST, reason))?;
    let busy = |_| Refusal(StatusCode::CONFLICT, "another profile is being taken".to_owned());
    let turn = one.try_acquire_owned().map_err(busy)?;
    let (caller, gone) = channel::<()>();
    let taken = tokio::task::spawn_blocking(move || {
        let wait = || gone.recv_timeout(time) == Err(RecvTimeoutError::Timeout);
        take(turn, wait)
    });
    let failed = |reason: String| Refusal(StatusCode::SERVICE_UNAVAILABLE, format!("no profile: {reason}"));
    let taken = taken.await.map_err(|error| failed(error.to_string()))?.map_err(failed)?;
    drop(caller); // held until here
    let mut response = Response::new(taken.into());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    let name = HeaderValue::from_static("attachment; filename=\"profile.pb.gz\"");
    headers.insert(header::CONTENT_DISPOSITION, name);
    Ok(response)
}

/// Reads `seconds=N`, the only parameter.
fn seconds(query: &str) -> Result<Duration, String> {
    let mut seconds = None;
    for part in query.split('&').filter(|part| !part.is_empty()) {
        let value = part.strip_prefix("seconds=").ok_or_else(|| {
            let name: String = part.split('=').next().unwrap_or_default().chars().take(64).collect();
            format!("{name:?} is not known here, want seconds")
        })?;
        if seconds.replace(value).is_some() {
            return Err("seconds: is given twice".to_owned());
        }
    }
    let Some(value) = seconds else {
        return Ok(Duration::from_secs(DEFAULT_SECONDS));
    };
    let (low, high) = (SECONDS.start(), SECONDS.end());
    let digits = value.bytes().all(|b| b.is_ascii_digit()); // not `+5`
    match value.parse() {
        Ok(seconds) if digits && SECONDS.contains(&seconds) => Ok(Duration::from_secs(seconds)),
        _ => Err(format!("seconds: must be an integer from {low} to {high}")),
    }
}

/// Takes a profile for as long as `wait` does. Blocks; the turn ends after everything else.
fn take(_turn: OwnedSemaphorePermit, wait: impl FnOnce() -> bool) -> Result<Vec<u8>, String> {
    let guard = ProfilerGuardBuilder::default().frequency(HERTZ).build().map_err(|e| e.to_string())?;
    if !wait() {
        return Err("the caller has gone".to_owned());
    }
    let report = guard.report().build().map_err(|e| e.to_string())?;
    drop(guard);
    // what it read of the program's symbols: more than all the rest of the process
    backtrace::clear_symbol_cache();
    let samples = report.data.values().sum::<isize>();
    tracing::info!(samples, missed = report.missed_samples, "profile taken");
    let mut out = GzEncoder::new(Vec::new(), Compression::default());
    let written = out.write_all(&encode(&report).encode_to_vec()).and_then(|()| out.finish());
    written.map_err(|e| e.to_string())
}

/// Numbers things from 1, equal ones once.
struct Numbers<K>(HashMap<K, u64>);

impl<K: Hash + Eq> Numbers<K> {
    /// Returns a thing's number, and whether it is new.
    fn of(&mut self, key: K) -> (u64, bool) {
        let next = self.0.len() as u64 + 1;
        let number = *self.0.entry(key).or_insert(next);
        (number, number == next)
    }
}

/// Builds the message; strings, functions and locations are written once.
struct Encoder {
    out: profile::Profile,
    strings: HashMap<String, i64>,
    /// By name and file.
    functions: Numbers<(i64, i64)>,
    /// By the functions and lines that are inlined into each other there.
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

fn encode(report: &Report) -> profile::Profile {
    let nanos = |time: Duration| i64::try_from(time.as_nanos()).unwrap_or(i64::MAX);
    let period = 1_000_000_000 / i64::from(HERTZ);
    let mut encoder = Encoder {
        out: profile::Profile::default(),
        strings: HashMap::new(),
        functions: Numbers(HashMap::new()),
        locations: Numbers(HashMap::new()),
    };
    encoder.string(String::new()); // number 0 is the empty text
    let cpu = encoder.value("cpu", "nanoseconds");
    encoder.out.sample_type = vec![encoder.value("samples", "count"), cpu.clone()];
    encoder.out.period_type = Some(cpu);
    encoder.out.period = period;
    let begun = report.timing.start_time.duration_since(UNIX_EPOCH);
    encoder.out.time_nanos = begun.map(nanos).unwrap_or_default();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_read_and_what_is_wrong_is_named() {
        assert_eq!(seconds(""), Ok(Duration::from_secs(DEFAULT_SECONDS)));
        assert_eq!(seconds("seconds=1"), Ok(Duration::from_secs(1)));
        assert_eq!(seconds("&seconds=60&"), Ok(Duration::from_mins(1)));
        for wrong in ["0", "61", "", "-1", "+5", "1.5", "x", "99999999999999999999"] {
            let error = seconds(&format!("seconds={wrong}")).unwrap_err();
            assert_eq!(error, "seconds: must be an integer from 1 to 60", "{wrong:?}");
        }
        assert!(seconds("seconds=1&seconds=2").unwrap_err().starts_with("seconds: "));
        assert!(seconds("hz=5").unwrap_err().contains("\"hz\""));
    }
}
