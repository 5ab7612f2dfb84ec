//! Closed-loop load by `wrk`: as many requests as are answered.

use std::process::Command;

/// Connections, each with one request at a time.
pub const CONNECTIONS: u32 = 64;

/// What `wrk` reports.
#[derive(Clone, Copy, Debug)]
pub struct Peak {
    /// Requests a second.
    pub rate: f64,
    /// Latencies, milliseconds.
    pub p50: f64,
    pub p99: f64,
    /// Requests without a good answer.
    pub failed: u64,
}

/// Asks over so many connections for so many whole seconds; panics if `wrk` is not there or says nothing.
pub fn run(url: &str, connections: u32, seconds: u32) -> Peak {
    let mut command = Command::new("timeout");
    command.arg((seconds + 20).to_string()).args(["wrk", "-t1", "--latency"]);
    command.arg(format!("-c{connections}")).arg(format!("-d{seconds}s")).arg(url);
    let output = command.output().expect("timeout is installed");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "wrk failed: {text}{}", String::from_utf8_lossy(&output.stderr));
    parse(&text).unwrap_or_else(|| panic!("not what wrk says: {text}"))
}

/// Reads what `wrk` prints with `--latency`.
pub fn parse(text: &str) -> Option<Peak> {
    let value = |name: &str| text.lines().find_map(|line| line.trim().strip_prefix(name)).map(str::trim);
    let failed = value("Non-2xx or 3xx responses:").map_or(0, |number| number.parse().unwrap_or(u64::MAX));
    let errors = value("Socket errors:").map_or(0, |line| {
        line.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse::<u64>().ok()).sum()
    });
    Some(Peak {
        rate: value("Requests/sec:")?.parse().ok()?,
        p50: milliseconds(value("50%")?)?,
        p99: milliseconds(value("99%")?)?,
        failed: failed.saturating_add(errors),
    })
}

/// Reads `512.00us`, `1.91ms` or `1.02s`.
fn milliseconds(text: &str) -> Option<f64> {
    let units = [("us", 1e-3), ("ms", 1.0), ("s", 1e3), ("m", 60e3)];
    units.iter().find_map(|(unit, factor)| Some(text.strip_suffix(unit)?.parse::<f64>().ok()? * factor))
}
