//! The section `log`.

use std::time::Duration;

use super::super::log_filter;
use super::super::types::LogFormat;
use super::{EVERY_ROLE, Kind, Role};

section! {
    /// What is logged, and how.
    Log as log, read by EVERY_ROLE, defaults of role:

    /// Level of the log lines, also for single modules: `info,microservice_app::client=debug`. It can be changed
    /// while the process runs.
    "log.level" => level: String = "info".to_owned(), Kind::text(log_filter::FORM);

    /// Form of the log lines, which go to standard error.
    "log.format" => format: LogFormat = LogFormat::Logfmt, Kind::choice(LogFormat::NAMES);

    /// Requests that take this long are logged at level info. Failed requests are always logged, all others at
    /// level debug.
    "log.slow_ms" => slow: Duration = Duration::from_secs(1), Kind::milliseconds(0, 600_000);
}
