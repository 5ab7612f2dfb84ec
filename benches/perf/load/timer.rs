//! A timer finer than the millisecond of tokio's.

use std::time::{Duration, Instant};

use rustix::fd::OwnedFd;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::io::unix::AsyncFd;

pub struct Timer(AsyncFd<OwnedFd>);

impl Timer {
    pub fn new() -> Self {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags).expect("a timer");
        #[expect(
            deprecated,
            reason = "an OwnedFd is what the new, unsafe function asks for; unsafe code is forbidden"
        )]
        Self(AsyncFd::new(timer).expect("a runtime"))
    }

    /// Waits until then, and lets others run in any case.
    pub async fn sleep_until(&self, then: Instant) {
        let left = then.saturating_duration_since(Instant::now());
        if left == Duration::ZERO {
            return tokio::task::yield_now().await;
        }
        let value = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value };
        timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &once).expect("a time");
        loop {
            let mut ready = self.0.readable().await.expect("a timer");
            let mut expirations = [0; 8];
            if rustix::io::read(&self.0, &mut expirations).is_ok() {
                return;
            }
            ready.clear_ready();
        }
    }
}
