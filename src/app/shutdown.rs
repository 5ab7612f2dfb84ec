//! Signals and the service manager: the first SIGTERM or SIGINT begins the drain, the second ends the process at once.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Exit status after a second signal.
const SECOND_SIGNAL: i32 = 130;

/// Returns a token that is cancelled by the first signal.
///
/// # Errors
/// When the handlers cannot be installed.
pub fn on_signal() -> std::io::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let token = CancellationToken::new();
    let stop = token.clone();
    tokio::spawn(async move {
        for count in 0.. {
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            };
            if count > 0 {
                tracing::warn!(signal = name, "second signal, ending at once");
                std::process::exit(SECOND_SIGNAL);
            }
            tracing::info!(signal = name, "draining");
            notify(&[sd_notify::NotifyState::Stopping]);
            stop.cancel();
        }
    });
    Ok(token)
}

/// Tells systemd that the process is ready, and notifies its watchdog as long as the runtime is alive.
pub fn ready() {
    notify(&[sd_notify::NotifyState::Ready]);
    if let Some(limit) = sd_notify::watchdog_enabled() {
        tokio::spawn(async move {
            let mut tick = tokio::time::interval(limit / 3);
            loop {
                tick.tick().await;
                notify(&[sd_notify::NotifyState::Watchdog]);
            }
        });
    }
}

/// Notifies systemd. Does nothing if `NOTIFY_SOCKET` is not set.
fn notify(state: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "the service manager could not be notified");
    }
}
