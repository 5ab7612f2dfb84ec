//! Pauses of this process: it was stopped, its machine slept, or others took the processor. What callers sent
//! meanwhile waits in the kernel, which does not say for how long.
//!
//! A task notes the time again and again; a gap in its notes is a pause. What is read soon after a pause may have
//! been sent at the beginning of it, until everything that waited has been read: with many callers, or on a slow machine,
//! that takes a while. The clock is the one that goes on while the machine sleeps. A pause of the whole
//! virtual machine, clocks included, cannot be seen.
//!
//! Each thread takes notes of its own. A connection that the first thread has accepted after a pause may have waited for that
//! thread, whichever thread serves it, so the notes of the first thread count for it as well.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Interval of the notes.
const BEAT: Duration = Duration::from_millis(50);
/// Gap between two notes from which on it is a pause. Shorter gaps are usual under load.
const GAP: Duration = Duration::from_millis(200);
/// Gap that cannot come from reading what has waited.
const LONG_GAP: Duration = Duration::from_secs(1);
/// Time after a pause in which requests from before its end may still arrive: what did not fit into this host's
/// buffers waits at the callers.
const AFTERMATH: Duration = Duration::from_millis(200);
/// Turns of all tasks of the runtime after a pause in which everything that waited is read. Each turn takes in over a
/// hundred new connections, and those that are open are read in the first turns.
const TURNS: u32 = 64;
/// Longest time for that. A runtime that is too busy for it must not take its calls for old ones for ever.
const MAX_AFTERMATH: Duration = Duration::from_secs(3);

/// Notices pauses of one thread, and of the process with it.
#[derive(Debug, Default)]
pub struct Pauses {
    notes: Mutex<Notes>,
    /// Those of the thread that accepts connections, if it is another one.
    accepting: Option<Arc<Self>>,
}

/// What has been noted, as times of the clock.
#[derive(Clone, Copy, Debug, Default)]
struct Notes {
    last: Duration,
    /// The last pause.
    pause: Option<Pause>,
}

#[derive(Clone, Copy, Debug)]
struct Pause {
    begun: Duration,
    ended: Duration,
    /// Turns since then. After [`TURNS`] everything that waited has been read.
    turns: u32,
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
    /// Begins to take notes, until the returned value is dropped. Must be called inside a tokio runtime. The beginning
    /// counts as the end of a pause: a socket that the service manager keeps holds what came before this process.
    #[must_use]
    pub fn watch() -> Arc<Self> {
        Self::default().begin()
    }

    /// Begins to take notes as [`Self::watch`], on a thread whose connections are accepted by the thread of `self`.
    #[must_use]
    pub fn watch_another(self: &Arc<Self>) -> Arc<Self> {
        Self { accepting: Some(self.clone()), ..Self::default() }.begin()
    }

    fn begin(self) -> Arc<Self> {
        let pauses = Arc::new(self);
        let start = now();
        *pauses.notes() = Notes { last: start, pause: Some(Pause { begun: start, ended: start, turns: 0 }) };
        let watched = Arc::downgrade(&pauses);
        tokio::spawn(async move {
            while let Some(pauses) = watched.upgrade() {
                let settled = pauses.take_turn(now());
                drop(pauses);
                if settled {
                    tokio::time::sleep(BEAT).await;
                } else {
                    tokio::task::yield_now().await;
                }
            }
        });
        pauses
    }

    /// Returns how old a request may be that is read now, if the process has paused just before. Its connection was
    /// opened at a time of [`now`].
    #[must_use]
    pub fn late(&self, opened: Duration) -> Option<Late> {
        self.late_on(opened, now())
    }

    fn late_on(&self, opened: Duration, now: Duration) -> Option<Late> {
        let accepted = self.accepting.as_ref().and_then(|accepting| accepting.held_back(opened, now));
        match (self.late_at(now), accepted) {
            (Some(here), Some(there)) => Some(Late {
                waited: here.waited.max(there.waited),
                retry_after: here.retry_after.max(there.retry_after),
            }),
            (here, there) => here.or(there),
        }
    }

    /// Returns how old a request may be that another thread reads now, because its connection has waited for this thread.
    fn held_back(&self, opened: Duration, now: Duration) -> Option<Late> {
        // a copy: the gap is still there for this thread, which may stand still for longer
        let mut notes = *self.notes();
        if notes.has_gap(now) {
            notes.note(now);
        }
        // one that was opened earlier has not waited
        if opened < notes.pause?.begun {
            return None;
        }
        notes.late(now)
    }

    /// Notes the time, and that all tasks have had a turn. Returns true if nothing waits from before the end of a pause.
    fn take_turn(&self, now: Duration) -> bool {
        let mut notes = self.notes();
        notes.note(now);
        let Some(pause) = &mut notes.pause else { return true };
        let settled = pause.is_settled();
        pause.turns += u32::from(!settled);
        settled
    }

    fn late_at(&self, now: Duration) -> Option<Late> {
        let mut notes = self.notes();
        // after a pause this may run before the task
        if notes.has_gap(now) {
            notes.note(now);
        }
        notes.late(now)
    }

    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pause {
    const fn is_settled(&self) -> bool {
        self.turns >= TURNS
    }
}

impl Notes {
    fn has_gap(&self, now: Duration) -> bool {
        !self.last.is_zero() && now.saturating_sub(self.last) >= GAP
    }

