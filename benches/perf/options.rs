//! The command line of a comparison.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

pub const USAGE: &str = "usage: tests/perf [--short] [--rounds N] [--seconds N] [--rate N] [--accept]
                  [--program PROGRAM] [--peer NAME=URL:PID,PID...]... [NAME...]
       tests/perf --compare BEFORE AFTER [--store memory|sqlite] [--rounds N] [--seconds N] [--rate N]
       tests/perf grow [NAME...]";

/// Something that is running already and answers the same requests as our gateway.
#[derive(Clone, Debug)]
pub struct Peer {
    pub name: String,
    pub addr: SocketAddr,
    /// The one that answers HTTP first.
    pub processes: Vec<u32>,
}

/// What is to be compared, and for how long.
#[derive(Clone, Debug)]
pub struct Options {
    pub short: bool,
    pub rounds: usize,
    /// Of one measurement.
    pub seconds: u32,
    /// Requests a second at which processor time is compared.
    pub rate: f64,
    /// Whether the table goes into docs/performance.md.
    pub accept: bool,
    pub peers: Vec<Peer>,
    /// The build of our program that is measured; none: the one that cargo has made for this.
    pub program: Option<PathBuf>,
    /// Sides by name; all if there are none.
    pub names: Vec<String>,
    /// Two programs that are compared instead.
    pub builds: Option<[PathBuf; 2]>,
    /// Of the feed service in such a comparison: memory or sqlite.
    pub sqlite: bool,
    /// As it was given, to be repeated.
    pub command: String,
}

impl Options {
    /// Reads arguments; an error says what is wrong.
    pub fn parse(arguments: &[String]) -> Result<Self, String> {
        let mut options = Self {
            short: false,
            rounds: 0,
            seconds: 0,
            rate: 5000.0,
            accept: false,
            peers: Vec::new(),
            program: None,
            names: Vec::new(),
            builds: None,
            sqlite: false,
            command: format!("tests/perf {}", arguments[1..].join(" ")).trim().to_owned(),
        };
        let mut rest = arguments[1..].iter();
        while let Some(argument) = rest.next() {
            let mut value = || rest.next().ok_or_else(|| format!("{argument} wants a value"));
            match argument.as_str() {
                "--short" => options.short = true,
                "--accept" => options.accept = true,
                "--rounds" => options.rounds = number(argument, value()?)? as usize,
                "--seconds" => options.seconds = number(argument, value()?)?,
                "--rate" => options.rate = f64::from(number(argument, value()?)?),
                "--peer" => options.peers.push(peer(value()?)?),
                "--program" => options.program = Some(program(value()?)?),
                "--store" => {
                    options.sqlite = match value()?.as_str() {
                        "memory" => false,
                        "sqlite" => true,
                        _ => return Err("--store wants memory or sqlite".to_owned()),
                    }
                }
                "--compare" => options.builds = Some([program(value()?)?, program(value()?)?]),
                name if name.starts_with('-') => return Err(format!("unknown option {name}")),
                name => options.names.push(name.to_owned()),
            }
        }
        if options.program.is_some() && options.builds.is_some() {
            return Err("--compare names both programs, --program a third one".to_owned());
        }
        let (rounds, seconds) = if options.short { (3, 2) } else { (10, 3) };
        options.rounds = if options.rounds == 0 { rounds } else { options.rounds };
        options.seconds = if options.seconds == 0 { seconds } else { options.seconds };
        Ok(options)
    }
}

fn number(name: &str, text: &str) -> Result<u32, String> {
    text.parse()
        .ok()
        .filter(|number| *number > 0)
        .ok_or_else(|| format!("{name} wants a whole number above 0"))
}

/// Finds a program, from where the command was called.
fn program(path: &str) -> Result<PathBuf, String> {
    let from = std::env::var_os("PERF_FROM").map(PathBuf::from).unwrap_or_default();
    let program = from.join(path);
    if program.is_file() { Ok(program) } else { Err(format!("{path} is no program")) }
}

/// Reads `NAME=http://ADDR:PID,PID...`.
fn peer(text: &str) -> Result<Peer, String> {
    let wrong = || format!("--peer wants NAME=http://IP:PORT:PID,PID..., not {text}");
    let (name, rest) = text.split_once('=').ok_or_else(wrong)?;
    let (url, processes) = rest.rsplit_once(':').ok_or_else(wrong)?;
    let addr = url.strip_prefix("http://").unwrap_or(url).parse().map_err(|_| wrong())?;
    let processes: Vec<u32> =
        processes.split(',').map(str::parse).collect::<Result<_, _>>().map_err(|_| wrong())?;
    for process in &processes {
        if !Path::new(&format!("/proc/{process}")).exists() {
            return Err(format!("there is no process {process}"));
        }
    }
    Ok(Peer { name: name.to_owned(), addr, processes })
}
