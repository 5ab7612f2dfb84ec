//! Log lines: on standard error, as logfmt or JSON, at a level that can be changed while the process runs.
//!
//! No line holds what a user sent, at any level: ours name routes, codes and ids, and other crates' lines
//! pass up to a level that [`log_filter`] knows.

mod logfmt;
mod throttle;

use std::sync::{Arc, Mutex, PoisonError};

use tracing_subscriber::filter::Targets;
use tracing_subscriber::prelude::*;
use tracing_subscriber::{Registry, fmt, reload};

use crate::config::{Log, LogFormat, log_filter};

pub use throttle::LogThrottle;

/// What is logged; can be changed. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Level {
    /// As it was given.
    text: Arc<Mutex<String>>,
    handle: reload::Handle<Targets, Registry>,
}

impl Level {
    /// Returns the level, in the words in which it was set.
    #[must_use]
    pub fn get(&self) -> String {
        self.text.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes the level, and logs that.
    ///
    /// # Errors
    /// When the text is no level; see [`log_filter::parse`].
    pub fn set(&self, new: &str) -> Result<(), String> {
        let filter = log_filter::parse(new)?;
        let mut text = self.text.lock().unwrap_or_else(PoisonError::into_inner);
        let from = std::mem::replace(&mut *text, new.to_owned());
        // said at whichever of the two levels lets it through, the earlier one first
        let said = tracing::enabled!(tracing::Level::INFO);
        if said {
            tracing::info!(from, to = new, "log level changes");
        }
        self.handle.reload(filter).map_err(|error| error.to_string())?;
        if !said {
            tracing::info!(from, to = new, "log level has changed");
        }
        Ok(())
    }
}

/// Installs the subscriber of the process. Called once, before anything is logged.
///
/// # Errors
/// When the level cannot be parsed, or a subscriber is installed already.
pub fn init(settings: &Log) -> anyhow::Result<Level> {
    let filter = log_filter::parse(&settings.level).map_err(anyhow::Error::msg)?;
    let (filter, handle) = reload::Layer::new(filter);
    let registry = tracing_subscriber::registry().with(filter);
    let lines = fmt::layer().with_ansi(false).with_writer(std::io::stderr);
    std::panic::set_hook(Box::new(|panic| {
        // without its message, which may quote what a user sent
        let location = panic.location().map(ToString::to_string);
        tracing::error!(location, thread = std::thread::current().name(), "panicked");
    }));
    match settings.format {
        LogFormat::Logfmt => registry.with(lines.event_format(logfmt::Logfmt)).try_init()?,
        LogFormat::Json => registry.with(lines.json().flatten_event(true)).try_init()?,
    }
    Ok(Level { text: Arc::new(Mutex::new(settings.level.clone())), handle })
}
