//! Log lines: on standard error, as logfmt or JSON, at a level that can be changed while the process runs.
//!
//! Whoever logs never waits for standard error; see [`Writer`].
//!
//! No line holds what a user sent, at any level. Lines of this program name routes, codes and ids. Lines of other crates
//! are written up to a level that [`log_filter`] knows.

mod logfmt;
mod metrics;
mod output;
mod throttle;
mod writer;

use std::sync::{Arc, Mutex, PoisonError};

use tracing_subscriber::filter::Targets;
use tracing_subscriber::prelude::*;
use tracing_subscriber::{Registry, fmt, reload};

use crate::config::{self, LogFormat, log_filter};

pub use throttle::LogThrottle;
pub use writer::{FlushGuard, Writer};

/// The log of the process. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Log {
    /// Its level.
    pub level: Level,
    /// What writes its lines.
    pub writer: Writer,
}

/// The log level, which can be changed. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Level {
    /// The text that it was set by.
    text: Arc<Mutex<String>>,
    handle: reload::Handle<Targets, Registry>,
}

impl Level {
    /// Returns the text that the level was set by.
    #[must_use]
    pub fn get(&self) -> String {
        self.text.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes the level, and logs the change.
    ///
    /// # Errors
    /// When the text is not a level; see [`log_filter::parse`].
    pub fn set(&self, new: &str) -> Result<(), String> {
        let filter = log_filter::parse(new)?;
        let mut text = self.text.lock().unwrap_or_else(PoisonError::into_inner);
        let from = std::mem::replace(&mut *text, new.to_owned());
        // logged under the old level if that allows it, else under the new one
        let logged = tracing::enabled!(tracing::Level::INFO);
        if logged {
            tracing::info!(from, to = new, "log level changes");
        }
        self.handle.reload(filter).map_err(|error| error.to_string())?;
        if !logged {
            tracing::info!(from, to = new, "log level has changed");
        }
        Ok(())
    }
}

/// Installs the subscriber of the process, which writes by `writer`. Called once, before anything is logged.
///
/// # Errors
/// When the level cannot be parsed, or a subscriber is installed already.
pub fn init(settings: &config::Log, writer: Writer) -> anyhow::Result<Log> {
    let filter = log_filter::parse(&settings.level).map_err(anyhow::Error::msg)?;
    let (filter, handle) = reload::Layer::new(filter);
    let registry = tracing_subscriber::registry().with(filter);
    // an error of the subscriber itself would be printed to standard error, which may block
    let lines = fmt::layer().with_ansi(false).log_internal_errors(false).with_writer(writer.clone());
    std::panic::set_hook(Box::new(|panic| {
        // without the message of the panic, which may quote what a user sent
        let location = panic.location().map(ToString::to_string);
        tracing::error!(location, thread = std::thread::current().name(), "panicked");
    }));
    match settings.format {
        LogFormat::Logfmt => registry.with(lines.event_format(logfmt::Logfmt)).try_init()?,
        LogFormat::Json => registry.with(lines.json().flatten_event(true)).try_init()?,
    }
    let level = Level { text: Arc::new(Mutex::new(settings.level.clone())), handle };
    Ok(Log { level, writer })
}
