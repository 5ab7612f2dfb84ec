//! The answers that one connection has yet to send, part by part: how much they hold, and which of them their peer
//! does not take. And the limit of what all connections of a listener hold so.
//!
//! A peer is judged by what it takes of what it holds, and each of its answers for itself: neither a byte now and
//! then nor one answer that moves among many that do not makes a reader of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::limit::{Limit, Permit};

/// What one connection counts for at most, of the limit of all: one peer alone never fills it. A connection that
/// holds as much gets no further answers.
const SHARES: usize = 4;
/// How many times the limit all connections may hold together, if what is above their shares counts too: the
/// answers to calls that a connection made before it reached its share.
const OVERDRAFT: usize = 4;
/// Time in which a peer has to take half of what it holds, ms. So it has two seconds for all of it, the default
/// deadline of a call; later than that nobody waits for it.
const WINDOW_MS: u64 = 1000;
/// Bytes of one answer that a peer has to take in that time, if it takes newer answers: one frame.
const LEAST: usize = 16 * 1024;

/// The limit of the bytes that all connections of a listener have unsent.
#[derive(Debug)]
pub struct UnsentLimit {
    /// Of each connection at most its share.
    shares: Arc<Limit>,
    /// Everything.
    all: Arc<Limit>,
    max: usize,
    share: usize,
}

impl UnsentLimit {
    /// Returns a limit of `max` bytes.
    #[must_use]
    pub fn new(max: usize) -> Arc<Self> {
        let all = Limit::new(max.saturating_mul(OVERDRAFT), None);
        Arc::new(Self { shares: Limit::new(max, None), all, max, share: max / SHARES })
    }

    /// Returns true if no answer more should be made.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.shares.is_full() || self.all.is_full()
    }

    /// Returns true from the half of the shares on, or if connections hold more than `max` together: then those
    /// that do not read have to end.
    #[must_use]
    pub fn is_short(&self) -> bool {
        self.shares.is_half_full() || self.all.used() >= self.max
    }

    /// Returns the unsent bytes of all connections.
    #[must_use]
    pub fn used(&self) -> usize {
        self.all.used()
    }
}

/// A part of an answer, in most cases the whole.
#[derive(Debug)]
struct Part {
    left: usize,
    /// When it began to wait, ms.
    since: u64,
    /// When it last had moved by [`LEAST`], ms, and what was left then.
    moved: (u64, usize),
}

/// What the peer has taken since a time.
#[derive(Clone, Copy, Debug, Default)]
struct Window {
    since: u64,
    /// Bytes sent until then.
    sent: u64,
    /// Bytes held then.
    held: usize,
}

/// The unsent parts of one connection. Times are ms on the server's clock.
#[derive(Debug)]
pub struct Parts {
    /// By age.
    waiting: BTreeMap<u64, Part>,
    next: u64,
    held: usize,
    sent: u64,
    /// The youngest part that was sent whole, counted from 1.
    done: u64,
    window: Window,
    share: usize,
    /// What it counts for: at most its share, and everything.
    counted: [Permit; 2],
    /// True once it counts for nothing more.
    discounted: bool,
}

impl Parts {
    /// Returns none.
    pub fn new(limit: &UnsentLimit) -> Self {
        Self {
            waiting: BTreeMap::new(),
            next: 0,
            held: 0,
            sent: 0,
            done: 0,
            window: Window::default(),
            share: limit.share,
            counted: [limit.shares.acquire(0), limit.all.acquire(0)],
            discounted: false,
        }
    }

    /// Adds a part, and returns its number.
    pub fn add(&mut self, bytes: usize, now: u64) -> u64 {
        self.next += 1;
        self.waiting.insert(self.next, Part { left: bytes, since: now, moved: (now, bytes) });
        if self.held == 0 {
            self.window = Window { since: now, sent: self.sent, held: bytes };
        }
        self.hold(self.held + bytes);
        self.next
    }

    /// Notes that bytes of a part were sent.
    pub fn sent(&mut self, part: u64, bytes: usize) {
        let Some(waiting) = self.waiting.get_mut(&part) else { return };
        waiting.left = waiting.left.saturating_sub(bytes);
        if waiting.left == 0 {
            self.done = self.done.max(part);
        }
        self.sent = self.sent.saturating_add(u64::try_from(bytes).unwrap_or(u64::MAX));
        self.hold(self.held.saturating_sub(bytes));
    }

    /// Removes a part, sent or not.
    pub fn remove(&mut self, part: u64) {
        if let Some(removed) = self.waiting.remove(&part) {
            self.hold(self.held.saturating_sub(removed.left));
        }
    }

    /// Returns the bytes of all parts.
    pub const fn held(&self) -> usize {
        self.held
    }

    /// Returns true if it holds as much as one connection may.
    pub const fn has_share(&self) -> bool {
        self.held >= self.share
    }

    /// Gives back what it counts for: its connection is being ended.
    pub fn discount(&mut self) {
        self.discounted = true;
        self.hold(self.held);
    }

    fn hold(&mut self, held: usize) {
        self.held = held;
        let counted = if self.discounted { 0 } else { held };
        let [share, all] = &mut self.counted;
        share.resize(counted.min(self.share));
        all.resize(counted);
    }

