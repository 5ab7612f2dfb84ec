//! Pauses of this process: it was stopped, its machine slept, or others took the processor. What callers sent
//! meanwhile waits in the kernel, which does not say for how long.
//!
//! A task notes the time again and again; a gap in its notes is a pause. What is read soon after a pause may have
//! been sent at the beginning of it. The clock is the one that goes on while the machine sleeps. A pause of the whole
//! virtual machine, clocks included, cannot be seen.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Interval of the notes.
const BEAT: Duration = Duration::from_millis(50);
/// Gap between two notes from which on it is a pause. Shorter gaps are usual under load.
const GAP: Duration = Duration::from_millis(200);
/// Time after a pause in which requests from before its end may still arrive: what did not fit into this host's
/// buffers waits at the callers.
const AFTERMATH: Duration = Duration::from_millis(200);

/// Notices pauses of this process.
#[derive(Debug, Default)]
pub struct Pauses(Mutex<Notes>);

/// What has been noted, as times of the clock.
#[derive(Clone, Copy, Debug, Default)]
struct Notes {
    last: Duration,
    /// The last pause: its beginning and its end.
    pause: Option<(Duration, Duration)>,
}

/// How old a request may be that is read now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Late {
    /// Longest time that it may have waited in the kernel.
    pub waited: Duration,
    /// Time after which requests are surely newer than the pause.
    pub retry_after: Duration,
}

impl Pauses {
    /// Begins to take notes, until the returned value is dropped. Must be called inside a tokio runtime.
    #[must_use]
    pub fn watch() -> Arc<Self> {
        let pauses = Arc::new(Self::default());
        pauses.note(now());
        let watched = Arc::downgrade(&pauses);
        tokio::spawn(async move {
            while let Some(pauses) = watched.upgrade() {
                pauses.note(now());
                drop(pauses);
                tokio::time::sleep(BEAT).await;
            }
        });
        pauses
    }

    /// Returns how old a request may be that is read now, if the process has paused just before.
    #[must_use]
    pub fn late(&self) -> Option<Late> {
        self.late_at(now())
    }

    fn note(&self, now: Duration) {
        let mut notes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        notes.note(now);
    }

    fn late_at(&self, now: Duration) -> Option<Late> {
        let mut notes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // after a pause this may run before the task
        if !notes.last.is_zero() && now.saturating_sub(notes.last) >= GAP {
            notes.note(now);
        }
        let (begun, ended) = notes.pause?;
        let left = AFTERMATH.checked_sub(now.saturating_sub(ended))?;
        Some(Late { waited: now.saturating_sub(begun), retry_after: left })
    }
}

impl Notes {
    fn note(&mut self, now: Duration) {
        if !self.last.is_zero() && now.saturating_sub(self.last) >= GAP {
            self.pause = Some((self.last, now));
        }
        self.last = now;
    }
}

/// Returns the time since the machine has started, sleep included.
fn now() -> Duration {
    Duration::try_from(clock_gettime(ClockId::Boottime)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    #[test]
    fn what_is_read_after_a_pause_may_be_as_old_as_it() {
        let pauses = Pauses::default();
        for beat in 20..30 {
            pauses.note(ms(50 * beat));
            assert_eq!(pauses.late_at(ms(50 * beat + 49)), None);
        }
        // a request is read before the task runs again
        let late = |waited, left| Some(Late { waited: ms(waited), retry_after: ms(left) });
        assert_eq!(pauses.late_at(ms(4450)), late(3000, 200));
        pauses.note(ms(4451));
        assert_eq!(pauses.late_at(ms(4460)), late(3010, 190));
        pauses.note(ms(4500));
        assert_eq!(pauses.late_at(ms(4650)), late(3200, 0));
        assert_eq!(pauses.late_at(ms(4651)), None);
    }

    #[test]
    fn a_late_note_is_not_yet_a_pause() {
        let pauses = Pauses::default();
        pauses.note(ms(1000));
        pauses.note(ms(1199));
        assert_eq!(pauses.late_at(ms(1200)), None);
        pauses.note(ms(1399));
        assert!(pauses.late_at(ms(1399)).is_some());
    }

    #[tokio::test]
    async fn the_task_takes_notes_and_ends_with_its_owner() {
        let pauses = Pauses::watch();
        std::thread::sleep(GAP + BEAT);
        assert!(pauses.late().is_some_and(|late| late.waited >= GAP));
        let watched = Arc::downgrade(&pauses);
        tokio::time::sleep(4 * BEAT).await;
        drop(pauses);
        assert!(watched.upgrade().is_none());
    }
}
