//! `copy-store`: moves the records of services from one store to another.

use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::shutdown;
use crate::config::Store;
use crate::store::bulk::{OnConflict, Service};
use crate::store::copy::{Copy, CopyError, From, Progress, Summary, To};
use crate::telemetry::log;

/// Time between two lines of progress.
const PERIOD: Duration = Duration::from_secs(1);

/// What is copied, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the source is, and how it is reached.
    pub from: Store,
    /// The same of the target.
    pub to: Store,
    /// The services; every one that the source has if there are none.
    pub services: Vec<Service>,
    /// What is done with records that differ.
    pub on_conflict: OnConflict,
}

/// How a copy ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Every record is there, and was compared.
    Done,
    /// A signal ended it.
    Stopped,
}

/// Copies and checks the records of each service, one after the other. Progress goes to `log`, the result to `out`.
///
/// # Errors
/// Why a copy failed, or what differs; the text says in which of the two stores.
pub async fn run(options: &Options, log: &log::Writer, mut out: impl Write) -> anyhow::Result<End> {
    let stop = shutdown::on_signal(log.clone())?;
    // a store may wait for a lock or for a connection; pages are not cut off
    let opened = stop.run_until_cancelled(open(options)).await;
    let Some((from, to, services)) = opened.transpose()? else { return Ok(End::Stopped) };
    for service in services {
        let ends = async {
            anyhow::Ok((from.open(service).await.context("FROM")?, to.open(service).await.context("TO")?))
        };
        let Some((from, to)) = stop.run_until_cancelled(ends).await.transpose()? else {
            return Ok(End::Stopped);
        };
        let copy = Copy {
            table: service.table(),
            from: &*from,
            to: &*to,
            on_conflict: options.on_conflict,
            stop: &stop,
        };
        match copy.run(progress(service, log)).await {
            Ok(summary) => writeln!(out, "{}: {}", service.name(), result(&summary))?,
            Err(CopyError::Stopped) => return Ok(End::Stopped),
            Err(error) => return Err(anyhow::Error::new(error).context(service.name())),
        }
    }
    Ok(End::Done)
}

async fn open(options: &Options) -> anyhow::Result<(From, To, Vec<Service>)> {
    let from = From::new(options.from.clone());
    let services = match options.services.as_slice() {
        [] => from.services().await.context("FROM")?,
        asked => asked.to_vec(),
    };
    let to = To::new(options.to.clone(), &from, &services).context("TO")?;
    Ok((from, to, services))
}

/// Returns what writes a line of progress now and then.
fn progress(service: Service, log: &log::Writer) -> impl FnMut(&Progress) + '_ {
    let mut told = Instant::now();
    move |progress| {
        if told.elapsed() >= PERIOD {
            told = Instant::now();
            let mut log = log;
            // it takes every line, or counts it as lost
            let _ = writeln!(log, "{}: {}", service.name(), line(progress));
        }
    }
}

fn line(progress: &Progress) -> String {
    let Progress { total, read, checked, written } = progress;
    if *checked > 0 {
        return format!("checked {checked} of {total} records");
    }
    format!("read {read} of {total} records, copied {}", written.copied + written.overwritten)
}

fn result(summary: &Summary) -> String {
    let Summary { total, written, target } = summary;
    let differing = [(written.overwritten, "overwritten"), (written.kept, "differ and were kept")];
    let differing = differing.iter().filter(|(count, _)| *count > 0);
    let differing = differing.map(|(count, what)| format!(", {count} {what}")).collect::<Vec<_>>().concat();
    let more = if target > total { format!("; TO has {} more", target - total) } else { String::new() };
    format!(
        "{total} records: {} copied, {} already there{differing}; checked{more}",
        written.copied, written.same
    )
}