    /// Returns how long the oldest part has waited, ms; none if nothing waits.
    pub fn longest_wait(&self, now: u64) -> Option<u64> {
        let oldest = self.waiting.values().find(|part| part.left > 0)?;
        Some(now.saturating_sub(oldest.since))
    }

    /// Returns the bytes that the peer does not take. All of them, if it takes less than half of what it holds in
    /// the time for that; else those of the answers that stand still while younger ones are sent.
    pub fn stalled(&mut self, now: u64) -> usize {
        let sent = self.sent.saturating_sub(self.window.sent);
        let wanted = u64::try_from(self.window.held.div_ceil(2)).unwrap_or(u64::MAX);
        if self.held == 0 || sent >= wanted {
            self.window = Window { since: now, sent: self.sent, held: self.held };
        } else if now.saturating_sub(self.window.since) >= WINDOW_MS {
            return self.held;
        }
        let mut stalled = 0;
        for (number, part) in &mut self.waiting {
            let (since, left) = part.moved;
            if left.saturating_sub(part.left) >= LEAST {
                part.moved = (now, part.left);
            } else if now.saturating_sub(since) >= WINDOW_MS && *number < self.done {
                stalled += part.left;
            }
        }
        stalled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: usize = 1024;

    fn parts() -> (Arc<UnsentLimit>, Parts) {
        let limit = UnsentLimit::new(400 * KIB);
        let parts = Parts::new(&limit);
        (limit, parts)
    }

    #[test]
    fn one_connection_counts_for_its_share_and_no_more() {
        let (limit, mut greedy) = parts();
        let numbers: Vec<_> = (0..3).map(|_| greedy.add(150 * KIB, 0)).collect();
        assert_eq!((limit.used(), limit.shares.used()), (450 * KIB, 100 * KIB));
        assert!(!limit.is_full() && limit.is_short(), "others go on; more than the limit is held");
        assert!(greedy.has_share());
        let mut others: Vec<_> = (0..3).map(|_| Parts::new(&limit)).collect();
        for other in &mut others {
            other.add(100 * KIB, 0);
        }
        assert!(limit.is_full());
        others[0].discount();
        others[0].add(KIB, 0);
        assert_eq!((limit.shares.used(), others[0].held()), (300 * KIB, 101 * KIB), "it is being ended");
        drop(others);
        for number in numbers {
            greedy.remove(number);
        }
        assert_eq!((limit.used(), limit.shares.used(), greedy.held()), (0, 0, 0));
    }

    #[test]
    fn all_together_are_bounded_too() {
        let (limit, mut greedy) = parts();
        let most = 400 * KIB * OVERDRAFT;
        let part = greedy.add(most, 0);
        assert!(limit.is_full());
        greedy.sent(part, 1);
        assert!(!limit.is_full() && limit.used() == most - 1);
        drop(greedy);
        assert_eq!((limit.used(), limit.shares.used()), (0, 0));
    }

    #[test]
    fn a_reader_takes_half_of_what_it_holds_in_a_second() {
        let (_, mut parts) = parts();
        let part = parts.add(1000, 0);
        assert_eq!((parts.stalled(999), parts.stalled(1000)), (0, 1000));
        parts.sent(part, 499);
        assert_eq!(parts.stalled(1001), 501, "a byte now and then is not enough");
        parts.sent(part, 1);
        assert_eq!((parts.stalled(1002), parts.stalled(2001), parts.stalled(2002)), (0, 0, 500));
        parts.sent(part, 500);
        parts.remove(part);
        assert_eq!(parts.stalled(9000), 0);
        parts.add(1, 10_000);
        assert_eq!((parts.stalled(10_999), parts.stalled(11_000)), (0, 1), "idle time does not count");
    }

    #[test]
    fn an_answer_that_stands_still_among_others_that_move_is_stalled() {
        let (_, mut parts) = parts();
        let (held, large) = (parts.add(100 * KIB, 0), parts.add(100 * KIB, 0));
        let mut stalled = Vec::new();
        for second in 1..=4 {
            // it asks for more and more, takes all of that, and of the large one enough
            let young = parts.add(200 * KIB, second * 1000);
            parts.sent(young, 200 * KIB);
            parts.remove(young);
            parts.sent(large, 20 * KIB);
            parts.sent(held, 1);
            stalled.push(parts.stalled(second * 1000));
        }
        assert_eq!(stalled, [1, 2, 3, 4].map(|sent| 100 * KIB - sent));
    }

    #[test]
    fn answers_wait_for_older_ones_of_their_connection() {
        let (_, mut parts) = parts();
        let all: Vec<_> = (0..20).map(|_| parts.add(100 * KIB, 0)).collect();
        let mut now = 0;
        for part in all {
            assert_eq!(parts.stalled(now), 0, "at {now} ms");
            assert_eq!(parts.longest_wait(now), Some(now));
            parts.sent(part, 100 * KIB);
            parts.remove(part);
            now += 80;
        }
        assert_eq!(parts.longest_wait(now), None);
    }
}