    fn late(&self, now: Duration) -> Option<Late> {
        let pause = self.pause?;
        let since = now.saturating_sub(pause.ended);
        let left = match AFTERMATH.checked_sub(since) {
            None if !pause.is_settled() && since < MAX_AFTERMATH => AFTERMATH,
            left => left?,
        };
        Some(Late { waited: now.saturating_sub(pause.begun), retry_after: left })
    }

    fn note(&mut self, now: Duration) {
        let gap = self.has_gap(now);
        let last = std::mem::replace(&mut self.last, now);
        if !gap {
            return;
        }
        // what waited from before an earlier pause may not have been read yet
        let before = self.pause.filter(|pause| !pause.is_settled() && last < pause.ended + MAX_AFTERMATH);
        match before {
            // to read it may be what took so long
            Some(_) if now < last + LONG_GAP => {}
            Some(before) => self.pause = Some(Pause { ended: now, turns: 0, ..before }),
            None => self.pause = Some(Pause { begun: last, ended: now, turns: 0 }),
        }
    }
}

/// Returns the time since the machine has started, sleep included.
pub fn now() -> Duration {
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
            assert!(pauses.take_turn(ms(50 * beat)));
            assert_eq!(pauses.late_at(ms(50 * beat + 49)), None);
        }
        // a request is read before the task runs again
        let late = |waited, left| Some(Late { waited: ms(waited), retry_after: ms(left) });
        assert_eq!(pauses.late_at(ms(4450)), late(3000, 200));
        turns(&pauses, 4451, 0);
        assert_eq!(pauses.late_at(ms(4460)), late(3010, 190));
        pauses.take_turn(ms(4500));
        assert_eq!(pauses.late_at(ms(4650)), late(3200, 0));
        assert_eq!(pauses.late_at(ms(4651)), None);
    }

    /// Lets the tasks have all the turns after a pause, each of so many ms.
    fn turns(pauses: &Pauses, from: u64, each: u64) {
        let turns = (0..u64::from(TURNS)).filter(|turn| !pauses.take_turn(ms(from + each * turn)));
        assert_eq!(turns.count(), TURNS as usize);
    }

    /// Hundreds of callers, or a slow machine: the time of all that is read counts, however long that takes.
    #[test]
    fn a_pause_counts_until_all_that_waited_has_been_read() {
        let pauses = Pauses::default();
        pauses.take_turn(ms(1000));
        turns(&pauses, 4000, 20);
        assert_eq!(pauses.late_at(ms(5280)), None, "it took 1.28 s");
        pauses.take_turn(ms(5280));

        pauses.take_turn(ms(8000));
        for now in [8300, 8700, 9300, 10_200] {
            let waited = pauses.late_at(ms(now)).map(|late| late.waited);
            assert_eq!(waited, Some(ms(now - 5280)), "no pause of its own");
            pauses.take_turn(ms(now));
        }
        // but not for ever
        pauses.take_turn(ms(11_000));
        assert_eq!(pauses.late_at(ms(11_001)), None);
        pauses.take_turn(ms(11_300));
        assert_eq!(pauses.late_at(ms(11_300)).map(|late| late.waited), Some(ms(300)));
        // a second pause soon after
        pauses.take_turn(ms(14_300));
        assert_eq!(pauses.late_at(ms(14_400)).map(|late| late.waited), Some(ms(3400)));
    }

    /// Whichever thread gets it. The other connections of that thread have not waited.
    #[test]
    fn a_connection_may_have_waited_for_the_thread_that_accepts() {
        let first = Arc::new(Pauses::default());
        let other = Pauses { accepting: Some(first.clone()), ..Pauses::default() };
        first.take_turn(ms(1450));
        for beat in 29..=89 {
            other.take_turn(ms(50 * beat));
            assert_eq!(other.late_on(ms(1000), ms(50 * beat)), None, "the first thread stands still");
        }
        // it goes on, and accepts before it takes a note; whoever asks leaves the pause to be found by its thread
        let late = |waited, left| Some(Late { waited: ms(waited), retry_after: ms(left) });
        assert_eq!(other.late_on(ms(4450), ms(4450)), late(3000, 200));
        assert_eq!(first.late_at(ms(4450)), late(3000, 200));
        turns(&first, 4451, 0);
        assert_eq!(other.late_on(ms(4450), ms(4460)), late(3010, 190));
        assert_eq!(other.late_on(ms(1000), ms(4460)), None);
        // of two pauses the longer one counts
        first.take_turn(ms(4600));
        for (opened, waited) in [(4450, 3200), (1000, 200)] {
            assert_eq!(other.late_on(ms(opened), ms(4650)), late(waited, 200), "opened at {opened}");
        }
    }

    #[test]
    fn a_late_note_is_not_yet_a_pause() {
        let pauses = Pauses::default();
        pauses.take_turn(ms(1000));
        pauses.take_turn(ms(1199));
        assert_eq!(pauses.late_at(ms(1200)), None);
        pauses.take_turn(ms(1399));
        assert!(pauses.late_at(ms(1399)).is_some());
    }

    #[tokio::test]
    async fn the_task_takes_notes_and_ends_with_its_owner() {
        let pauses = Pauses::watch();
        let late = pauses.late(now()).expect("what waited for the process may be old");
        assert!(late.waited < GAP);
        std::thread::sleep(GAP + BEAT);
        assert!(pauses.late(now()).is_some_and(|late| late.waited >= GAP));
        let watched = Arc::downgrade(&pauses);
        tokio::time::sleep(4 * BEAT).await;
        drop(pauses);
        assert!(watched.upgrade().is_none());
    }
}
