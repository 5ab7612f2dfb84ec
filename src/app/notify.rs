//! What the service manager is told (sd_notify(3)): that the process is ready, alive, stopping.
//!
//! The manager may be frozen and its socket full; the process does not wait for it.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::time::Duration;

use crate::server::threads::Threads;

/// Longest time to wait for room in the manager's socket. A unit whose start is not reported is ended by the manager,
/// by default after 90 s.
const LIMIT: Duration = Duration::from_mins(1);

/// How long a process has to run before its next restart is quick again. It is the longest wait between restarts of our
/// units, so that one that ends again and again is restarted no more often than that.
const STABLE: Duration = Duration::from_secs(10);

/// Reports that the process is ready, and then, as often as the manager's watchdog asks, that its threads run. Once
/// it has run for a while, the manager, which lets its waits between restarts grow, is to begin with the shortest one.
pub fn ready(threads: Arc<Threads>) {
    tokio::spawn(async {
        notify("READY=1", LIMIT).await;
        tokio::time::sleep(STABLE).await;
        // systemd 258 or newer; others ignore it
        notify("RESTART_RESET=1", LIMIT).await;
    });
    let variable = |name| std::env::var(name).ok();
    if let Some(limit) = watchdog(variable("WATCHDOG_USEC"), variable("WATCHDOG_PID")) {
        tokio::spawn(async move {
            watch(&threads, limit / 3, || notify("WATCHDOG=1", limit / 3)).await;
        });
    }
}

/// Calls `alive` in each period in which every thread has run. Never returns.
async fn watch<F: Future<Output = ()>>(threads: &Threads, period: Duration, alive: impl Fn() -> F) {
    let mut tick = tokio::time::interval(period);
    loop {
        tick.tick().await;
        match threads.check(period).await {
            Ok(()) => alive().await,
            Err(stuck) => tracing::error!(%stuck, "the watchdog is not notified"),
        }
    }
}

/// Reports that the process has begun to stop.
pub fn stopping() {
    tokio::spawn(notify("STOPPING=1", LIMIT));
}

/// Returns the time within which the watchdog wants to be notified again, from `WATCHDOG_USEC` and `WATCHDOG_PID`:
/// `None` if there is no watchdog, or if it watches another process.
fn watchdog(usec: Option<String>, pid: Option<String>) -> Option<Duration> {
    let here = pid.is_none_or(|pid| pid.parse() == Ok(std::process::id()));
    // systemd's "infinity" is the largest number
    let usec = usec?.parse().ok().filter(|usec| here && *usec > 0 && *usec < u64::MAX)?;
    Some(Duration::from_micros(usec))
}

/// Sends a message to the socket of `NOTIFY_SOCKET`, if that is set. Waits at most `limit` for room in it.
async fn notify(message: &'static str, limit: Duration) {
    let Some(name) = std::env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else {
        return;
    };
    let sent = tokio::time::timeout(limit, send(&name, message)).await;
    if let Err(error) = sent.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
        tracing::warn!(%error, notification = message, "the service manager could not be notified");
    }
}

async fn send(name: &OsStr, message: &str) -> io::Result<()> {
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.connect_addr(&address(name)?)?;
    match socket.send(message.as_bytes()) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            tokio::net::UnixDatagram::from_std(socket)?.send(message.as_bytes()).await?;
        }
        sent => {
            sent?;
        }
    }
    Ok(())
}

/// Returns the address of a name: a path, or an abstract name after an `@`.
fn address(name: &OsStr) -> io::Result<SocketAddr> {
    match name.as_bytes() {
        [b'@', name @ ..] if !name.is_empty() => SocketAddr::from_abstract_name(name),
        [b'/', ..] => SocketAddr::from_pathname(name),
        _ => {
            let detail = "NOTIFY_SOCKET is neither a path nor the name of an abstract socket (@name)";
            Err(io::Error::new(io::ErrorKind::InvalidInput, detail))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::server::metrics::Metrics;

    #[test]
    fn the_watchdog_of_another_process_and_one_without_a_time_are_not_served() {
        let own = std::process::id().to_string();
        let time = |usec: &str, pid: Option<&str>| watchdog(Some(usec.to_owned()), pid.map(str::to_owned));
        assert_eq!(time("300000", None), Some(Duration::from_millis(300)));
        assert_eq!(time("300000", Some(&own)), Some(Duration::from_millis(300)));
        for (usec, pid) in [
            ("300000", Some("1")),
            ("300000", Some("")),
            ("0", None),
            ("-1", None),
            ("x", None),
            ("", None),
            ("18446744073709551615", None),
        ] {
            assert_eq!(time(usec, pid), None, "{usec} {pid:?}");
        }
        assert_eq!(watchdog(None, None), None);
    }

    #[tokio::test]
    async fn the_watchdog_hears_nothing_while_a_thread_stands_still() {
        let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
        let threads = Threads::start(2, &metrics).unwrap();
        let (told, period) = (Cell::new(0), Duration::from_millis(20));
        let test = async {
            let more = async |than: i32| {
                let later = async {
                    while told.get() <= than {
                        tokio::time::sleep(period / 4).await;
                    }
                };
                tokio::time::timeout(Duration::from_secs(20), later).await.unwrap();
            };
            more(1).await;
            let (release, blocked) = std::sync::mpsc::channel::<()>();
            let mut blocked = Some(blocked);
            threads.each(|number| {
                if let Some(blocked) = blocked.take_if(|_| number == 1) {
                    tokio::spawn(async move { blocked.recv().is_ok() });
                }
            });
            tokio::time::sleep(2 * period).await;
            let before = told.get();
            tokio::time::sleep(5 * period).await;
            assert_eq!(told.get(), before);
            drop(release);
            more(before).await;
        };
        let alive = || async { told.set(told.get() + 1) };
        tokio::select! {
            () = watch(&threads, period, alive) => {}
            () = test => {}
        }
    }

    #[test]
    fn a_name_is_a_path_or_abstract() {
        let address = |name: &str| address(OsStr::new(name));
        assert_eq!(address("@a b").unwrap().as_abstract_name(), Some(&b"a b"[..]));
        assert_eq!(address("/run/x").unwrap().as_pathname(), Some(std::path::Path::new("/run/x")));
        for wrong in ["@", "relative", "vsock:2:9999"] {
            assert!(address(wrong).is_err(), "{wrong}");
        }
    }
}
