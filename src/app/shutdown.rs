//! Signals: the first SIGTERM, SIGINT or SIGHUP begins the drain, a second SIGTERM or SIGINT ends the process at once.

use rustix::process::Signal;
use tokio::signal::unix::{self, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::notify;
use crate::telemetry::log;

/// Exit status after a second signal.
const SECOND_SIGNAL: i32 = 130;

/// Returns a token that is cancelled by the first signal. `log` is written out before a second one ends the process.
///
/// # Errors
/// When the handlers cannot be installed.
pub fn on_signal(log: log::Writer) -> std::io::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    // `nohup` starts a program with SIGHUP ignored, so that it outlives its terminal
    let mut hangup = if is_ignored(Signal::HUP) { None } else { Some(signal(SignalKind::hangup())?) };
    // a file that may not grow fails the write: without a handler, the signal would end the process
    drop(signal(SignalKind::from_raw(Signal::XFSZ.as_raw()))?);
    let token = CancellationToken::new();
    let stop = token.clone();
    tokio::spawn(async move {
        let (mut draining, mut asked) = (false, false);
        loop {
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
                () = received(hangup.as_mut()) => "SIGHUP",
            };
            if asked && name != "SIGHUP" {
                tracing::warn!(signal = name, "second signal, ending at once");
                log.finish();
                std::process::exit(SECOND_SIGNAL);
            }
            // nobody asks for haste by SIGHUP: a terminal that is closed may send it twice, and systemd's
            // `SendSIGHUP=` sends it together with SIGTERM
            asked |= name != "SIGHUP";
            if !std::mem::replace(&mut draining, true) {
                tracing::info!(signal = name, "draining");
                notify::stopping();
                stop.cancel();
            }
        }
    });
    Ok(token)
}

/// Waits for a signal; for ever without one.
async fn received(signal: Option<&mut unix::Signal>) {
    match signal {
        Some(signal) => {
            signal.recv().await;
        }
        None => std::future::pending().await,
    }
}

/// Returns true if a signal is ignored. A signal is ignored at the start of a process if its parent wanted so.
fn is_ignored(signal: Signal) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default();
    // bit 0 is signal 1
    mask >> (signal.as_raw() - 1) & 1 == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signal_that_rust_ignores_is_ignored_and_others_are_not() {
        assert!(is_ignored(Signal::PIPE));
        assert!(!is_ignored(Signal::TERM));
    }
}
